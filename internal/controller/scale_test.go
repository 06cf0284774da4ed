package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// ScaleVariable, set to "full", makes TestScale run at the size that docs/architecture/limits.md tells of, which takes a
// minute or two. Otherwise it runs at a hundredth of it.
const ScaleVariable = "ISTHMUS_SCALE"

type scale struct{ clusters, services, tasks int } // services and tasks are those of one cluster

// fleet fills a fake account: each service with a task definition of its own.
func (s scale) fleet() (*awsfake.ECS, []string) {
	f := awsfake.New(accountA, region)
	var clusters []string
	for c := range s.clusters {
		arn := f.AddCluster(fmt.Sprintf("cluster-%03d", c), inventory.Tags{"ecs.solo.io/discovery-enabled": "true"})
		clusters = append(clusters, arn)
		for n := range s.services {
			name := fmt.Sprintf("service-%03d", n)
			def := f.AddDefinition(inventory.TaskDefinition{
				Family: fmt.Sprintf("%s-%03d", name, c), Revision: 1, Tags: inventory.Tags{"ecs.solo.io/service-account": "app"},
				Containers: []inventory.ContainerDefinition{
					{Name: "app", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp"}}}, {Name: "ztunnel", HasHealthCheck: true},
				},
			})
			f.AddService(arn, name, def)
			for range s.tasks / s.services {
				f.RunTask(arn, name, def)
			}
		}
	}
	return f, clusters
}

// heap returns the live heap in MiB.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// peak returns the most memory that this process has had resident, in bytes.
func peak(t *testing.T) int64 {
	t.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	return use.Maxrss << 10
}

// TestScale reads an account of many clusters at AWS's own request rates, of which half are ours, in virtual time; plans
// for it; and then changes one task.
func TestScale(t *testing.T) {
	s := scale{clusters: 10, services: 10, tasks: 100}
	if os.Getenv(ScaleVariable) == "full" {
		s = scale{clusters: 100, services: 100, tasks: 1000}
	}
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	session, err := awsapi.Open(t.Context(), awsapi.Config{Region: region, AccessKeyID: "x", SecretAccessKey: "y"})
	if err != nil {
		t.Fatal(err)
	}
	f, clusters := s.fleet()
	base := heap()
	var r *ecs.Reflector
	synctest.Test(t, func(t *testing.T) {
		reader := f.Limited(func(ctx context.Context, operation string) error {
			call := awsapi.Call{Service: "ECS", Operation: operation, Account: accountA, Region: region}
			return session.Do(ctx, call, func(context.Context) error { return nil })
		})
		r, err = ecs.New(ecs.Config{Account: accountA, Region: region, Source: reader, Log: slog.New(slog.DiscardHandler), Jitter: -1})
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"first sweep", "sweep of tasks", "sweep of everything"} {
			calls, start := f.CallCount(""), time.Now()
			if _, err := r.Sweep(t.Context(), what != "sweep of tasks"); err != nil {
				t.Fatal(err)
			}
			t.Logf("%-20s %6d calls, %v at half of AWS's request rates", what, f.CallCount("")-calls, time.Since(start).Round(time.Second))
		}
		for _, op := range f.Operations() {
			t.Logf("  %-24s %6d in all three", op, f.CallCount(op))
		}
	})
	snapshot := heap()
	read := r.Snapshot()
	services, tasks := read.Counts()
	if services != s.clusters*s.services || tasks != s.clusters*s.tasks {
		t.Fatalf("%d services and %d tasks were read", services, tasks)
	}

	r, f = nil, nil // from here on memory is the controller's alone
	floor := heap()
	l := newLedger(discovery.Config{}, slog.New(slog.DiscardHandler))
	round := func(snap *inventory.Snapshot) plan.Changes {
		l.want([]discovery.Input{{Snapshot: snap, Domain: "ecs.local"}}, func(string) bool { return true })
		return l.plan.Plan([]*inventory.Snapshot{snap}, l.discovery.Skipped, plan.Limits{})
	}
	start := time.Now()
	changes := round(read)
	first := time.Since(start)
	if len(changes.Create) != services+tasks {
		t.Fatal(strings.SplitAfterN(changes.String(), "\n", 5))
	}
	wanted := heap()
	existing := make(map[string]map[kube.Name]*kube.Object)
	for i, ch := range changes.Create {
		var o any = ch.Service
		if ch.Workload != nil {
			o = ch.Workload
		}
		obj := stored(t, o, i)
		if existing[ch.Key.Kind] == nil {
			existing[ch.Key.Kind] = map[kube.Name]*kube.Object{}
		}
		existing[ch.Key.Kind][kube.Name{Namespace: ch.Key.Namespace, Name: ch.Key.Name}] = obj
	}
	changes = plan.Changes{}
	for kind, objs := range existing {
		l.see(kind, objs)
	}
	existing = nil
	if c := round(read); !c.Empty() {
		t.Fatal(c)
	}
	current := heap()
	t.Logf("memory: snapshot %.0f MiB, what is wanted %.0f MiB, what there is %.0f MiB; together %.0f MiB", snapshot-base, wanted-floor, current-wanted, current-floor+snapshot-base)
	t.Logf("peak resident memory of the process, that of the fake AWS included while there is one: %d MiB", peak(t)>>20)
	t.Logf("first plan: %v for %d objects", first.Round(time.Millisecond), services+tasks)

	// One task stops. What the reflector's part of it costs is a test of package ecs: one call.
	next := *read
	view := *next.Clusters[clusters[0]]
	victim := *view.SortedTasks()[0]
	victim.DesiredStatus = inventory.TaskStopped
	view.Tasks, next.Clusters = maps.Clone(view.Tasks), maps.Clone(next.Clusters)
	view.Tasks[victim.ARN], next.Clusters[clusters[0]] = &victim, &view
	view.History, next.History = view.History.Next(victim.ARN), next.History.Next(clusters[0])
	start = time.Now()
	c := round(&next)
	t.Logf("one change: %v to discover and plan", time.Since(start).Round(time.Microsecond))
	if len(c.Delete) != 1 || len(c.Create)+len(c.Update)+len(c.Held) != 0 {
		t.Error(c)
	}
	if total := current - floor + snapshot - base; total > 900 {
		t.Errorf("%.0f MiB are more than the container's limit allows", total)
	}
	runtime.KeepAlive(l)
	runtime.KeepAlive(read)
}

// stored returns an object as the API server would give it back, without the managed fields that the cache drops.
func stored(t *testing.T, v any, i int) *kube.Object {
	t.Helper()
	o, err := kube.Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	metadata, _ := o.Object["metadata"].(map[string]any)
	metadata["uid"], metadata["resourceVersion"] = fmt.Sprintf("0f6b1c9e-0000-4000-8000-%012d", i), fmt.Sprint(i)
	metadata["creationTimestamp"], metadata["generation"] = "2026-01-01T00:00:00Z", int64(1)
	return kube.Compact(o)
}

package cloud_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// The product's own discovery against the lab's endpoint: a service comes, is scaled, rolled and deleted, and the
// objects follow it.
func TestDiscoveryFollowsTheLab(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s, err := awsapi.Open(t.Context(), awsapi.Config{Region: region, Endpoint: l.url, AccessKeyID: "AKIALABADMIN00000001", SecretAccessKey: "secret-one", RateShare: 1})
	if err != nil {
		t.Fatal(err)
	}
	who, err := s.WhoAmI(t.Context(), awsapi.Target{})
	if err != nil || who.Account != account {
		t.Fatalf("WhoAmI = %+v, %v", who, err)
	}
	admin, err := awsadmin.New(t.Context(), s, awsapi.Target{})
	if err != nil {
		t.Fatal(err)
	}
	def, err := admin.RegisterTaskDefinition(t.Context(), map[string]any{
		"family": "echo", "networkMode": "awsvpc", "requiresCompatibilities": []string{"FARGATE"}, "cpu": "256", "memory": "512",
		"containerDefinitions": []any{
			map[string]any{"name": "app", "image": "ealen/echo-server", "portMappings": []any{map[string]any{"containerPort": 8080}}},
			map[string]any{"name": "ztunnel", "image": "isthmus/ztunnel:dev", "healthCheck": map[string]any{"command": []string{"CMD", "/usr/local/bin/ztunnel", "health"}, "interval": 5}},
		},
	}, map[string]string{"ecs.solo.io/service-account": "echo"})
	if err != nil {
		t.Fatal(err)
	}
	l.cluster("ecs-demo-1")
	l.service("ecs-demo-1", "echo-service", def, 2)
	reader, err := awsapi.NewECS(s, awsapi.Target{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := ecs.New(ecs.Config{Account: account, Region: region, Source: reader, Interval: 100 * time.Millisecond, FullInterval: 100 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() { cancel(); <-done }()

	var cur plan.Current
	var mem plan.Memory
	turn := func() (discovery.Desired, plan.Changes) {
		snap := r.Snapshot()
		want := discovery.Want([]discovery.Input{{Snapshot: snap, Domain: "ecs.local"}}, discovery.Config{})
		var c plan.Changes
		c, mem = plan.Compute(plan.Input{Desired: want, Current: cur, Snapshots: []*inventory.Snapshot{snap}, Memory: mem})
		for _, d := range c.Delete {
			t.Logf("delete %s %s: %s", d.Key, d.Rule, d.Reason)
			for i, w := range cur.WorkloadEntries {
				if d.Workload != nil && w.Metadata.Name == d.Key.Name {
					cur.WorkloadEntries = append(cur.WorkloadEntries[:i:i], cur.WorkloadEntries[i+1:]...)
					break
				}
			}
			if d.Service != nil {
				cur.ServiceEntries = nil
			}
		}
		for _, x := range c.Create {
			if x.Service != nil {
				cur.ServiceEntries = append(cur.ServiceEntries, *x.Service)
			} else {
				cur.WorkloadEntries = append(cur.WorkloadEntries, *x.Workload)
			}
		}
		r.Expect(c.WantEvidence()...)
		return want, c
	}
	l.eventually("two HBONE workloads", func() bool {
		_, _ = turn()
		hbone := 0
		for _, w := range cur.WorkloadEntries {
			if w.Metadata.Annotations[discovery.AnnotationHBONE] == "enabled" && w.Spec.ServiceAccount == "echo" && strings.HasPrefix(w.Spec.Address, "10.") {
				hbone++
			}
		}
		return hbone == 2 && len(cur.ServiceEntries) == 1
	})
	snap := r.Snapshot()
	t.Logf("%+v", cur.WorkloadEntries[0])
	id := inventory.LastPart(cur.WorkloadEntries[0].Metadata.Annotations[discovery.AnnotationSource])
	if v, err := r.Lookup(t.Context(), id); err != nil || v.Service == nil || v.Definition.Family != "echo" {
		t.Errorf("Lookup = %+v, %v", v, err)
	}
	if !snap.Complete {
		t.Errorf("snapshot: %v", snap.Err)
	}
	if err := admin.Scale(t.Context(), "ecs-demo-1", "echo-service", 0); err != nil {
		t.Fatal(err)
	}
	l.eventually("no workload", func() bool { turn(); return len(cur.WorkloadEntries) == 0 && len(cur.ServiceEntries) == 1 })
	if err := admin.DeleteService(t.Context(), "ecs-demo-1", "echo-service"); err != nil {
		t.Fatal(err)
	}
	l.eventually("no service", func() bool { l.clock.advance(time.Second); turn(); return len(cur.ServiceEntries) == 0 })
}

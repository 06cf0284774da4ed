package cloud_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/plan"
	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// watcher is the product's discovery at the endpoint, and the objects that it would have written.
type watcher struct {
	t   *testing.T
	r   *ecs.Reflector
	cur plan.Current
	mem plan.Memory
}

func newWatcher(t *testing.T, l *lab) *watcher {
	t.Helper()
	s := must(awsapi.Open(t.Context(), awsapi.Config{Region: region, Endpoint: l.url, AccessKeyID: "AKIALABADMIN00000001", SecretAccessKey: "secret-one", RateShare: 1}))(t)
	reader := must(awsapi.NewECS(s, awsapi.Target{}))(t)
	r := must(ecs.New(ecs.Config{Account: account, Region: region, Source: reader, Interval: time.Minute, FullInterval: time.Minute,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}))(t)
	return &watcher{t: t, r: r}
}

// sweep reads everything once, whatever comes of it, and returns what would be deleted.
func (w *watcher) sweep() (deletes []plan.Change) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 1500*time.Millisecond)
	defer cancel()
	snap, err := w.r.Sweep(ctx, true)
	if err != nil {
		snap = w.r.Snapshot()
	}
	want := discovery.Want([]discovery.Input{{Snapshot: snap, Domain: "ecs.local"}}, discovery.Config{})
	var c plan.Changes
	c, w.mem = plan.Compute(plan.Input{Desired: want, Current: w.cur, Snapshots: []*inventory.Snapshot{snap}, Memory: w.mem})
	for _, x := range c.Create {
		if x.Service != nil {
			w.cur.ServiceEntries = append(w.cur.ServiceEntries, *x.Service)
		} else {
			w.cur.WorkloadEntries = append(w.cur.WorkloadEntries, *x.Workload)
		}
	}
	w.r.Expect(c.WantEvidence()...)
	return c.Delete
}

// TestNoFaultDeletes puts the endpoint under each of its faults, in turn for all calls of an account, for the calls that list
// and for some of those that describe, and sweeps several times. Whatever AWS answers, running tasks stay; and after the fault
// what is really gone still goes.
func TestNoFaultDeletes(t *testing.T) {
	t.Parallel()
	for _, k := range awsserver.FaultKinds() {
		t.Run(string(k.Kind), func(t *testing.T) {
			t.Parallel()
			noFaultDeletes(t, k.Kind)
		})
	}
}

func noFaultDeletes(t *testing.T, kind awsserver.FaultKind) {
	l := newLab(t)
	l.cluster("c")
	a := app("a")
	a.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(8080)}}
	l.service("c", "web", l.register("web", a), 4)
	l.steady("c", "web")
	for _, f := range []awsserver.Fault{
		{Kind: kind, Account: account}, {Kind: kind, Call: "ECS.List*"}, {Kind: kind, Call: "ECS.ListTasks"}, {Kind: kind, Call: "ECS.Describe*", Every: 2},
	} {
		name := fmt.Sprintf("%s of %s%s", f.Kind, f.Account, f.Call)
		if f.Kind == awsserver.FaultSlow {
			f.By = 2 * time.Second // longer than a sweep here may take
		}
		w := newWatcher(t, l) // its own, because clients that were throttled stay away for a while
		l.eventually("discovery has seen the tasks", func() bool { w.sweep(); return len(w.cur.WorkloadEntries) == 4 && len(w.cur.ServiceEntries) == 1 })
		l.fault(f)
		for range 4 {
			for _, d := range w.sweep() {
				t.Errorf("%s: would delete %s (%s: %s)", name, d.Key, d.Rule, d.Reason)
			}
		}
		if hits := l.cloud.Faults().List()[0].Hits; hits == 0 {
			t.Errorf("%s hit no call", name)
		}
		l.cloud.Faults().Clear(awsserver.Fault{})
	}
	w := newWatcher(t, l)
	l.eventually("discovery has seen the tasks", func() bool { w.sweep(); return len(w.cur.WorkloadEntries) == 4 })
	must(l.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("web"), DesiredCount: aws.Int32(3)}))(t)
	l.eventually("the task that was stopped goes", func() bool { return len(w.sweep()) == 1 })
}

package ecs

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// TestMain draws more cases than rapid does by itself, unless -rapid.checks says how many: these cost a hundredth of a
// second each.
func TestMain(m *testing.M) {
	if f := flag.Lookup("rapid.checks"); f != nil {
		_ = f.Value.Set("1000") // a number always is one
	}
	os.Exit(m.Run())
}

// chaos is an account in which anything may happen, and a controller that may be killed at any time.
type chaos struct {
	t        *rapid.T
	aws      *awsfake.ECS
	now      time.Time
	refl     *Reflector
	memory   plan.Memory
	objects  plan.Current // what Kubernetes has
	clusters []string
	tasks    []string
	def      string
}

func newChaos(t *rapid.T) *chaos {
	c := &chaos{t: t, aws: awsfake.New("123456789012", "us-east-2"), now: time.Unix(1_800_000_000, 0)}
	c.def = c.aws.AddDefinition(inventory.TaskDefinition{Family: "web", Revision: 1, Tags: inventory.Tags{"ecs.solo.io/service-account": "web"},
		Containers: []inventory.ContainerDefinition{{Name: "app", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 80, Protocol: "tcp"}}}, {Name: "ztunnel", HasHealthCheck: true}}})
	for i := range 3 {
		arn := c.aws.AddCluster(fmt.Sprintf("c%d", i), optedIn)
		c.clusters = append(c.clusters, arn)
		c.aws.AddService(arn, "web", c.def)
	}
	c.restart()
	return c
}

// restart forgets everything that a process would forget.
func (c *chaos) restart() {
	r, err := New(Config{Account: "123456789012", Region: "us-east-2", Source: c.aws.Reader(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return c.now }})
	if err != nil {
		c.t.Fatal(err)
	}
	c.refl, c.memory = r, plan.Memory{}
}

func (c *chaos) step(i int) {
	pick := func(n int, label string) int { return rapid.IntRange(0, n-1).Draw(c.t, fmt.Sprint(label, i)) }
	someTask := func() string {
		if len(c.tasks) == 0 {
			return ""
		}
		return c.tasks[pick(len(c.tasks), "task")]
	}
	ops := []string{"ListClusters", "DescribeClusters", "ListServices", "DescribeServices", "ListTasks", "DescribeTasks", "DescribeTaskDefinition"}
	switch pick(16, "do") {
	case 0, 1, 2:
		c.tasks = append(c.tasks, c.aws.RunTask(c.clusters[pick(3, "cluster")], "web", c.def))
	case 3:
		c.aws.StopTask(someTask())
	case 4:
		c.aws.EndTask(someTask())
	case 5:
		if t := someTask(); t != "" {
			c.aws.EndTask(t)
			c.aws.ForgetTask(t)
		}
	case 6:
		c.aws.Edit(someTask(), func(x *inventory.Task) { x.Containers[1].HealthStatus = inventory.Unhealthy })
	case 7:
		c.aws.Edit(someTask(), func(x *inventory.Task) { x.Containers[1].HealthStatus = inventory.Unknown })
	case 8:
		c.aws.Break(ops[pick(len(ops), "op")], "", awsfake.ErrThrottled)
	case 9:
		c.aws.Break(ops[pick(len(ops), "op")], fmt.Sprintf("c%d", pick(3, "cluster")), awsfake.ErrDenied)
	case 10:
		c.aws.EmptyList([]string{"ListClusters", "ListServices", "ListTasks"}[pick(3, "list")])
	case 11:
		c.aws.Hide(someTask(), c.clusters[pick(3, "cluster")])
	case 12:
		c.aws.Silence(someTask())
	case 13:
		c.aws.FreezeAs(someTask(), func(x *inventory.Task) { x.Version = 0 })
	case 14:
		c.restart()
	case 15:
		c.aws.Mend()
	}
}

// serves reports what AWS knows for certain: the task runs, should run, and its proxy has not been found unwell.
func (c *chaos) serves(arn string) bool {
	t, ok := c.aws.Task(arn)
	return ok && t.LastStatus == inventory.TaskRunning && t.DesiredStatus == inventory.TaskRunning && t.Containers[1].HealthStatus != inventory.Unhealthy
}

// control is one turn of the controller: sweep, plan, apply.
func (c *chaos) control(mode sweepMode, advance time.Duration) plan.Changes {
	c.now = c.now.Add(advance)
	before := c.refl.Snapshot()
	snap, _ := c.refl.sweep(c.t.Context(), mode)
	c.checkHistory(before, snap)
	want := discovery.Want([]discovery.Input{{Snapshot: snap, Domain: "ecs.local"}}, discovery.Config{})
	changes, memory := plan.Compute(plan.Input{Desired: want, Current: c.objects, Snapshots: []*inventory.Snapshot{snap}, Memory: c.memory})
	c.memory = memory
	c.refl.Expect(changes.WantEvidence()...)
	for _, d := range changes.Delete {
		if d.Service != nil {
			c.t.Fatalf("deleted a ServiceEntry of a service that is there: %s: %s", d.Rule, d.Reason)
		}
		if arn := d.Workload.Metadata.Annotations[discovery.AnnotationSource]; c.serves(arn) {
			c.t.Fatalf("deleted %s, which serves: %s: %s", arn, d.Rule, d.Reason)
		}
	}
	c.apply(changes)
	return changes
}

// checkHistory compares what a snapshot says has changed with what has.
func (c *chaos) checkHistory(before, now *inventory.Snapshot) {
	keys, known := now.History.Since(before.History)
	for arn, view := range now.Clusters {
		old := before.Clusters[arn]
		if old == view || !known {
			continue
		}
		if !slices.Contains(keys, arn) {
			c.t.Fatalf("%s changed, and the history tells only of %v", arn, keys)
		}
		if old == nil {
			continue
		}
		changed, known := view.History.Since(old.History)
		for task, t := range view.Tasks {
			if known && (old.Tasks[task] != t || old.Members[task] != view.Members[task]) && !slices.Contains(changed, task) {
				c.t.Fatalf("%s changed, and the history tells only of %v", task, changed)
			}
		}
		for task := range old.Tasks {
			if known && view.Tasks[task] == nil && !slices.Contains(changed, task) {
				c.t.Fatalf("%s went, and the history tells only of %v", task, changed)
			}
		}
	}
}

func (c *chaos) apply(changes plan.Changes) {
	gone := map[string]bool{}
	for _, list := range [][]plan.Change{changes.Delete, changes.Update} {
		for _, ch := range list {
			gone[ch.Key.String()] = true
		}
	}
	c.objects.ServiceEntries = slices.DeleteFunc(slices.Clone(c.objects.ServiceEntries), func(e discovery.ServiceEntry) bool {
		return gone[plan.Key{Kind: e.Kind, Namespace: e.Metadata.Namespace, Name: e.Metadata.Name}.String()]
	})
	c.objects.WorkloadEntries = slices.DeleteFunc(slices.Clone(c.objects.WorkloadEntries), func(e discovery.WorkloadEntry) bool {
		return gone[plan.Key{Kind: e.Kind, Namespace: e.Metadata.Namespace, Name: e.Metadata.Name}.String()]
	})
	for _, list := range [][]plan.Change{changes.Create, changes.Update} {
		for _, ch := range list {
			if ch.Service != nil {
				c.objects.ServiceEntries = append(c.objects.ServiceEntries, *ch.Service)
			} else {
				c.objects.WorkloadEntries = append(c.objects.WorkloadEntries, *ch.Workload)
			}
		}
	}
}

// Whatever ECS answers and whenever the controller dies, no object of a task that serves is ever deleted; and once ECS
// answers well again, the objects become those of a controller that was never disturbed.
func TestChaosDeletesNothingThatServesAndConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newChaos(t)
		c.control(sweepFull, time.Second)
		for i := range rapid.IntRange(5, 40).Draw(t, "steps") {
			c.step(i)
			c.control(rapid.SampledFrom([]sweepMode{sweepTasks, sweepFull, sweepHot}).Draw(t, fmt.Sprint("mode", i)), time.Duration(rapid.SampledFrom([]int{0, 1, 10, 400}).Draw(t, fmt.Sprint("secs", i)))*time.Second)
		}
		c.aws.Mend()
		for range 8 {
			c.control(sweepFull, 10*time.Minute)
		}
		if again := c.control(sweepFull, 10*time.Minute); !again.Empty() {
			t.Fatalf("still something to do:\n%s", again)
		}
		compareWithUndisturbed(t, c)
	})
}

func compareWithUndisturbed(t *rapid.T, c *chaos) {
	var got, want []string
	for _, e := range c.objects.WorkloadEntries {
		if arn := e.Metadata.Annotations[discovery.AnnotationSource]; unknownHealth(c, arn) {
			continue // kept or never made, as the past has it: ECS has said neither yes nor no
		}
		got = append(got, e.Metadata.Name)
	}
	c.restart()
	c.objects = plan.Current{}
	c.control(sweepFull, time.Second)
	for _, e := range c.objects.WorkloadEntries {
		want = append(want, e.Metadata.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("objects (-undisturbed +got):\n%s", diff)
	}
}

func unknownHealth(c *chaos, arn string) bool {
	t, ok := c.aws.Task(arn)
	return ok && !t.Stopping() && t.Containers[1].HealthStatus == inventory.Unknown
}

package ecs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

var optedIn = inventory.Tags{"ecs.solo.io/discovery-enabled": "true"}

// world is a fake account and a Reflector on it.
type world struct {
	t    *testing.T
	aws  *awsfake.ECS
	refl *Reflector
	now  time.Time
	def  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, aws: awsfake.New("123456789012", "us-east-2"), now: time.Unix(1_800_000_000, 0)}
	var err error
	w.refl, err = New(Config{Account: "123456789012", Region: "us-east-2", Source: w.aws.Reader(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	w.def = w.aws.AddDefinition(inventory.TaskDefinition{Family: "echo", Revision: 1, Containers: []inventory.ContainerDefinition{{Name: "app", Essential: true}}})
	return w
}

// sweep advances the clock past any back-off and sweeps completely.
func (w *world) sweep() *Snapshot {
	w.t.Helper()
	w.now = w.now.Add(10 * time.Minute)
	s, _ := w.refl.Sweep(w.t.Context(), true)
	return s
}

func (w *world) mustSweep() *Snapshot {
	w.t.Helper()
	s := w.sweep()
	if !s.Complete {
		w.t.Fatalf("sweep is incomplete: %v", s.Err)
	}
	return s
}

func taskIn(s *Snapshot, arn string) *Task {
	for _, c := range s.Clusters {
		if t := c.Tasks[arn]; t != nil {
			return t
		}
	}
	return nil
}

// blocking is an account whose lists of tasks do not answer until they are let go.
type blocking struct {
	Source
	listing chan struct{} // closed when a list was asked for
	let     chan struct{}
}

func (b *blocking) ListTasks(ctx context.Context, cluster, service string) ([]string, error) {
	select {
	case <-b.listing:
	default:
		close(b.listing)
	}
	<-b.let
	return b.Source.ListTasks(ctx, cluster, service)
}

// While the first sweep of a large account is under way a task can be looked up: the broker must not wait for its end.
func TestLookupDuringTheFirstSweep(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	arn := w.aws.RunTask(c, "", w.def)
	b := &blocking{Source: w.aws.Reader(), listing: make(chan struct{}), let: make(chan struct{})}
	r, err := New(Config{Account: "123456789012", Region: "us-east-2", Source: b, Log: slog.New(slog.DiscardHandler), Parallel: 1})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := r.Sweep(t.Context(), true); done <- err }()
	<-b.listing
	if s := r.Snapshot(); s.Complete || s.CompleteSweeps != 0 || !errors.Is(s.Err, errFirstSweep) {
		t.Errorf("before the end: complete %v, %d complete sweeps, %v", s.Complete, s.CompleteSweeps, s.Err)
	}
	if v, err := r.Lookup(t.Context(), inventory.LastPart(arn)); err != nil || v.Task.ARN != arn || v.Definition == nil {
		t.Errorf("Lookup = %+v, %v", v, err)
	}
	close(b.let)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := r.Snapshot(); !s.Complete || s.Sweeps != 1 {
		t.Errorf("after the end: complete %v, %d sweeps", s.Complete, s.Sweeps)
	}
}

func TestSweepReadsEverything(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.aws.AddCluster("private", nil)
	w.aws.AddService(c, "echo-service", w.def)
	task := w.aws.RunTask(c, "echo-service", w.def)
	s := w.mustSweep()
	if len(s.Clusters) != 1 || s.Clusters[c] == nil {
		t.Fatalf("clusters = %v, want only the opted-in one", s.Clusters)
	}
	v, ok := s.FindTask(inventory.LastPart(task))
	if !ok || v.Service == nil || v.Service.Name != "echo-service" || v.Definition == nil || v.Definition.Family != "echo" {
		t.Fatalf("FindTask = %+v, %v", v, ok)
	}
	if s.CompleteSweeps != 1 || s.Sweeps != 1 || s.SweptAt.IsZero() || s.Version == 0 {
		t.Errorf("counters = %d %v %d", s.CompleteSweeps, s.SweptAt, s.Version)
	}
	if again := w.mustSweep(); again.Version != s.Version {
		t.Errorf("Version = %d after a sweep without news, want %d", again.Version, s.Version)
	}
}

// Trap 1: ListServices gives 10 by default, DescribeServices takes 10, ListTasks and DescribeTasks 100.
func TestTrap1PagesAndBatches(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("big", optedIn)
	for i := range 137 {
		w.aws.AddService(c, fmt.Sprintf("svc-%03d", i), w.def)
	}
	for i := range 253 {
		w.aws.RunTask(c, fmt.Sprintf("svc-%03d", i%137), w.def)
	}
	s := w.mustSweep()
	if services, tasks := s.Counts(); services != 137 || tasks != 253 {
		t.Fatalf("Counts() = %d, %d, want 137, 253", services, tasks)
	}
	for op, want := range map[string]int{"ListServices": 2, "DescribeServices": 14, "DescribeTasks": 3, "ListTasks": 3 + 137, "DescribeTaskDefinition": 1} {
		if got := w.aws.CallCount(op); got != want {
			t.Errorf("%s was called %d times, want %d", op, got, want)
		}
	}
	// Membership and definitions are read once only.
	w.mustSweep()
	if got := w.aws.CallCount("ListTasks"); got != 3+137+3 {
		t.Errorf("ListTasks was called %d times after two sweeps, want 143", got)
	}
}

// Trap 2: a throttled, denied, failing, partial or empty reading takes nothing away.
func TestTrap2BadSweepsTakeNothingAway(t *testing.T) {
	tests := []struct {
		name     string
		break_   func(w *world, cluster, task string)
		complete bool
	}{
		{"list clusters throttled", func(w *world, _, _ string) { w.aws.Break("ListClusters", "", awsfake.ErrThrottled) }, false},
		{"list clusters denied", func(w *world, _, _ string) { w.aws.Break("ListClusters", "", awsfake.ErrDenied) }, false},
		{"describe clusters fails", func(w *world, _, _ string) { w.aws.Break("DescribeClusters", "", awsfake.ErrServer) }, false},
		{"describe clusters silent about one", func(w *world, c, _ string) { w.aws.Silence(c) }, false},
		{"list tasks throttled", func(w *world, _, _ string) { w.aws.Break("ListTasks", "", awsfake.ErrThrottled) }, false},
		{"list tasks denied in the cluster", func(w *world, _, _ string) { w.aws.Break("ListTasks", "ecs-demo-1", awsfake.ErrDenied) }, false},
		{"describe tasks throttled", func(w *world, _, _ string) { w.aws.Break("DescribeTasks", "", awsfake.ErrThrottled) }, false},
		{"describe tasks silent about one", func(w *world, _, task string) { w.aws.Silence(task) }, false},
		{"list services fails", func(w *world, _, _ string) { w.aws.Break("ListServices", "", awsfake.ErrServer) }, false},
		{"describe services denied", func(w *world, _, _ string) { w.aws.Break("DescribeServices", "", awsfake.ErrDenied) }, false},
		{"clusters list empty", func(w *world, _, _ string) { w.aws.EmptyList("ListClusters") }, true},
		{"tasks list empty", func(w *world, _, _ string) { w.aws.EmptyList("ListTasks") }, true},
		{"services list empty", func(w *world, _, _ string) { w.aws.EmptyList("ListServices") }, true},
		{"one task hidden from lists", func(w *world, _, task string) { w.aws.Hide(task) }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			c := w.aws.AddCluster("ecs-demo-1", optedIn)
			w.aws.AddService(c, "echo-service", w.def)
			task := w.aws.RunTask(c, "echo-service", w.def)
			first := w.mustSweep()
			tt.break_(w, c, task)
			for range 4 {
				s := w.sweep()
				if s.Complete != tt.complete {
					t.Fatalf("Complete = %v (%v), want %v", s.Complete, s.Err, tt.complete)
				}
				services, tasks := s.Counts()
				if services != 1 || tasks != 1 || len(s.Clusters) != 1 || len(s.Gone) != 0 {
					t.Fatalf("after a bad sweep: %d clusters, %d services, %d tasks, gone %v", len(s.Clusters), services, tasks, s.Gone)
				}
				if !tt.complete && s.CompleteSweeps != first.CompleteSweeps {
					t.Fatalf("CompleteSweeps = %d, want %d", s.CompleteSweeps, first.CompleteSweeps)
				}
			}
			w.aws.Mend()
			w.mustSweep()
		})
	}
}

// Trap 3: an older version after a newer one is dropped.
func TestTrap3OlderVersionIsDropped(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.aws.AddService(c, "echo-service", w.def)
	task := w.aws.RunTask(c, "echo-service", w.def)
	w.mustSweep()
	w.aws.StopTask(task)
	if got := taskIn(w.mustSweep(), task); got == nil || got.DesiredStatus != inventory.TaskStopped {
		t.Fatalf("task = %+v, want desired STOPPED", got)
	}
	newest := *taskIn(w.refl.Snapshot(), task)
	w.aws.FreezeAs(task, func(x *inventory.Task) {
		x.Version, x.LastStatus, x.DesiredStatus = newest.Version-1, inventory.TaskRunning, inventory.TaskRunning
	})
	for range 3 {
		if got := taskIn(w.mustSweep(), task); got == nil || got.Version != newest.Version || !got.Stopping() {
			t.Fatalf("an older reading replaced a newer one: %+v", got)
		}
	}
}

// Trap 3: attachments are called ElasticNetworkInterface by the API and eni in events.
func TestTrap3BothNamesOfAnInterface(t *testing.T) {
	for _, typ := range []string{"ElasticNetworkInterface", "eni"} {
		task := &Task{Attachments: []inventory.Attachment{{Type: typ, Status: "ATTACHED", Details: map[string]string{"privateIPv4Address": "10.0.0.9"}}}}
		if got := task.Addresses(); len(got) != 1 || got[0].String() != "10.0.0.9" {
			t.Errorf("Addresses() with type %s = %v", typ, got)
		}
		task.Attachments[0].Status = "DETACHING"
		if !task.InterfaceLeaving() {
			t.Errorf("InterfaceLeaving() with type %s = false", typ)
		}
	}
}

// Trap 4: a task leaves ListTasks when it should stop, though it still runs; it must not vanish without a reason.
func TestTrap4StoppingTaskIsFollowedToItsEnd(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.aws.AddService(c, "echo-service", w.def)
	task := w.aws.RunTask(c, "echo-service", w.def)
	w.aws.Edit(task, func(x *inventory.Task) { x.Tags = inventory.Tags{"ecs.solo.io/service-account": "echo"} })
	w.mustSweep()
	w.aws.StopTask(task)
	s := w.mustSweep()
	got := taskIn(s, task)
	if got == nil || !got.Stopping() || got.LastStatus != inventory.TaskRunning {
		t.Fatalf("task = %+v, want it still there and stopping", got)
	}
	if got.Tags["ecs.solo.io/service-account"] != "echo" {
		t.Errorf("tags = %v: StopTask takes the tags, but not who the task was", got.Tags)
	}
	w.aws.EndTask(task)
	s = w.mustSweep()
	if taskIn(s, task) != nil || s.Gone[task] != inventory.Terminal {
		t.Errorf("after the end: task %v, gone %v, want terminal", taskIn(s, task), s.Gone[task])
	}
}

func TestTaskMissing(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	task := w.aws.RunTask(c, "", w.def)
	w.mustSweep()
	w.aws.ForgetTask(task)
	if s := w.mustSweep(); taskIn(s, task) != nil || s.Gone[task] != inventory.Missing {
		t.Errorf("gone = %v, want missing", s.Gone[task])
	}
}

// Trap 6: an INACTIVE service counts as none, and its name may come back; so may a cluster's.
func TestTrap6InactiveNamesComeBack(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	svc := w.aws.AddService(c, "echo-service", w.def)
	w.mustSweep()
	w.aws.EditService(c, "echo-service", func(s *inventory.Service) { s.Status = inventory.StatusInactive })
	s := w.mustSweep()
	if services, _ := s.Counts(); services != 0 || s.Gone[svc] != inventory.Terminal {
		t.Fatalf("services = %d, gone %v", services, s.Gone[svc])
	}
	def2 := w.aws.AddDefinition(inventory.TaskDefinition{Family: "echo", Revision: 2})
	w.aws.AddService(c, "echo-service", def2)
	s = w.mustSweep()
	if got := s.Clusters[c].Services["echo-service"]; got == nil || got.TaskDefinition != def2 {
		t.Fatalf("service = %+v, want the new one", got)
	}
	if why, ok := s.Gone[svc]; ok {
		t.Errorf("gone = %v for a service that is back", why)
	}
	w.aws.SetCluster(c, inventory.StatusInactive, optedIn)
	s = w.mustSweep()
	if len(s.Clusters) != 0 || s.Gone[svc] != inventory.ClusterGone {
		t.Fatalf("clusters = %v, gone %v", s.Clusters, s.Gone[svc])
	}
	w.aws.SetCluster(c, inventory.StatusActive, optedIn)
	if s = w.mustSweep(); len(s.Clusters) != 1 || len(s.Gone) != 0 {
		t.Errorf("clusters = %d, gone = %v after the cluster came back", len(s.Clusters), s.Gone)
	}
}

// Trap 7: an override of the task role wins over the definition's.
func TestTrap7TaskRoleOverride(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	def := w.aws.AddDefinition(inventory.TaskDefinition{Family: "roles", Revision: 1, TaskRoleARN: "arn:aws:iam::123456789012:role/base"})
	plain, other := w.aws.RunTask(c, "", def), w.aws.RunTask(c, "", def)
	w.aws.Edit(other, func(x *inventory.Task) { x.TaskRoleOverride = "arn:aws:iam::123456789012:role/other" })
	s := w.mustSweep()
	for arn, want := range map[string]string{plain: "arn:aws:iam::123456789012:role/base", other: "arn:aws:iam::123456789012:role/other"} {
		if v, _ := s.FindTask(inventory.LastPart(arn)); v.RoleARN() != want {
			t.Errorf("RoleARN() = %q, want %q", v.RoleARN(), want)
		}
	}
}

func TestOptOutNeedsTwoSweeps(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	task := w.aws.RunTask(c, "", w.def)
	w.mustSweep()
	w.aws.SetCluster(c, inventory.StatusActive, nil)
	if s := w.mustSweep(); taskIn(s, task) == nil {
		t.Fatal("the cluster went after one sweep without its tag")
	}
	if s := w.mustSweep(); len(s.Clusters) != 0 || s.Gone[task] != inventory.OptedOut {
		t.Errorf("clusters = %v, gone = %v, want opted out", s.Clusters, s.Gone[task])
	}
}

func TestVanishedClusterIsTolerated(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.aws.AddCluster("ecs-demo-1", optedIn), w.aws.AddCluster("ecs-demo-2", optedIn)
	t1, t2 := w.aws.RunTask(c1, "", w.def), w.aws.RunTask(c2, "", w.def)
	w.mustSweep()
	w.aws.RemoveCluster(c2)
	s, err := w.refl.Sweep(t.Context(), false) // between full sweeps: its lists say that it is unknown
	if s.Complete || !errors.Is(err, errClusterUnknown) || taskIn(s, t2) == nil {
		t.Fatalf("first sweep: complete %v, err %v, task kept %v", s.Complete, err, taskIn(s, t2) != nil)
	}
	s = w.mustSweep()
	if s.Clusters[c2] != nil || s.Gone[t2] != inventory.ClusterGone || taskIn(s, t1) == nil {
		t.Errorf("clusters %v, gone %v", s.Clusters, s.Gone)
	}
}

func TestSickClusterDelaysNobody(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.aws.AddCluster("good", optedIn), w.aws.AddCluster("sick", optedIn)
	w.aws.RunTask(c2, "", w.def)
	w.mustSweep()
	w.aws.Break("ListTasks", "sick", awsfake.ErrThrottled)
	before := w.aws.CallCount("ListTasks")
	late := w.aws.RunTask(c1, "", w.def)
	for range 5 { // the clock stands still: the sick one is asked once, then left alone
		w.refl.Sweep(t.Context(), false)
	}
	s := w.refl.Snapshot()
	if s.Complete || s.Clusters[c2].Complete || !s.Clusters[c1].Complete || taskIn(s, late) == nil {
		t.Errorf("complete %v, sick %v, good %v, new task seen %v", s.Complete, s.Clusters[c2].Complete, s.Clusters[c1].Complete, taskIn(s, late) != nil)
	}
	if got := w.aws.CallCount("ListTasks") - before; got != 5+1 {
		t.Errorf("ListTasks was called %d times in 5 sweeps, want 6", got)
	}
	w.now = w.now.Add(backoffFirst)
	w.aws.Mend()
	if s, err := w.refl.Sweep(t.Context(), false); !s.Complete {
		t.Errorf("after the back-off: %v", err)
	}
}

func TestForgedGroupIsNoMember(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.aws.AddService(c, "payments", w.def)
	forged := w.aws.RunTask(c, "", w.def)
	w.aws.Edit(forged, func(x *inventory.Task) { x.Group = "service:payments" })
	v, _ := w.mustSweep().FindTask(inventory.LastPart(forged))
	if v.Service != nil {
		t.Errorf("a task that merely says so is a member of %s", v.Service.Name)
	}
}

func TestExpectFindsEvidenceAfterRestart(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	running, ended, gone := w.aws.RunTask(c, "", w.def), w.aws.RunTask(c, "", w.def), w.aws.RunTask(c, "", w.def)
	w.aws.EndTask(ended)
	w.aws.ForgetTask(gone)
	other := "arn:aws:ecs:us-east-2:123456789012:task/no-such-cluster/00000000000000000000000000000001"
	foreign := "arn:aws:ecs:us-east-2:999999999999:task/x/00000000000000000000000000000001"
	w.refl.Expect(running, ended, gone, other, foreign, "rubbish")
	s := w.mustSweep()
	want := map[string]inventory.Evidence{ended: inventory.Terminal, gone: inventory.Missing, other: inventory.ClusterGone}
	if len(s.Gone) != len(want) {
		t.Errorf("gone = %v, want %v", s.Gone, want)
	}
	for arn, why := range want {
		if s.Gone[arn] != why {
			t.Errorf("gone[%s] = %v, want %v", arn, s.Gone[arn], why)
		}
	}
}

func TestDefinitionTagsAreReadAgain(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.aws.RunTask(c, "", w.def)
	w.mustSweep()
	w.aws.AddDefinition(inventory.TaskDefinition{ARN: w.def, Family: "echo", Revision: 1, Tags: inventory.Tags{"ecs.solo.io/service-account": "late"}})
	if s := w.mustSweep(); s.Definitions[w.def].Tags["ecs.solo.io/service-account"] != "late" {
		t.Errorf("tags = %v, want those added later", s.Definitions[w.def].Tags)
	}
}

func TestFailedDefinitionMarksTheCluster(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.aws.RunTask(c, "", w.def)
	w.aws.Break("DescribeTaskDefinition", "", awsfake.ErrThrottled)
	if s := w.sweep(); s.Complete || s.Clusters[c].Complete {
		t.Error("a sweep without the task's definition counts as complete")
	}
	w.aws.Mend()
	w.mustSweep()
}

func TestCancelledSweepPublishesNothing(t *testing.T) {
	w := newWorld(t)
	w.aws.AddCluster("ecs-demo-1", optedIn)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.refl.Sweep(ctx, true); !errors.Is(err, context.Canceled) {
		t.Fatalf("Sweep = %v, want canceled", err)
	}
	if s := w.refl.Snapshot(); s.Sweeps != 0 {
		t.Errorf("Sweeps = %d, want 0", s.Sweeps)
	}
}

package ecs

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Trap 10: the proxy asks for its identity while the task is still PENDING and no sweep has seen it.
func TestTrap10LookupBeforeDiscovery(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.aws.AddCluster("ecs-demo-1", optedIn), w.aws.AddCluster("ecs-demo-2", optedIn)
	w.aws.AddService(c1, "echo-service", w.def)
	w.mustSweep()
	w.aws.AddService(c2, "echo-service", w.def) // not even the service is known
	def2 := w.aws.AddDefinition(inventory.TaskDefinition{Family: "echo", Revision: 2, TaskRoleARN: "arn:aws:iam::123456789012:role/x"})
	task := w.aws.RunTask(c2, "echo-service", def2)
	w.aws.Edit(task, func(x *inventory.Task) { x.LastStatus = inventory.TaskPending })
	v, err := w.refl.Lookup(t.Context(), inventory.LastPart(task))
	if err != nil {
		t.Fatal(err)
	}
	if v.Cluster.Name != "ecs-demo-2" || v.Service == nil || v.Service.Name != "echo-service" || v.RoleARN() != "arn:aws:iam::123456789012:role/x" || v.Task.LastStatus != inventory.TaskPending {
		t.Errorf("Lookup = %+v", v)
	}
}

func TestLookupOfUnknownTasks(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	private := w.aws.AddCluster("private", nil)
	hidden := w.aws.RunTask(private, "", w.def)
	if _, err := w.refl.Lookup(t.Context(), inventory.LastPart(hidden)); !errors.Is(err, ErrNotReady) {
		t.Errorf("Lookup before a sweep = %v, want ErrNotReady", err)
	}
	w.mustSweep()
	for _, id := range []string{"", "alice", "../x", "0123456789ABCDEF0123456789ABCDEF", inventory.LastPart(hidden)} {
		if _, err := w.refl.Lookup(t.Context(), id); !errors.Is(err, ErrTaskNotFound) {
			t.Errorf("Lookup(%q) = %v, want ErrTaskNotFound", id, err)
		}
	}
	before := w.aws.CallCount("DescribeTasks")
	for range 50 {
		_, _ = w.refl.Lookup(t.Context(), inventory.LastPart(hidden))
	}
	if got := w.aws.CallCount("DescribeTasks"); got != before {
		t.Errorf("an id that was just not found was asked for %d times again", got-before)
	}
	task := w.aws.RunTask(c, "", w.def)
	if _, err := w.refl.Lookup(t.Context(), inventory.LastPart(task)); err != nil {
		t.Errorf("Lookup of a new task = %v", err)
	}
}

func TestLookupIsLimited(t *testing.T) {
	w := newWorld(t)
	w.aws.AddCluster("ecs-demo-1", optedIn)
	w.mustSweep()
	id := []byte("00000000000000000000000000000000")
	limited := false
	for i := range 200 {
		id[0], id[1] = "0123456789abcdef"[i/16], "0123456789abcdef"[i%16]
		_, err := w.refl.Lookup(t.Context(), string(id))
		limited = limited || errors.Is(err, ErrLookupLimited)
	}
	if !limited {
		t.Error("200 look-ups of unknown tasks in a row were not limited")
	}
}

func TestLookupErrorIsNotAbsence(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	w.mustSweep()
	task := w.aws.RunTask(c, "", w.def)
	w.aws.FailNext("DescribeTasks", awsfake.ErrThrottled)
	if _, err := w.refl.Lookup(t.Context(), inventory.LastPart(task)); err == nil || errors.Is(err, ErrTaskNotFound) {
		t.Errorf("Lookup while ecs throttles = %v, want another error", err)
	}
	if _, err := w.refl.Lookup(t.Context(), inventory.LastPart(task)); err != nil {
		t.Errorf("Lookup after that = %v", err)
	}
	if v, err := w.refl.Lookup(t.Context(), inventory.LastPart(task)); err != nil || v.Task.Version == 0 {
		t.Errorf("Lookup = %+v, %v", v, err)
	}
}

// The last complete sweep goes on serving look-ups while ECS is down.
func TestLookupWhileECSIsDown(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	task := w.aws.RunTask(c, "", w.def)
	w.mustSweep()
	for _, op := range []string{"ListClusters", "DescribeClusters", "ListTasks", "DescribeTasks", "DescribeTaskDefinition"} {
		w.aws.Break(op, "", awsfake.ErrServer)
	}
	w.now = w.now.Add(time.Hour)
	w.sweep()
	if _, err := w.refl.Lookup(t.Context(), inventory.LastPart(task)); err != nil {
		t.Errorf("Lookup = %v", err)
	}
}

// TestLookupAgeIsBounded: an outage of ECS is survived with what is known, until that is too old to be believed.
func TestLookupAgeIsBounded(t *testing.T) {
	w := newWorld(t)
	c := w.aws.AddCluster("ecs-demo-1", optedIn)
	id := inventory.LastPart(w.aws.RunTask(c, "", w.def))
	w.mustSweep()
	calls := w.aws.CallCount("DescribeTasks")
	for _, op := range []string{"ListClusters", "ListTasks", "ListServices", "DescribeTasks", "DescribeServices"} {
		w.aws.Break(op, "", awsfake.ErrThrottled)
	}
	w.now = w.now.Add(24 * time.Hour)
	w.sweep() // fails, and makes nothing younger
	w.now = w.now.Add(-10 * time.Minute)
	if _, err := w.refl.Lookup(t.Context(), id); err != nil {
		t.Errorf("Lookup 24 h into an outage = %v", err)
	}
	if got := w.aws.CallCount("DescribeTasks"); got != calls {
		t.Errorf("ECS was asked %d times for what is known", got-calls)
	}
	w.now = w.now.Add(time.Second)
	if _, err := w.refl.Lookup(t.Context(), id); err == nil || errors.Is(err, ErrTaskNotFound) || !strings.Contains(err.Error(), "older than 24h") {
		t.Errorf("Lookup after more than 24 h = %v, want an error that says how old", err)
	}
	w.aws.Mend()
	if _, err := w.refl.Lookup(t.Context(), id); err != nil {
		t.Errorf("Lookup when ECS is back, before a sweep = %v", err)
	}
}

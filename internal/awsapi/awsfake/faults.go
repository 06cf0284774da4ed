package awsfake

import (
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// FailNext makes the next calls of an operation fail with the given errors, one each; a nil lets a call pass.
func (f *ECS) FailNext(op string, errs ...error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[op] = append(f.faults[op], errs...)
}

// Break makes all calls of an operation fail until Mend; in one cluster only if its name is given.
func (f *ECS) Break(op, cluster string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cluster == "" {
		f.broken[op] = err
		return
	}
	f.brokenIn[op+" "+cluster] = err
}

// Mend ends all faults.
func (f *ECS) Mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.faults)
	clear(f.broken)
	clear(f.brokenIn)
	clear(f.hidden)
	clear(f.silent)
	clear(f.stale)
	clear(f.empty)
}

// Hide leaves ARNs out of lists, as an eventually consistent read may.
func (f *ECS) Hide(arns ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range arns {
		f.hidden[a] = true
	}
}

// Silence makes describes say nothing about ARNs: neither found nor missing.
func (f *ECS) Silence(arns ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range arns {
		f.silent[a] = true
	}
}

// EmptyList makes a list operation answer with nothing.
func (f *ECS) EmptyList(op string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.empty[op] = true
}

// FreezeAs makes DescribeTasks answer with a changed copy of the task as it is now, whatever happens to it later: a
// stale replica.
func (f *ECS) FreezeAs(taskARN string, change func(*inventory.Task)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.clusters {
		if t := c.tasks[taskARN]; t != nil {
			old := *t
			change(&old)
			f.stale[taskARN] = old
		}
	}
}

// Edit changes a task and raises its version.
func (f *ECS) Edit(taskARN string, change func(*inventory.Task)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.clusters {
		if t := c.tasks[taskARN]; t != nil {
			next := *t
			f.version++
			next.Version = f.version
			next.Containers = append([]inventory.Container(nil), t.Containers...)
			next.Attachments = append([]inventory.Attachment(nil), t.Attachments...)
			change(&next)
			c.tasks[taskARN] = &next
		}
	}
}

// StopTask does what ECS does first: it wants the task stopped and takes its tags away; it still runs.
func (f *ECS) StopTask(taskARN string) {
	f.Edit(taskARN, func(t *inventory.Task) {
		t.DesiredStatus, t.StopCode, t.StoppedReason, t.Tags = inventory.TaskStopped, "UserInitiated", "asked for by a test", nil
	})
}

// EndTask finishes a task; it stays describable.
func (f *ECS) EndTask(taskARN string) {
	f.Edit(taskARN, func(t *inventory.Task) {
		t.DesiredStatus, t.LastStatus, t.Tags = inventory.TaskStopped, inventory.TaskStopped, nil
	})
}

// ForgetTask removes a task; describing it answers MISSING, as an hour after its end.
func (f *ECS) ForgetTask(taskARN string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.clusters {
		delete(c.tasks, taskARN)
	}
}

// Task returns the truth about a task, whatever the fake's calls say.
func (f *ECS) Task(taskARN string) (inventory.Task, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.clusters {
		if t := c.tasks[taskARN]; t != nil {
			return *t, true
		}
	}
	return inventory.Task{}, false
}

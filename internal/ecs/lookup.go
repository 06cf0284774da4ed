package ecs

import (
	"context"
	"fmt"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Lookup returns the task with the given id, from the latest snapshot, else by asking ECS at once in each opted-in
// cluster: a task that has just started asks for its identity before a sweep can have seen it. Such questions are
// limited in rate, and an id that was not found is not asked for again for a short while.
//
// The snapshot answers as long as the last complete look at the task's cluster is not older than Config.LookupMaxAge.
// When ECS is down for longer, nothing is answered from memory: a task that is remembered as running may have ended.
func (r *Reflector) Lookup(ctx context.Context, id string) (inventory.TaskView, error) {
	if !inventory.IsTaskID(id) {
		return inventory.TaskView{}, fmt.Errorf("task id %q: %w", id, ErrTaskNotFound)
	}
	snap := r.Snapshot()
	old := ""
	if v, ok := snap.FindTask(id); ok && v.Definition != nil && (v.Service != nil || v.Task.ServiceName() == "") {
		age := r.cfg.Now().Sub(snap.Clusters[v.Cluster.ARN].ReadAt)
		if age <= r.cfg.LookupMaxAge {
			return v, nil
		}
		old = fmt.Sprintf(", and what is known of it is older than %v", r.cfg.LookupMaxAge)
	}
	if snap.Sweeps == 0 || snap.CompleteSweeps == 0 && len(snap.Clusters) == 0 {
		return inventory.TaskView{}, ErrNotReady
	}
	if r.recentlyAbsent(id) {
		return inventory.TaskView{}, fmt.Errorf("task %s: %w", id, ErrTaskNotFound)
	}
	for _, c := range snap.SortedClusters() {
		if !r.lookups.Allow() {
			return inventory.TaskView{}, ErrLookupLimited
		}
		found, _, err := r.cfg.Source.DescribeTasks(ctx, c.Cluster.ARN, []string{inventory.TaskARN(c.Cluster.ARN, id)})
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return inventory.TaskView{}, fmt.Errorf("look up task %s: %w%s", id, err, old)
		}
		if len(found) > 0 {
			r.Kick()
			return r.complete(ctx, snap, c, found[0])
		}
	}
	r.rememberAbsent(id)
	return inventory.TaskView{}, fmt.Errorf("task %s: %w", id, ErrTaskNotFound)
}

// complete adds the service and the definition of a task that the snapshot does not have.
func (r *Reflector) complete(ctx context.Context, snap *inventory.Snapshot, c *inventory.ClusterView, t *inventory.Task) (inventory.TaskView, error) {
	v := inventory.TaskView{Account: snap.Account, Region: snap.Region, Cluster: c.Cluster, Task: t, Definition: snap.Definitions[t.TaskDefinitionARN]}
	if v.Definition == nil {
		def, err := r.cfg.Source.DescribeTaskDefinition(ctx, t.TaskDefinitionARN)
		if err != nil {
			return inventory.TaskView{}, fmt.Errorf("look up task %s: %w", t.ID(), err)
		}
		v.Definition = def
	}
	name := t.ServiceName()
	if name == "" {
		return v, nil
	}
	svc := c.Services[name]
	if svc == nil {
		found, _, err := r.cfg.Source.DescribeServices(ctx, c.Cluster.ARN, []string{name})
		if err != nil {
			return inventory.TaskView{}, fmt.Errorf("look up service of task %s: %w", t.ID(), err)
		}
		if len(found) == 0 || found[0].Status == inventory.StatusInactive {
			return v, nil
		}
		svc = found[0]
	}
	if r.isMember(ctx, c, svc, t) {
		v.Service = svc
	}
	return v, nil
}

// isMember asks the service's own list whether the task is one of its tasks; a failure is a no.
func (r *Reflector) isMember(ctx context.Context, c *inventory.ClusterView, svc *inventory.Service, t *inventory.Task) bool {
	arns, err := r.cfg.Source.ListTasks(ctx, c.Cluster.ARN, svc.Name)
	if err != nil {
		return false
	}
	for _, arn := range arns {
		if arn == t.ARN {
			return true
		}
	}
	return false
}

func (r *Reflector) recentlyAbsent(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.negative[id]
	return ok && r.cfg.Now().Sub(at) < negativeTTL
}

func (r *Reflector) rememberAbsent(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	if len(r.negative) >= maxNegative {
		for k, at := range r.negative {
			if now.Sub(at) >= negativeTTL {
				delete(r.negative, k)
			}
		}
		if len(r.negative) >= maxNegative {
			return
		}
	}
	r.negative[id] = now
}

package ecs

import (
	"context"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Limits of hints.
const (
	maxHints    = 5000 // tasks waiting to be read again; with more of them everything is read instead
	hintRetries = 3    // reads of a task of which ECS does not show the version that an event told of
)

// hints are what is to be read again soon, by cluster ARN.
type hints map[string]*clusterHints

type clusterHints struct {
	services bool
	tasks    map[string]hinted // by ARN
}

type hinted struct {
	version int64
	tries   int
}

// Hint makes Run read again soon what an event is about, and nothing else: the one task, the tasks of the one container
// instance, or the services of the cluster. A task of an instance that drains (a spot interruption, for one) goes on
// serving until ECS wants that very task stopped: before that its replacement may not run yet. It never blocks. What is known already in that version, or a newer one, is not read again, so that events which come
// twice or out of order cost nothing. Hints about clusters that are not opted in are dropped.
func (r *Reflector) Hint(h Hint) {
	snap := r.Snapshot()
	c := snap.Clusters[h.Cluster]
	if c == nil {
		return
	}
	if t := c.Tasks[h.Task]; h.Task != "" && h.Version > 0 && (t != nil && t.Version >= h.Version || t == nil && snap.Gone[h.Task].Positive()) {
		return
	}
	about := []string{h.Task}
	if h.Instance != "" {
		about = nil
		for arn, t := range c.Tasks {
			if t.ContainerInstance == h.Instance && !t.Stopping() {
				about = append(about, arn)
			}
		}
		if len(about) == 0 {
			return
		}
	}
	r.mu.Lock()
	for _, task := range about {
		r.addHint(h.Cluster, task, hinted{version: h.Version})
	}
	r.mu.Unlock()
	select {
	case r.hinted <- struct{}{}:
	default:
	}
}

// addHint must be called with mu held.
func (r *Reflector) addHint(cluster, task string, h hinted) {
	c := r.hints[cluster]
	if c == nil {
		c = &clusterHints{tasks: map[string]hinted{}}
		r.hints[cluster] = c
	}
	if task == "" {
		c.services = true
		return
	}
	if _, ok := c.tasks[task]; !ok {
		if r.hintCount >= maxHints {
			r.Kick()
			return
		}
		r.hintCount++
	}
	c.tasks[task] = hinted{version: max(c.tasks[task].version, h.version), tries: h.tries}
}

// takeHints returns the hints and forgets them.
func (r *Reflector) takeHints() hints {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.hints
	r.hints, r.hintCount = hints{}, 0
	return h
}

// retryHints asks again for tasks of which ECS did not show yet what an event told: its reads may lag behind its events.
func (r *Reflector) retryHints(read hints, snap *inventory.Snapshot) {
	again := false
	r.mu.Lock()
	for cluster, c := range read {
		view := snap.Clusters[cluster]
		for arn, h := range c.tasks {
			if view == nil || snap.Gone[arn].Positive() || h.tries+1 >= hintRetries {
				continue
			}
			if t := view.Tasks[arn]; t == nil || t.Version < h.version {
				h.tries++
				r.addHint(cluster, arn, h)
				again = true
			}
		}
	}
	r.mu.Unlock()
	if again {
		select {
		case r.hinted <- struct{}{}:
		default:
		}
	}
}

// runKeyed reads what the hints are about. It is no look at the whole cluster, so it neither counts as one nor makes one
// incomplete; what fails is left to the next sweep.
func (c *clusterSweep) runKeyed(ctx context.Context, keys *clusterHints) *clusterResult {
	c.begin()
	ask := make([]string, 0, len(keys.tasks))
	for arn := range keys.tasks {
		ask = append(ask, arn)
	}
	slices.Sort(ask)
	if !keys.services { // else any task may belong to a service that is read now
		c.only = ask
	}
	var err error
	if len(ask) > 0 {
		var found []*inventory.Task
		var missing []string
		found, missing, err = c.cfg.Source.DescribeTasks(ctx, c.prev.Cluster.ARN, ask)
		for _, t := range found {
			c.takeTask(t)
		}
		for _, arn := range missing {
			if err == nil && c.tasks[arn] != nil {
				c.dropTask(arn, inventory.Missing)
			}
		}
	}
	if err == nil && (keys.services || c.strangers()) {
		err = c.readServices(ctx)
	}
	if err == nil {
		err = c.readMembers(ctx)
	}
	if err == nil {
		c.readHosts(ctx)
	}
	v := c.result()
	return &clusterResult{gone: c.gone, appeared: c.appeared, touched: c.touched, hosts: c.hosts, view: v, keyed: true, err: err}
}

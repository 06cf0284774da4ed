package admin

import (
	"maps"
	"slices"
	"sync"
)

// Readiness is a set of named tasks that must all be done before the proxy is ready.
type Readiness struct {
	mu      sync.Mutex
	pending map[string]struct{} // guarded by mu
	changed func(ready bool)    // guarded by mu
}

// NewReadiness returns a Readiness whose tasks are pending.
func NewReadiness(tasks ...string) *Readiness {
	r := &Readiness{pending: map[string]struct{}{}}
	for _, t := range tasks {
		r.pending[t] = struct{}{}
	}
	return r
}

// OnChange calls f whenever the proxy becomes ready or unready. f must not call r.
func (r *Readiness) OnChange(f func(ready bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changed = f
}

// Set says whether a task is done. Unlike in ztunnel a task can become pending again, for example when the CNI agent
// is lost.
func (r *Readiness) Set(task string, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.pending) == 0
	if done {
		delete(r.pending, task)
	} else {
		r.pending[task] = struct{}{}
	}
	if after := len(r.pending) == 0; after != before && r.changed != nil {
		r.changed(after)
	}
}

// Pending returns the tasks that are not done, sorted.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.pending))
}

package proxy

import (
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// Connection is a live connection, for config_dump.
type Connection struct {
	Inbound     bool
	Src         string
	OriginalDst string
	ActualDst   string
	Protocol    string // TCP, HBONE or DOUBLEHBONE
}

// entry is one live connection. It is registered before policies are first asked about it, so that no change of
// policy can fall between the question and the registration.
type entry struct {
	view Connection
	// ask is what policies are asked about; dst is the workload that they protect. Outbound connections have none:
	// policies are enforced at the destination.
	ask policy.Connection
	dst *mesh.Workload

	mu     sync.Mutex
	end    func()          // guarded by mu; ends the connection abruptly; nil until there is something to end
	cause  error           // guarded by mu; why it was ended from outside
	ruling policy.Decision // guarded by mu; the one that ended it, if one did
}

// registry holds the live connections of a proxy.
type registry struct {
	mu      sync.Mutex
	entries map[*entry]struct{} // guarded by mu
}

func (r *registry) add(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entries == nil {
		r.entries = map[*entry]struct{}{}
	}
	r.entries[e] = struct{}{}
}

func (r *registry) remove(e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, e)
}

func (r *registry) all() []*entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*entry, 0, len(r.entries))
	for e := range r.entries {
		out = append(out, e)
	}
	return out
}

// endAll ends every connection because of cause.
func (r *registry) endAll(cause error) {
	for _, e := range r.all() {
		e.stop(cause, policy.Decision{})
	}
}

// stop ends the connection because of cause; the first cause counts.
func (e *entry) stop(cause error, d policy.Decision) {
	e.mu.Lock()
	if e.cause == nil {
		e.cause, e.ruling = cause, d
	}
	end := e.end
	e.mu.Unlock()
	if end != nil {
		end()
	}
}

// onStop says how to end the connection from now on. If it was ended already, end is called at once.
func (e *entry) onStop(end func()) {
	e.mu.Lock()
	e.end = end
	stopped := e.cause != nil
	e.mu.Unlock()
	if stopped {
		end()
	}
}

// stopped returns why the connection was ended from outside, and by which decision, or nil.
func (e *entry) stopped() (policy.Decision, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ruling, e.cause
}

// Connections returns the live connections, sorted.
func (p *Proxy) Connections() []Connection {
	var out []Connection
	for _, e := range p.live.all() {
		out = append(out, e.view)
	}
	slices.SortFunc(out, func(a, b Connection) int {
		return strings.Compare(a.Src+" "+a.OriginalDst, b.Src+" "+b.OriginalDst)
	})
	return out
}

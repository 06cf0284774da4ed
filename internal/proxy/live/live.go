// Package live keeps the connections that are being proxied: it judges them by the policies of their destination when
// they come and whenever policies change, ends those that are not allowed any more, and reports each one's end.
package live

import (
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// View is what config_dump shows of a connection.
type View struct {
	Inbound     bool
	Src         string
	OriginalDst string
	ActualDst   string
	Protocol    string // TCP, HBONE or DOUBLEHBONE
}

// Conn is one live connection. It is registered before policies are first asked about it, so that no change of policy
// can fall between the question and the registration.
type Conn struct {
	View View
	// Ask is what policies are asked about; Dst is the workload that they protect. A connection without Dst is not
	// judged: policies are enforced at the destination.
	Ask policy.Connection
	Dst *mesh.Workload

	mu     sync.Mutex
	end    func()          // guarded by mu; ends the connection abruptly; nil until there is something to end
	cause  error           // guarded by mu; why it was ended from outside
	ruling policy.Decision // guarded by mu; the one that ended it, if one did
}

// Stop ends the connection because of cause, and of a decision if one was; the first cause counts.
func (c *Conn) Stop(cause error, d policy.Decision) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause, c.ruling = cause, d
	}
	end := c.end
	c.mu.Unlock()
	if end != nil {
		end()
	}
}

// OnStop says how to end the connection from now on. If it was ended already, end is called at once.
func (c *Conn) OnStop(end func()) {
	c.mu.Lock()
	c.end = end
	stopped := c.cause != nil
	c.mu.Unlock()
	if stopped {
		end()
	}
}

// Stopped returns why the connection was ended from outside, and by which decision, or nil.
func (c *Conn) Stopped() (policy.Decision, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ruling, c.cause
}

// Registry holds live connections. The zero value is empty.
type Registry struct {
	mu    sync.Mutex
	conns map[*Conn]struct{} // guarded by mu
}

// Add registers a connection and returns how to take it out again.
func (r *Registry) Add(c *Conn) (remove func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		r.conns = map[*Conn]struct{}{}
	}
	r.conns[c] = struct{}{}
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
	}
}

// EndAll ends every connection because of cause.
func (r *Registry) EndAll(cause error) {
	for _, c := range r.all() {
		c.Stop(cause, policy.Decision{})
	}
}

// Views returns the connections, sorted.
func (r *Registry) Views() []View {
	var out []View
	for _, c := range r.all() {
		out = append(out, c.View)
	}
	slices.SortFunc(out, func(a, b View) int {
		return strings.Compare(a.Src+" "+a.OriginalDst, b.Src+" "+b.OriginalDst)
	})
	return out
}

func (r *Registry) all() []*Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*Conn, 0, len(r.conns))
	for c := range r.conns {
		out = append(out, c)
	}
	return out
}

// Package failover takes a connection that is being made from an endpoint that cannot be reached to another one.
//
// An endpoint that is going away is known to its peers only some moments later: an ECS task that stops answers 503, then
// refuses, then is gone. As long as no byte of the application has been sent, trying another endpoint is safe. When none is
// left that has not failed, a deployment is ahead of what the mesh knows, so its next word is waited for a moment.
package failover

import (
	"context"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

const (
	// DefaultWait is how long a connection waits for an endpoint when all that are known have failed.
	DefaultWait = 3 * time.Second
	// maxAttempts bounds the endpoints that one connection tries.
	maxAttempts = 8
	// impatience is how long an endpoint may take to answer while there are others.
	impatience = 2 * time.Second
	// maxWaits bounds the connections that wait at once; more fail at once.
	maxWaits = 1024
)

// Endpoints finds endpoints for the connections of one proxy.
type Endpoints struct {
	store   *state.Store
	wait    time.Duration
	waiting chan struct{} // one token per connection that waits
	metrics *telemetry.Metrics
}

// New returns Endpoints that wait for at most wait; 0 means DefaultWait, less not at all.
func New(store *state.Store, wait time.Duration, metrics *telemetry.Metrics) *Endpoints {
	if wait == 0 {
		wait = DefaultWait
	}
	return &Endpoints{store: store, wait: wait, waiting: make(chan struct{}, maxWaits), metrics: metrics}
}

// Waiting returns how many connections wait for an endpoint now.
func (e *Endpoints) Waiting() int { return len(e.waiting) }

// Attempt is how one connection is made.
type Attempt[C any] struct {
	// Connect makes the connection. No byte of the application may have been sent when it returns an error.
	Connect func(ctx context.Context, out route.Outbound) (C, error)
	// Route routes it by what the mesh is now, without the endpoints that have failed.
	Route func(ctx context.Context, failed []*mesh.Workload) (route.Outbound, error)
	// Gone reports whether an error of Connect says that the endpoint cannot serve now, rather than that it will not. What
	// will not is an answer, and is never asked for again elsewhere.
	Gone func(err error, out route.Outbound) bool
}

// Connect connects to the endpoint that was chosen and, if that is gone, to others of the same service. Its error is that of
// the last one.
func Connect[C any](ctx context.Context, e *Endpoints, out route.Outbound, a Attempt[C]) (C, error) {
	s := search{route: a.Route}
	for attempt := 1; ; attempt++ {
		try, cancel := ctx, context.CancelFunc(func() {})
		if attempt < maxAttempts && out.Alternatives > 0 {
			try, cancel = context.WithTimeout(ctx, impatience)
		}
		c, err := a.Connect(try, out)
		cancel()
		if err == nil || attempt == maxAttempts || ctx.Err() != nil || !replaceable(out) || !a.Gone(err, out) {
			return c, err
		}
		s.failed = append(s.failed, out.Upstream)
		next, ok := e.another(ctx, &s)
		if !ok {
			return c, err
		}
		out = next
	}
}

// search is one connection's search for an endpoint that serves.
type search struct {
	route  func(context.Context, []*mesh.Workload) (route.Outbound, error)
	failed []*mesh.Workload
	until  time.Time // when waiting ends; zero before it has begun
}

func (s *search) find(ctx context.Context) (route.Outbound, bool) {
	out, err := s.route(ctx, s.failed)
	return out, err == nil && replaceable(out)
}

// replaceable reports whether what out leads to is one of many: an endpoint of a service, or a way to one.
func replaceable(out route.Outbound) bool {
	return out.Upstream != nil && out.Service != nil && out.Via != route.Passthrough
}

// another returns a route to an endpoint that has not failed: at once if the mesh knows one, else as soon as it does.
func (e *Endpoints) another(ctx context.Context, s *search) (route.Outbound, bool) {
	if out, ok := s.find(ctx); ok || e.wait < 0 {
		return out, ok
	}
	select {
	case e.waiting <- struct{}{}:
		defer func() { <-e.waiting }()
	default:
		e.metrics.LimitReached("endpoint-waits")
		return route.Outbound{}, false
	}
	if s.until.IsZero() {
		s.until = time.Now().Add(e.wait)
	}
	t := time.NewTimer(time.Until(s.until))
	defer t.Stop()
	for {
		changed := e.store.Changed()
		if out, ok := s.find(ctx); ok {
			e.metrics.EndpointWait(true)
			return out, true
		}
		select {
		case <-changed:
			continue
		case <-t.C:
		case <-ctx.Done():
		}
		e.metrics.EndpointWait(false)
		return route.Outbound{}, false
	}
}

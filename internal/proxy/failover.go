package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

const (
	// maxAttempts bounds the endpoints that one connection tries.
	maxAttempts = 8
	// impatience is how long an endpoint may take to answer while there are others.
	impatience = 2 * time.Second
	// maxEndpointWaits bounds the connections of a proxy that wait for an endpoint at once; more fail at once.
	maxEndpointWaits = 1024
)

// connectAny connects to the endpoint that was chosen and, if that cannot be reached, to others of the same service.
//
// An endpoint that is going away is known to its peers only some moments later: an ECS task that stops answers 503, then
// refuses, then is gone. No byte of the application has been sent before the answer to CONNECT, so trying another endpoint
// is safe. When none is left that has not failed, the deployment is ahead of what the mesh knows, so its next word is
// waited for a moment. A refusal by policy is an answer and is never tried again elsewhere.
func (p *Proxy) connectAny(ctx context.Context, rec *telemetry.Conn, r request, local *mesh.Workload, out route.Outbound) (relay.Conn, mesh.Identity, error) {
	s := search{dst: r.dsts[0]}
	for attempt := 1; ; attempt++ {
		try, cancel := ctx, context.CancelFunc(func() {})
		if attempt < maxAttempts && out.Alternatives > 0 {
			try, cancel = context.WithTimeout(ctx, impatience)
		}
		up, peer, err := p.connect(try, rec, r, local, out)
		cancel()
		if err == nil || attempt == maxAttempts || ctx.Err() != nil || !replaceable(out) || !endpointGone(err, out.Via) {
			return up, peer, err
		}
		s.failed = append(s.failed, out.Upstream)
		next, ok := p.another(ctx, &s)
		if !ok {
			return nil, peer, err
		}
		out = next
		describeOutbound(rec, local, out)
	}
}

// search is one connection's search for an endpoint that serves.
type search struct {
	dst    netip.AddrPort
	failed []*mesh.Workload
	until  time.Time // when waiting ends; zero before it has begun
}

// replaceable reports whether what out leads to is one of many: an endpoint of a service, or a way to one.
func replaceable(out route.Outbound) bool {
	return out.Upstream != nil && out.Service != nil && out.Via != route.Passthrough
}

// another returns a route to an endpoint that has not failed: at once if the mesh knows one, else as soon as it does.
func (p *Proxy) another(ctx context.Context, s *search) (route.Outbound, bool) {
	find := func() (route.Outbound, bool) {
		_, out, err := p.routeOutbound(ctx, s.dst, s.failed)
		return out, err == nil && replaceable(out)
	}
	if out, ok := find(); ok || p.cfg.EndpointWait < 0 {
		return out, ok
	}
	select {
	case p.waits <- struct{}{}:
		defer func() { <-p.waits }()
	default:
		p.cfg.Metrics.LimitReached("endpoint-waits")
		return route.Outbound{}, false
	}
	if s.until.IsZero() {
		s.until = time.Now().Add(p.cfg.EndpointWait)
	}
	t := time.NewTimer(time.Until(s.until))
	defer t.Stop()
	for {
		changed := p.cfg.Store.Changed()
		if out, ok := find(); ok {
			p.cfg.Metrics.EndpointWait(true)
			return out, true
		}
		select {
		case <-changed:
			continue
		case <-t.C:
		case <-ctx.Done():
		}
		p.cfg.Metrics.EndpointWait(false)
		return route.Outbound{}, false
	}
}

// endpointGone reports whether err says that an endpoint cannot serve now, rather than that it will not. What is wrong
// with a peer's identity is not told apart from an attack and ends the connection. What a waypoint or a gateway answers
// is about what lies behind it, and another one would say the same.
func endpointGone(err error, via route.Via) bool {
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return status.Status == http.StatusServiceUnavailable && via == route.Direct
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return false // it is we who cannot
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	if goAway, ok := errors.AsType[*hbone.GoAwayError](err); ok {
		return goAway.Remote
	}
	if stream, ok := errors.AsType[*hbone.StreamError](err); ok {
		return stream.Remote
	}
	return errors.Is(err, hbone.ErrConnectionLost) || errors.Is(err, hbone.ErrConnectTimeout) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

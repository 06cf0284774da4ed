package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

const (
	// maxAttempts bounds the endpoints that one connection tries.
	maxAttempts = 3
	// impatience is how long an endpoint may take to answer while there are others.
	impatience = 2 * time.Second
)

// connectAny connects to the endpoint that was chosen and, if that cannot be reached, to others of the same service.
//
// An endpoint that is going away is known to its peers only some moments later: an ECS task that stops answers 503, then
// refuses, then is gone. No byte of the application has been sent before the answer to CONNECT, so trying another endpoint
// is safe. A refusal by policy is an answer and is never tried again elsewhere.
func (p *Proxy) connectAny(ctx context.Context, rec *telemetry.Conn, r request, local *mesh.Workload, out route.Outbound) (relay.Conn, mesh.Identity, error) {
	var failed []string
	for attempt := 1; ; attempt++ {
		try, cancel := ctx, context.CancelFunc(func() {})
		more := attempt < maxAttempts && out.Alternatives > 0
		if more {
			try, cancel = context.WithTimeout(ctx, impatience)
		}
		up, peer, err := p.connect(try, rec, r, local, out)
		cancel()
		if err == nil || !more || ctx.Err() != nil || !endpointGone(err) {
			return up, peer, err
		}
		failed = append(failed, out.Upstream.UID)
		_, next, routeErr := p.routeOutbound(ctx, r.dsts[0], failed)
		if routeErr != nil || next.Upstream == nil {
			return nil, peer, err
		}
		out = next
		describeOutbound(rec, local, out)
	}
}

// endpointGone reports whether err says that an endpoint cannot serve now, rather than that it will not. What is wrong
// with a peer's identity is not told apart from an attack and ends the connection.
func endpointGone(err error) bool {
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return status.Status == http.StatusServiceUnavailable
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
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF)
}

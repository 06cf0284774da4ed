package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"syscall"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/failover"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// connectAny connects to the endpoint that was chosen and, if that is gone, to others of the same service. No byte of the
// application is sent before the answer to CONNECT.
func (p *Proxy) connectAny(ctx context.Context, rec *telemetry.Conn, r request, local *mesh.Workload, out route.Outbound) (up relay.Conn, peer mesh.Identity, err error) {
	up, err = failover.Connect(ctx, p.endpoints, out, failover.Attempt[relay.Conn]{
		Connect: func(ctx context.Context, out route.Outbound) (c relay.Conn, err error) {
			describeOutbound(rec, local, out)
			c, peer, err = p.connect(ctx, rec, r, local, out)
			return c, err
		},
		Route: func(ctx context.Context, failed []*mesh.Workload) (route.Outbound, error) {
			_, out, err := p.routeOutbound(ctx, r.dsts[0], failed)
			return out, err
		},
		Gone: endpointGone,
	})
	return up, peer, err
}

// endpointGone reports whether err says that an endpoint cannot serve now, rather than that it will not. What is wrong
// with a peer's identity is not told apart from an attack and ends the connection. What a waypoint or a gateway answers
// is about what lies behind it, and another one would say the same.
func endpointGone(err error, out route.Outbound) bool {
	if status, ok := errors.AsType[*hbone.StatusError](err); ok {
		return status.Status == http.StatusServiceUnavailable && out.Via == route.Direct
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

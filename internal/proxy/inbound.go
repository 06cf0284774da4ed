package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/internal/proxy/live"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// serveHBONE serves one connection of a peer proxy; its tunnels come to serveTunnel.
func (p *Proxy) serveHBONE(ctx context.Context, c *net.TCPConn) {
	src, dst := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	if err := p.server.ServeConn(ctx, c); err != nil && ctx.Err() == nil {
		p.early(&telemetry.Conn{Reporter: telemetry.Destination, SrcAddr: src, DstAddr: dst}, err)
	}
}

var errTooManyTunnels = errors.New("too many inbound tunnels")

// serveTunnel serves one CONNECT request.
func (p *Proxy) serveTunnel(ctx context.Context, s *hbone.ServerStream) {
	rec := &telemetry.Conn{
		Reporter: telemetry.Destination, MutualTLS: true, HBONEAddr: s.Authority(), Start: time.Now(),
		SrcAddr: addrPort(s.RemoteAddr()), DstAddr: addrPort(s.LocalAddr()), Trace: live.TraceOf(s.Header()),
	}
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	refuse := func(status int, err error) {
		p.early(rec, err)
		_ = s.Reject(status)
	}
	select {
	case p.tunnel <- struct{}{}:
		defer func() { <-p.tunnel }()
	default:
		p.cfg.Metrics.LimitReached("tunnels")
		refuse(http.StatusServiceUnavailable, errTooManyTunnels)
		return
	}
	local, err := p.Local(setup)
	cancel() // a context costs about 1 KiB, for hours
	if err != nil {
		refuse(http.StatusServiceUnavailable, err)
		return
	}
	snap := p.cfg.Store.Snapshot()
	in, err := route.ResolveInbound(snap, route.InboundQuery{
		Network: p.cfg.Network, Local: local, Dialled: rec.DstAddr, Authority: s.Authority(), Illegal: illegalInbound,
		NoLoopback: p.cfg.NoLoopbackTunnel,
	})
	if err != nil {
		status := http.StatusServiceUnavailable
		if r, ok := errors.AsType[*route.Rejection](err); ok {
			status = r.Status
		}
		refuse(status, err)
		return
	}
	p.describeInbound(snap, rec, s, local, in)
	asked := ForwardedHost(s.Get(headerForwarded))
	c := &live.Conn{
		View: live.View{Inbound: true, Src: rec.SrcAddr.String(), OriginalDst: asked, ActualDst: in.Addr.String(), Protocol: "HBONE"},
		Ask:  policy.Connection{Source: s.Peer(), SourceAddr: rec.SrcAddr, DestinationAddr: in.Addr},
		Dst:  local,
	}
	p.inbound(ctx, rec, c, snap, inboundPeer{
		dial: func(ctx context.Context) (*net.TCPConn, error) { return p.dialApplication(ctx, in, rec) },
		accept: func() (relay.Conn, error) {
			return s.Accept(p.responseHeaders(local))
		},
		reject: func(status int) { _ = s.Reject(status) },
	})
}

func (p *Proxy) responseHeaders(local *mesh.Workload) []hbone.Header {
	if p.cfg.NoBaggage {
		return nil
	}
	return []hbone.Header{{Name: headerBaggage, Value: Baggage(local)}}
}

// inboundPeer is what differs between a tunnel and a plain connection.
type inboundPeer struct {
	dial   func(ctx context.Context) (*net.TCPConn, error)
	accept func() (relay.Conn, error)
	reject func(status int)
}

// inbound authorises, connects, copies and reports one connection to the local application.
func (p *Proxy) inbound(ctx context.Context, rec *telemetry.Conn, c *live.Conn, snap *state.Snapshot, peer inboundPeer) {
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	defer p.live.Add(c)()
	c.OnStop(cancel)

	report := live.Open(rec, p.cfg.Access, p.cfg.Metrics)
	fail := func(status int, err error) {
		peer.reject(status)
		report.Failed(err)
	}
	if err := p.judge.Decide(setup, c, snap, rec); err != nil {
		fail(http.StatusUnauthorized, err)
		return
	}
	app, err := peer.dial(setup)
	if err != nil {
		if ruling, cause := c.Stopped(); cause != nil {
			rec.Policy, rec.Rule, err = ruling.Policy, ruling.Rule, cause
		} else {
			err = fmt.Errorf("connection failed: %w", err)
		}
		fail(http.StatusServiceUnavailable, err)
		return
	}
	down, err := peer.accept()
	if err != nil {
		relay.Abort(app)
		fail(http.StatusServiceUnavailable, err)
		return
	}
	cancel()
	report.Transfer(c, &relay.Pipe{Down: down, Up: app})
}

// describeInbound says who is at both ends. The client is described by xDS if it is known by its address and has the
// identity that TLS proved; otherwise by its own words.
func (p *Proxy) describeInbound(snap *state.Snapshot, rec *telemetry.Conn, s *hbone.ServerStream, local *mesh.Workload, in route.Inbound) {
	rec.Destination = telemetry.PartyOf(local)
	rec.Destination.Identity = local.Identity()
	via := s.Get(headerNetwork)
	throughGateway := via != "" && !strings.EqualFold(via, p.cfg.Network)
	if !throughGateway {
		w := snap.WorkloadAt(mesh.NetworkAddress{Network: p.cfg.Network, Addr: rec.SrcAddr.Addr()})
		if w != nil && w.Identity() == s.Peer() {
			rec.Source = telemetry.PartyOf(w)
		}
	}
	if !rec.Source.Known() && !p.cfg.NoBaggage {
		rec.Source = ParseBaggage(headerValues(s.Header(), headerBaggage)...)
	}
	if rec.Source.Namespace == "" {
		rec.Source.Namespace = s.Peer().Namespace
	}
	rec.Source.Identity = s.Peer()
	setService(rec, snap, local, in.Service, ForwardedHost(s.Get(headerForwarded)))
}

// dialApplication reaches the local application, with a PROXY protocol header if it wants one.
func (p *Proxy) dialApplication(ctx context.Context, in route.Inbound, rec *telemetry.Conn) (*net.TCPConn, error) {
	r := DialRequest{Addr: in.Dial}
	if p.cfg.SpoofSource && !in.Dial.Addr().IsLoopback() && rec.SrcAddr.Addr() != in.Dial.Addr() {
		r.Source = rec.SrcAddr.Addr()
	}
	c, err := p.dialTCP(ctx, r)
	if errors.Is(err, syscall.ECONNREFUSED) && p.cfg.LoopbackFallback && !in.Dial.Addr().IsLoopback() {
		// Some applications listen on the loopback only, which is where a sidecar shares the network namespace.
		back := DialRequest{Addr: netip.AddrPortFrom(route.Loopback(in.Dial.Addr()), in.Dial.Port())}
		if bc, berr := p.dialTCP(ctx, back); berr == nil {
			c, err = bc, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if in.PROXY {
		if _, err := c.Write(proxyHeader(rec.SrcAddr, in.Target, rec.Source.Identity)); err != nil {
			relay.Abort(c)
			return nil, fmt.Errorf("write PROXY header: %w", err)
		}
	}
	return c, nil
}

// servePlain serves a captured inbound connection without a tunnel. Its client has no identity.
func (p *Proxy) servePlain(ctx context.Context, c *net.TCPConn) {
	rec := &telemetry.Conn{Reporter: telemetry.Destination, SrcAddr: addrPort(c.RemoteAddr()), Start: time.Now()}
	dst, err := p.cfg.OriginalDst(c)
	if err == nil && illegalInbound(dst.Port()) {
		err = ErrRecursive
	}
	rec.DstAddr = dst
	var local *mesh.Workload
	if err == nil {
		local, err = p.Local(ctx)
	}
	if err != nil {
		p.early(rec, err)
		relay.Abort(c)
		return
	}
	snap := p.cfg.Store.Snapshot()
	rec.Source = telemetry.PartyOf(snap.WorkloadAt(mesh.NetworkAddress{Network: p.cfg.Network, Addr: rec.SrcAddr.Addr()}))
	rec.Destination = telemetry.PartyOf(local)
	setService(rec, snap, local, nil, "")
	lc := &live.Conn{
		View: live.View{Inbound: true, Src: rec.SrcAddr.String(), OriginalDst: dst.String(), ActualDst: dst.String(), Protocol: "TCP"},
		Ask:  policy.Connection{SourceAddr: rec.SrcAddr, DestinationAddr: dst},
		Dst:  local,
	}
	p.inbound(ctx, rec, lc, snap, inboundPeer{
		dial: func(ctx context.Context) (*net.TCPConn, error) {
			return p.dialApplication(ctx, route.Inbound{Dial: dst}, rec)
		},
		accept: func() (relay.Conn, error) { return c, nil },
		reject: func(int) { relay.Refuse(c) },
	})
}

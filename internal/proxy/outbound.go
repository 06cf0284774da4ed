package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/live"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// request is a connection that an application asked for.
type request struct {
	app   *net.TCPConn
	dsts  []netip.AddrPort // where to; alternatives are tried only when the mesh does not know them
	trace telemetry.Trace  // what the application says that it is part of; zero if it says nothing
	early []byte           // what has been read from app already and belongs to the destination
}

// serveOutbound serves a captured connection.
func (p *Proxy) serveOutbound(ctx context.Context, c *net.TCPConn) {
	dst, err := p.cfg.OriginalDst(c)
	if err == nil && dst == addrPort(c.LocalAddr()) && illegalOutbound(dst.Port()) {
		err = ErrRecursive // nobody redirected it: it was made to this port, where its destination would be itself
	}
	if err != nil {
		p.early(&telemetry.Conn{SrcAddr: addrPort(c.RemoteAddr()), DstAddr: dst}, err)
		relay.Abort(c)
		return
	}
	p.outbound(ctx, request{app: c, dsts: []netip.AddrPort{dst}})
}

// outbound routes, connects, copies and reports one connection of the local application. It owns r.app.
func (p *Proxy) outbound(ctx context.Context, r request) {
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	dst := r.dsts[0]
	rec := &telemetry.Conn{Reporter: telemetry.Source, SrcAddr: addrPort(r.app.RemoteAddr()), DstAddr: dst, Start: time.Now(), Trace: r.trace}
	if rec.Trace == (telemetry.Trace{}) {
		rec.Trace = telemetry.NewTrace()
	}
	local, out, err := p.routeOutbound(setup, dst, nil)
	if err != nil {
		p.early(rec, err)
		relay.Refuse(r.app)
		return
	}
	describeOutbound(rec, local, out)
	c := &live.Conn{View: live.View{Src: rec.SrcAddr.String(), OriginalDst: dst.String(), ActualDst: out.Addr.String(), Protocol: out.Protocol.String()}}
	defer p.live.Add(c)()
	c.OnStop(cancel)

	report := live.Open(rec, p.cfg.Access, p.cfg.Metrics)
	up, peer, err := p.connectAny(setup, rec, r, local, out)
	if err != nil {
		if _, cause := c.Stopped(); cause != nil {
			err = cause
		}
		report.Failed(err)
		relay.Refuse(r.app)
		return
	}
	if !peer.IsZero() {
		rec.Destination.Identity = peer
	}
	cancel() // a context costs about 1 KiB, for hours
	report.Transfer(c, &relay.Pipe{Down: r.app, Up: up, Early: r.early})
}

// early reports a connection that ended before it had a route.
func (p *Proxy) early(rec *telemetry.Conn, err error) { p.cfg.Access.EarlyDeny(rec, err) }

// routeOutbound decides where a connection of the local application goes, leaving out endpoints that failed.
func (p *Proxy) routeOutbound(ctx context.Context, dst netip.AddrPort, failed []*mesh.Workload) (*mesh.Workload, route.Outbound, error) {
	local, err := p.Local(ctx)
	if err != nil {
		return nil, route.Outbound{}, err
	}
	if illegalOutbound(dst.Port()) && (dst.Addr().IsLoopback() || dst.Addr().IsUnspecified()) {
		return nil, route.Outbound{}, ErrRecursive
	}
	out, err := route.Resolve(p.cfg.Store.Snapshot(), route.Query{
		Network: p.cfg.Network, Source: local, Dst: dst, Rand: rand.Uint64N, Exclude: failed,
	})
	if err != nil {
		return nil, out, err
	}
	if out.Addr.Addr().IsValid() {
		return local, out, nil
	}
	if out.Hostname == "" || p.cfg.LookupHost == nil {
		return nil, out, fmt.Errorf("no ip addresses were resolved for workload: %s", out.Upstream.UID)
	}
	p.cfg.Metrics.OnDemandDNS(telemetry.PartyOf(local), local.Identity(), out.Hostname)
	addrs, err := p.cfg.LookupHost(ctx, out.Hostname)
	if err != nil || len(addrs) == 0 {
		return nil, out, fmt.Errorf("no ip addresses were resolved for workload: %s: %w", out.Upstream.UID, err)
	}
	return local, out.Resolved(preferFamily(addrs, dst.Addr().Is4())), nil
}

// preferFamily picks one of the addresses at random, of the family that the client used if there is one.
func preferFamily(addrs []netip.Addr, is4 bool) netip.Addr {
	var same []netip.Addr
	for _, a := range addrs {
		if a.Is4() == is4 {
			same = append(same, a)
		}
	}
	if len(same) > 0 {
		addrs = same
	}
	return addrs[rand.IntN(len(addrs))]
}

func describeOutbound(rec *telemetry.Conn, local *mesh.Workload, out route.Outbound) {
	rec.Source = telemetry.PartyOf(local)
	rec.Destination = telemetry.PartyOf(out.Upstream)
	rec.DstAddr = out.Addr
	if out.Service != nil {
		rec.Service, rec.ServiceName = out.Service.Key, out.Service.Name
	}
	if out.Protocol != route.TCP {
		rec.MutualTLS = true
		rec.HBONEAddr = out.Authority
		rec.Source.Identity = local.Identity()
		// What TLS is going to demand; the handshake fails if it is not so.
		rec.Destination.Identity = out.Upstream.Identity()
	}
}

// connect reaches the destination. For a tunnel, peer is the identity at its far end.
func (p *Proxy) connect(ctx context.Context, rec *telemetry.Conn, r request, local *mesh.Workload, out route.Outbound) (relay.Conn, mesh.Identity, error) {
	if out.Protocol == route.TCP {
		c, err := p.connectTCP(ctx, rec, r, out)
		return c, mesh.Identity{}, err
	}
	hs := connectHeaders(local, rec, out.Service)
	key := hbone.Key{Source: local.Identity(), Peers: out.Peers, Addr: out.Addr, SourceIP: sourceIP(local, rec.SrcAddr)}
	req := hbone.Request{Authority: out.Authority, Header: hs}
	outer, resp, err := p.pool.Connect(ctx, key, req)
	if errors.Is(err, hbone.ErrPoolFull) {
		p.cfg.Metrics.LimitReached("hbone-pool")
	}
	if err != nil {
		return nil, resp.Peer, err
	}
	if out.Protocol == route.HBONE {
		return outer, resp.Peer, nil
	}
	cert, err := p.cfg.Certs(ctx, local.Identity())
	if err != nil {
		outer.Reset(hbone.Cancel)
		return nil, mesh.Identity{}, &live.IdentityError{Err: err}
	}
	req.Header = append(hs[:len(hs):len(hs)], hbone.Header{Name: headerNetwork, Value: p.cfg.Network})
	inner, resp, err := p.pool.ConnectOver(ctx, outer, cert, out.InnerPeers, req)
	if err != nil {
		return nil, resp.Peer, err
	}
	if far := ParseBaggage(headerValues(resp.Header, headerBaggage)...); far.Known() && !p.cfg.NoBaggage {
		rec.Destination = far
	}
	return inner, resp.Peer, nil
}

// sourceIP is part of what a pooled connection may be shared by: the address the connection is on behalf of.
func sourceIP(local *mesh.Workload, src netip.AddrPort) netip.Addr {
	if src.Addr().IsLoopback() && len(local.Addresses) > 0 {
		return local.Addresses[0]
	}
	return src.Addr()
}

// connectTCP dials a plain destination. Addresses that the mesh does not know are alternatives of each other, as they
// would be to an application that resolved the name itself.
func (p *Proxy) connectTCP(ctx context.Context, rec *telemetry.Conn, r request, out route.Outbound) (relay.Conn, error) {
	dsts := []netip.AddrPort{out.Addr}
	if out.Via == route.Passthrough && out.Service == nil {
		dsts = r.dsts
	}
	var errs []error
	for _, dst := range dsts {
		c, err := p.dialTCP(ctx, DialRequest{Addr: dst})
		if err == nil {
			rec.DstAddr = dst
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connection failed: %w", errors.Join(errs...))
}

// dialTCP dials one address within the connect timeout.
func (p *Proxy) dialTCP(ctx context.Context, r DialRequest) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := p.cfg.Dial(ctx, r)
	if err != nil {
		return nil, err
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("dial %s: not a TCP connection", r.Addr)
	}
	return tc, nil
}

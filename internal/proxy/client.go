package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/capture"
	"github.com/isthmus-mesh/isthmus/internal/capture/httpproxy"
	"github.com/isthmus-mesh/isthmus/internal/capture/socks5"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// maxAlternatives bounds how many addresses of a name outside the mesh are tried.
const maxAlternatives = 3

// serveProxy serves a client of the SOCKS5 and HTTP proxy port. It is told of success before the destination is
// reached: what happens after that looks exactly like a captured connection, so that a refusal is always a reset.
func (p *Proxy) serveProxy(ctx context.Context, c *net.TCPConn) {
	setup, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(setup, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	r, err := p.handshake(setup, c)
	if !stop() && err == nil {
		err = context.Cause(setup)
	}
	if err != nil {
		p.cfg.Log.Debug("proxy client was refused", logattr.SrcAddr(addrPort(c.RemoteAddr())), logattr.Err(err))
		c.Close()
		return
	}
	p.outbound(ctx, r)
}

// handshake speaks the client's protocol until it is clear where it wants to go.
func (p *Proxy) handshake(ctx context.Context, c *net.TCPConn) (request, error) {
	protocol, pc, err := capture.Detect(c)
	if err != nil {
		return request{}, err
	}
	if protocol == capture.SOCKS5 {
		q, err := socks5.Handshake(pc)
		if err != nil {
			return request{}, fmt.Errorf("socks handshake: %w", err)
		}
		dsts, err := p.destinations(ctx, c, q.Host, q.Addr, q.Port)
		if err != nil {
			_ = socks5.Reply(c, socks5.HostUnreachable)
			return request{}, err
		}
		return request{app: c, dsts: dsts}, socks5.Reply(c, socks5.Succeeded)
	}
	q, err := httpproxy.Handshake(pc)
	if err != nil {
		return request{}, fmt.Errorf("http proxy handshake: %w", err)
	}
	dsts, err := p.destinations(ctx, c, q.Host, q.Addr, q.Port)
	if err != nil {
		_ = httpproxy.Fail(c, http.StatusBadGateway, "the name could not be resolved")
		return request{}, err
	}
	if q.Tunnel {
		err = httpproxy.Established(c)
	}
	trace, _ := telemetry.ParseTrace(q.TraceParent, q.TraceState)
	return request{app: c, dsts: dsts, trace: trace, early: q.Early}, err
}

// destinations returns the addresses that the client's destination stands for, likeliest first.
func (p *Proxy) destinations(ctx context.Context, c *net.TCPConn, host string, addr netip.Addr, port uint16) ([]netip.AddrPort, error) {
	if addr.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(addr.Unmap(), port)}, nil
	}
	if host == "localhost" {
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}, nil
	}
	rec := &telemetry.Conn{Reporter: telemetry.Source, SrcAddr: addrPort(c.RemoteAddr())}
	if p.cfg.Resolver == nil {
		err := errors.New("names cannot be resolved: the DNS proxy is off")
		p.early(rec, err)
		return nil, err
	}
	addrs, err := p.cfg.Resolver.Resolve(ctx, host, true)
	if err != nil {
		p.early(rec, err)
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range addrs[:min(len(addrs), maxAlternatives)] {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out, nil
}

package ztunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/xds"
)

// dialer makes connections that capture leaves alone.
func (a *app) dialer() *net.Dialer {
	d := &net.Dialer{Resolver: a.hosts, KeepAliveConfig: a.cfg.Tuning.KeepAlive,
		Control: redirect.Controls(redirect.Control(uint32(a.cfg.PacketMark)), redirect.UserTimeout(a.cfg.Tuning.UserTimeout))}
	if !d.KeepAliveConfig.Enable {
		d.KeepAlive = noKeepAlive
	}
	return d
}

func (a *app) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return a.dialer().DialContext(ctx, network, addr)
}

// dialControlPlane is dial for istiod, whose connections have a keepalive of their own.
func (a *app) dialControlPlane(ctx context.Context, network, addr string) (net.Conn, error) {
	d := a.dialer()
	d.KeepAlive, d.KeepAliveConfig = 0, xds.KeepAlive()
	return d.DialContext(ctx, network, addr)
}

// lookupHost resolves gateways that are known by name only.
func (a *app) lookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := a.hosts.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// listenConfig sets what accepted sockets inherit: keepalive and the user timeout.
func (a *app) listenConfig(reuse bool) *net.ListenConfig {
	lc := &net.ListenConfig{KeepAliveConfig: a.cfg.Tuning.KeepAlive, Control: redirect.UserTimeout(a.cfg.Tuning.UserTimeout)}
	if !lc.KeepAliveConfig.Enable {
		lc.KeepAlive = noKeepAlive
	}
	lc.SetMultipathTCP(false) // peers and applications speak TCP
	if reuse {
		lc.Control = redirect.Controls(lc.Control, redirect.ReusePort)
	}
	return lc
}

// noKeepAlive is net's word for it.
const noKeepAlive = -1

// hostsOf returns the hosts that a listen address stands for.
func (a *app) hostsOf(address string) ([]string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if host != localhost {
		return []string{address}, nil
	}
	all := []string{net.JoinHostPort("127.0.0.1", port)}
	if a.cfg.IPv6 {
		all = append(all, net.JoinHostPort("::1", port))
	}
	return all, nil
}

// listenLocal opens a listener at each address that address stands for. That the namespace has no IPv6 loopback is no
// error.
func (a *app) listenLocal(ctx context.Context, ns *inpod.Netns, lc *net.ListenConfig, address string) (ls []net.Listener, err error) {
	all, err := a.hostsOf(address)
	for i, at := range all {
		l, lerr := listenIn(ctx, ns, lc, a.cfg.IPv6, at)
		if i > 0 && noIPv6(lerr) {
			continue
		}
		if lerr != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, lerr
		}
		ls = append(ls, l)
	}
	return ls, err
}

// listenPackets is listenLocal for UDP.
func (a *app) listenPackets(ctx context.Context, ns *inpod.Netns, lc *net.ListenConfig, address string) (pcs []net.PacketConn, err error) {
	all, err := a.hostsOf(address)
	for i, at := range all {
		pc, lerr := ns.ListenPacket(ctx, lc, "udp", at)
		if i > 0 && noIPv6(lerr) {
			continue
		}
		if lerr != nil {
			for _, pc := range pcs {
				pc.Close()
			}
			return nil, lerr
		}
		pcs = append(pcs, pc)
	}
	return pcs, err
}

func noIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// listenIn opens a TCP listener in a network namespace; nil is the current one.
func listenIn(ctx context.Context, ns *inpod.Netns, lc *net.ListenConfig, ipv6 bool, address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if ip, perr := netip.ParseAddr(host); perr == nil && ip.Is6() {
		return ns.Listen(ctx, lc, "tcp6", address)
	}
	if host != "" || !ipv6 {
		return ns.Listen(ctx, lc, "tcp4", address)
	}
	l, err := ns.Listen(ctx, lc, "tcp", address)
	if noIPv6(err) {
		return ns.Listen(ctx, lc, "tcp4", address) // IPv6 is switched off there
	}
	return l, err
}

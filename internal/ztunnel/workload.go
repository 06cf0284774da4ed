package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/dns"
	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy"
)

// atomicManager is a certificate manager that comes to be while the admin port is served already.
type atomicManager struct {
	p atomic.Pointer[identity.Manager]
}

func (a *atomicManager) set(m *identity.Manager) { a.p.Store(m) }
func (a *atomicManager) get() *identity.Manager  { return a.p.Load() }

// workloadProxy is the data path of one workload: its proxy and its DNS, with their sockets bound.
type workloadProxy struct {
	proxy     *proxy.Proxy
	listeners proxy.Listeners
	dns       *dns.Server // nil when off
	sockets   []interface{ Close() error }
}

// placement says where and for whom a workloadProxy works.
type placement struct {
	info    proxy.WorkloadInfo
	network string
	ns      *inpod.Netns // nil means here
	reuse   bool         // share ports with a former proxy that drains
	beside  bool         // the application shares our loopback
	search  []string
}

// newWorkloadProxy binds the sockets of a workload and wires its proxy. Nothing is accepted before run.
func (a *app) newWorkloadProxy(ctx context.Context, at placement) (_ *workloadProxy, err error) {
	var opened []interface{ Close() error }
	defer func() {
		if err != nil {
			for _, c := range opened {
				c.Close()
			}
		}
	}()
	lc := a.listenConfig(at.reuse)
	listen := func(name, address string) net.Listener {
		if err != nil {
			return nil
		}
		l, lerr := listenIn(ctx, at.ns, lc, a.cfg.IPv6, address)
		if lerr != nil {
			err = fmt.Errorf("listen for %s on %s: %w", name, address, lerr)
			return nil
		}
		opened = append(opened, l)
		return l
	}
	w := &workloadProxy{}
	w.listeners.Outbound = listen("outbound", a.cfg.Listen.Outbound)
	w.listeners.Plain = listen("inbound", a.cfg.Listen.Plain)
	w.listeners.HBONE = listen("hbone", a.cfg.Listen.HBONE)
	if a.cfg.SOCKS {
		w.listeners.Proxy = listen("socks5", a.cfg.Listen.SOCKS)
	}
	if err != nil {
		return nil, err
	}
	var udp []net.PacketConn
	var tcp []net.Listener
	if a.cfg.DNS {
		if udp, err = a.listenPackets(ctx, at.ns, lc, a.cfg.Listen.DNS); err != nil {
			return nil, fmt.Errorf("listen for dns on %s: %w", a.cfg.Listen.DNS, err)
		}
		for _, c := range udp {
			opened = append(opened, c)
		}
		if tcp, err = a.listenLocal(ctx, at.ns, lc, a.cfg.Listen.DNS); err != nil {
			return nil, fmt.Errorf("listen for dns on %s: %w", a.cfg.Listen.DNS, err)
		}
		for _, c := range tcp {
			opened = append(opened, c)
		}
	}
	resolver, err := dns.New(dns.Config{
		View:   func() dns.View { return dnsView{a.store.Snapshot()} },
		Client: func(ctx context.Context) (*mesh.Workload, error) { return proxy.LocalWorkload(ctx, a.store, at.info) },
		Dial:   a.dial, Domain: a.cfg.ClusterDomain, Search: at.search, PreferredNamespace: a.cfg.PreferredNamespace,
		DisableIPv6: !a.cfg.IPv6, Upstreams: a.resolv.Nameservers, Cache: a.cache, Metrics: a.metrics, Log: a.log.With(logattr.Scope("dns")),
	})
	if err != nil {
		return nil, err
	}
	if a.cfg.DNS {
		w.dns, err = dns.NewServer(dns.ServerConfig{Resolver: resolver, PacketConns: udp, Listeners: tcp})
		if err != nil {
			return nil, err
		}
	}
	w.proxy, err = proxy.New(proxy.Config{
		Workload: at.info, Network: at.network, Store: a.store, Certs: a.certificate,
		Dial: a.dialIn(at.ns), Resolver: resolver, LookupHost: a.lookupHost, OriginalDst: redirect.OriginalDst,
		LoopbackFallback: at.beside, SpoofSource: a.cfg.SpoofSource && (at.ns != nil || a.cfg.Redirect), NoBaggage: !a.cfg.ResponseBaggage, LogDecisions: a.cfg.LogDecisions,
		Grace: a.cfg.Grace, MaxConnections: a.cfg.MaxConnections, Metrics: a.metrics, Access: a.access, Tunnel: a.tunnelConfig(),
		NoLoopbackTunnel: !a.cfg.Tuning.LoopbackTunnel, PolicyWait: a.cfg.PolicyWait, AllowMissingPolicies: a.cfg.AllowMissingPolicies,
		EndpointWait: a.cfg.EndpointWait,
		Log:          a.log.With(logattr.Scope("proxy"), logattr.WorkloadName(at.info.Namespace, at.info.Name)),
	})
	if err != nil {
		return nil, err
	}
	w.sockets = opened
	return w, nil
}

// run serves the workload until ctx ends and its connections are drained.
func (w *workloadProxy) run(ctx context.Context) error {
	if w.dns == nil {
		return w.proxy.Run(ctx, w.listeners)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errc := make(chan error, 1)
	go func() {
		err := w.dns.Run(ctx)
		if err != nil {
			cancel(err)
		}
		errc <- err
	}()
	err := w.proxy.Run(ctx, w.listeners)
	cancel(nil)
	return errors.Join(err, <-errc)
}

// close releases the sockets of a workload that was never run.
func (w *workloadProxy) close() {
	for _, c := range w.sockets {
		c.Close()
	}
}

// dialIn makes connections from within a network namespace; nil is the current one.
func (a *app) dialIn(ns *inpod.Netns) func(context.Context, proxy.DialRequest) (net.Conn, error) {
	return func(ctx context.Context, r proxy.DialRequest) (net.Conn, error) {
		d := a.dialer()
		if !r.Source.IsValid() {
			return ns.Dial(ctx, d, "tcp", r.Addr.String())
		}
		spoofed := *d
		spoofed.LocalAddr = &net.TCPAddr{IP: r.Source.AsSlice()}
		spoofed.Control = redirect.Controls(d.Control, redirect.SpoofSource())
		c, err := ns.Dial(ctx, &spoofed, "tcp", r.Addr.String())
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			return ns.Dial(ctx, d, "tcp", r.Addr.String()) // the host does not allow it: the application sees us instead
		}
		return c, err
	}
}

// addServed and removeServed keep what config_dump shows.
func (a *app) addServed(uid string, s *served) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.proxies[uid] = s
}

func (a *app) removeServed(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.proxies, uid)
}

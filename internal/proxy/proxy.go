// Package proxy is where the parts of the data plane meet: it accepts a workload's connections, finds out where they
// go, authorises, connects, copies and reports.
//
// One Proxy serves one workload. Connections reach it four ways:
//
//	outbound  15001  captured; the kernel tells the original destination
//	proxy     15080  SOCKS5 and HTTP CONNECT, loopback only
//	inbound   15008  HBONE: mutual TLS, one tunnel per connection
//	plain     15006  captured inbound plaintext
//
// An application whose connection cannot be set up always sees a reset, never an empty answer: nothing is read from it
// before the other side has been reached, and its socket is closed abruptly.
package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/accept"
	"github.com/isthmus-mesh/isthmus/internal/proxy/failover"
	"github.com/isthmus-mesh/isthmus/internal/proxy/live"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Errors that end connections. Their texts are those operators know from ztunnel.
var (
	ErrRecursive = errors.New("attempted recursive call to ourselves")
	// ErrRemoved as the cause of Run's context means that the workload is gone: nothing is waited for.
	ErrRemoved = errors.New("workload was removed")
)

// WorkloadInfo names the workload that a proxy stands for.
type WorkloadInfo struct {
	Name           string
	Namespace      string
	ServiceAccount string
	Node           string         // "" means any
	Fallback       *mesh.Workload // used until xDS knows the workload; nil means wait for xDS
}

// DialRequest is a TCP connection to make.
type DialRequest struct {
	Addr netip.AddrPort
	// Source, when valid, is the client's address, to be shown to the application if the host allows it.
	Source netip.Addr
}

// Resolver resolves names. internal/dns implements it.
type Resolver interface {
	Resolve(ctx context.Context, host string, preferIPv4 bool) ([]netip.Addr, error)
}

// Config configures a Proxy.
type Config struct {
	Workload WorkloadInfo     // Name, Namespace and ServiceAccount are required
	Network  string           // the proxy's own network
	Store    *state.Store     // required
	Certs    hbone.CertSource // required

	// Dial makes connections where the workload lives; nil means a plain dialer.
	Dial func(ctx context.Context, r DialRequest) (net.Conn, error)
	// Resolver resolves the names that clients of the proxy port ask for; nil refuses names.
	Resolver Resolver
	// LookupHost resolves gateways and workloads that are known by name only; nil means that they cannot be reached.
	LookupHost func(ctx context.Context, host string) ([]netip.Addr, error)
	// OriginalDst tells where a captured connection was going; nil means its local address.
	OriginalDst func(c *net.TCPConn) (netip.AddrPort, error)

	LoopbackFallback bool // an application that refuses on the own address is tried on the loopback
	SpoofSource      bool // show the application its client's address
	NoBaggage        bool // do not describe this workload in answers to its peers, nor believe what peers say of theirs
	NoLoopbackTunnel bool // application tunnels are reached at the own address, not on the loopback
	LogDecisions     bool // log each verdict of the policies at info instead of debug

	Tunnel TunnelConfig
	// PolicyWait is how long an inbound connection waits for policies that its workload names and that have not
	// arrived; 0 means 2s. Then it is refused, or, with AllowMissingPolicies, judged without them.
	PolicyWait           time.Duration
	AllowMissingPolicies bool
	// EndpointWait is how long a connection to a service, all of whose known endpoints have just failed, waits for the
	// mesh to know another; 0 means 3s, less than 0 not at all.
	EndpointWait time.Duration

	Grace          time.Duration // how long connections may finish after Run's context ended; 0 means 5s
	MaxConnections int           // at once, over all listeners; 0 means DefaultMaxConnections; more are reset

	Metrics *telemetry.Metrics   // nil counts nothing
	Access  *telemetry.AccessLog // nil logs nothing
	Log     *slog.Logger         // required
}

// TunnelConfig says how tunnels are made and accepted. Zero values mean hbone's defaults.
type TunnelConfig struct {
	MaxStreams  int           // per pooled connection
	MaxConns    int           // pooled
	IdleTimeout time.Duration // of a pooled connection
	Limits      hbone.Limits
	TLS         hbone.TLSPolicy
	// VerifyPeer may refuse a peer whose certificate path is otherwise good; see hbone.ErrRevoked. nil refuses none.
	VerifyPeer func(r telemetry.Reporter, path []*x509.Certificate) error
}

// The limits of a proxy.
const (
	DefaultMaxConnections = 65_536
	connectTimeout        = 10 * time.Second // to the application or a plain destination
	localTimeout          = 5 * time.Second  // waiting for xDS to know the local workload
	handshakeTimeout      = 10 * time.Second // a client's SOCKS or HTTP handshake
	setupTimeout          = 45 * time.Second // everything before bytes flow, as an upper bound
	defaultGrace          = 5 * time.Second
)

// Listeners are where connections come from; a nil one is not served. Run closes them.
type Listeners struct {
	Outbound net.Listener
	Proxy    net.Listener
	HBONE    net.Listener
	Plain    net.Listener
}

// Proxy serves one workload.
type Proxy struct {
	cfg       Config
	pool      *hbone.Pool
	server    *hbone.Server
	live      live.Registry
	judge     *live.Judge
	slots     chan struct{} // one token per connection that was accepted
	tunnel    chan struct{} // one token per inbound tunnel
	endpoints *failover.Endpoints
}

// New returns a Proxy that is ready to Run.
func New(cfg Config) (*Proxy, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("proxy: Config.Store is required")
	case cfg.Certs == nil:
		return nil, errors.New("proxy: Config.Certs is required")
	case cfg.Log == nil:
		return nil, errors.New("proxy: Config.Log is required")
	case cfg.Workload.Name == "" || cfg.Workload.Namespace == "" || cfg.Workload.ServiceAccount == "":
		return nil, errors.New("proxy: Config.Workload needs Name, Namespace and ServiceAccount")
	}
	if cfg.Dial == nil {
		cfg.Dial = plainDial
	}
	if cfg.OriginalDst == nil {
		cfg.OriginalDst = func(c *net.TCPConn) (netip.AddrPort, error) { return addrPort(c.LocalAddr()), nil }
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.PolicyWait == 0 {
		cfg.PolicyWait = live.DefaultPolicyWait
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	p := &Proxy{
		cfg: cfg, slots: make(chan struct{}, cfg.MaxConnections), tunnel: make(chan struct{}, cfg.MaxConnections),
		endpoints: failover.New(cfg.Store, cfg.EndpointWait, cfg.Metrics),
	}
	p.judge = &live.Judge{Store: cfg.Store, Live: &p.live, Wait: cfg.PolicyWait, AllowMissing: cfg.AllowMissingPolicies, LogVerdicts: cfg.LogDecisions, Log: cfg.Log}
	return p, p.tunnels()
}

// tunnels prepares both ends of tunnels.
func (p *Proxy) tunnels() (err error) {
	t := p.cfg.Tunnel
	p.pool, err = hbone.NewPool(hbone.PoolConfig{
		Certificate: p.cfg.Certs, VerifyPeer: t.verify(telemetry.Source), TLS: t.TLS, Limits: t.Limits,
		MaxStreams: t.MaxStreams, MaxConns: t.MaxConns, IdleTimeout: t.IdleTimeout, Log: p.cfg.Log,
		Dial: func(ctx context.Context, k hbone.Key) (net.Conn, error) {
			return p.cfg.Dial(ctx, DialRequest{Addr: k.Addr})
		},
	})
	if err != nil {
		return err
	}
	p.server, err = hbone.NewServer(hbone.ServerConfig{
		Certificate: p.certificate, Handler: p.serveTunnel, VerifyPeer: t.verify(telemetry.Destination), TLS: t.TLS, Limits: t.Limits,
		Log: p.cfg.Log,
	})
	return err
}

func (t TunnelConfig) verify(r telemetry.Reporter) func([]*x509.Certificate) error {
	if t.VerifyPeer == nil {
		return nil
	}
	return func(path []*x509.Certificate) error { return t.VerifyPeer(r, path) }
}

// Recheck asks VerifyPeer about all live tunnels again and ends those whose peer it refuses now.
func (p *Proxy) Recheck() {
	p.pool.Recheck()
	p.server.Recheck()
}

func plainDial(ctx context.Context, r DialRequest) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", r.Addr.String())
}

// Run serves the listeners until ctx ends. Then it stops accepting at once, tells HBONE peers to open no more tunnels,
// lets connections finish for Config.Grace (not at all if the cause of ctx is ErrRemoved), and ends the rest.
func (p *Proxy) Run(ctx context.Context, ls Listeners) error {
	// Connections outlive ctx: they end by themselves, or when hard ends.
	hard, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	var background, conns sync.WaitGroup
	var poolErr error
	background.Go(func() { poolErr = p.pool.Run(hard) })
	background.Go(func() { p.judge.Watch(hard) })

	errs := make([]error, 4)
	var accepting sync.WaitGroup
	for i, l := range []struct {
		name  string
		l     net.Listener
		serve func(context.Context, *net.TCPConn)
	}{
		{"outbound", ls.Outbound, p.serveOutbound},
		{"proxy", ls.Proxy, p.serveProxy},
		{"hbone", ls.HBONE, p.serveHBONE},
		{"inbound", ls.Plain, p.servePlain},
	} {
		if l.l != nil {
			loop := accept.Loop{Name: l.name, Listener: l.l, Slots: p.slots, Conns: &conns, Metrics: p.cfg.Metrics, Log: p.cfg.Log,
				Serve: func(c *net.TCPConn) { l.serve(hard, c) }}
			accepting.Go(func() { errs[i] = loop.Run(ctx) })
		}
	}
	accepting.Wait() // listeners are closed now, by ctx or by an error
	p.drain(ctx, &conns)
	cut(live.ErrDrain)
	p.live.EndAll(live.ErrDrain)
	conns.Wait()
	background.Wait()
	return errors.Join(append(errs, poolErr)...)
}

// drain waits for connections to finish by themselves as long as they may, and then ends them.
func (p *Proxy) drain(ctx context.Context, conns *sync.WaitGroup) {
	grace := p.cfg.Grace
	if errors.Is(context.Cause(ctx), ErrRemoved) {
		grace = 0
	}
	draining, cutTunnels := context.WithCancel(context.WithoutCancel(ctx))
	defer cutTunnels()
	var drained sync.WaitGroup
	drained.Go(func() {
		if err := p.server.Drain(draining); err != nil {
			p.cfg.Log.Debug("inbound tunnels were cut off", logattr.Err(err))
		}
	})
	done := make(chan struct{})
	go func() { conns.Wait(); close(done) }()
	if !waitFor(done, grace) {
		// What is left is ended here and not by Drain, so that the access log tells the reason.
		p.live.EndAll(live.ErrDrain)
		waitFor(done, lastWords)
	}
	cutTunnels()
	drained.Wait()
}

// lastWords is how long ended connections may take to say so to their peers.
const lastWords = 500 * time.Millisecond

func waitFor(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// Connections returns the live connections, sorted.
func (p *Proxy) Connections() []live.View { return p.live.Views() }

// Local returns the workload this proxy stands for, waiting a while for xDS to know it.
func (p *Proxy) Local(ctx context.Context) (*mesh.Workload, error) {
	return LocalWorkload(ctx, p.cfg.Store, p.cfg.Workload)
}

// LocalWorkload returns the workload that info names, waiting up to 5 seconds for the store to have it.
func LocalWorkload(ctx context.Context, store *state.Store, info WorkloadInfo) (*mesh.Workload, error) {
	find := func() *mesh.Workload {
		return store.Snapshot().Local(info.Name, info.Namespace, info.ServiceAccount, info.Node)
	}
	if w := find(); w != nil {
		return w, nil
	}
	if info.Fallback != nil {
		return info.Fallback, nil
	}
	t := time.NewTimer(localTimeout)
	defer t.Stop()
	for {
		changed := store.Changed()
		if w := find(); w != nil {
			return w, nil
		}
		select {
		case <-changed:
		case <-t.C:
			return nil, fmt.Errorf("failed to fetch information about local workload: %s.%s (%s)", info.ServiceAccount, info.Namespace, info.Name)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// certificate is the certificate of the local workload.
func (p *Proxy) certificate(ctx context.Context) (hbone.Certificate, error) {
	w, err := p.Local(ctx)
	if err != nil {
		return hbone.Certificate{}, err
	}
	return p.cfg.Certs(ctx, w.Identity())
}

// illegalInbound reports the ports that must not be reached through this proxy: its own, so that nothing loops, and
// those that serve the loopback only, so that nothing leaks.
func illegalInbound(port uint16) bool {
	switch port {
	case mesh.OutboundPort, mesh.InboundPort, mesh.HBONEPort, mesh.SOCKSPort, mesh.DNSPort, mesh.AdminPort:
		return true
	}
	return false
}

// illegalOutbound reports the ports of the proxy that would loop if an application's connection to them were proxied.
func illegalOutbound(port uint16) bool {
	switch port {
	case mesh.OutboundPort, mesh.InboundPort, mesh.HBONEPort, mesh.SOCKSPort:
		return true
	}
	return false
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok || t == nil {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

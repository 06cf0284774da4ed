// Package gateway is the east-west gateway: TLS connections pass through to a backend by the server name they ask for,
// and HBONE tunnels from other networks are handed to the workloads of this one.
//
// It ends no inner TLS: passthrough connections and inner tunnels stay encrypted between their two ends, and the
// gateway sees only who they ask for. Its own identity is proved on the outer tunnel alone.
package gateway

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/internal/proxy/accept"
	"github.com/isthmus-mesh/isthmus/internal/proxy/failover"
	"github.com/isthmus-mesh/isthmus/internal/proxy/live"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Config configures a Gateway.
type Config struct {
	// Routes maps server names, in lower case, to backends "host:port". Required with a TLS listener.
	Routes map[string]string

	// The following are required with an HBONE listener.
	Network string
	Store   *state.Store
	Self    *mesh.Workload // who the gateway is; telemetry, and the policies that protect it
	Certs   func(ctx context.Context) (hbone.Certificate, error)

	// Services are the hostnames, or *.SUFFIX, that tunnels may ask for; empty allows all of the network. The workload
	// API does not say which services are global.
	Services []string

	// The following say how tunnels are accepted; see hbone.ServerConfig.
	VerifyPeer func(path []*x509.Certificate) error
	TLS        hbone.TLSPolicy
	Limits     hbone.Limits

	// PolicyWait is how long a tunnel waits for policies that the gateway's workload names and that have not arrived; 0
	// means 2s. Then it is refused, or, with AllowMissingPolicies, judged without them.
	PolicyWait           time.Duration
	AllowMissingPolicies bool
	EndpointWait         time.Duration // as proxy.Config's
	LogDecisions         bool          // log each verdict of the policies at info instead of debug

	// Dial makes connections to backends, by name or address; nil means a plain dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	Grace          time.Duration // how long connections may finish after Run's context ended; 0 means 5s
	MaxConnections int           // at once, and tunnels at once; 0 means 65,536; more are closed, and tunnels refused

	Metrics *telemetry.Metrics
	Access  *telemetry.AccessLog
	Log     *slog.Logger // required
}

// The limits of a gateway.
const (
	defaultMaxConnections = 65_536
	helloTimeout          = 10 * time.Second
	connectTimeout        = 10 * time.Second
	setupTimeout          = 18 * time.Second // of a tunnel, until its answer: ztunnel as the client waits for 20 s
	defaultGrace          = 5 * time.Second
)

// headerSource is how waypoints and gateways say that they have dealt with a connection.
const headerSource = "x-istio-source"

var errTooManyTunnels = errors.New("too many inbound tunnels")

// Gateway routes between networks.
type Gateway struct {
	cfg       Config
	server    *hbone.Server              // nil without an HBONE listener
	slots     chan struct{}              // one token per connection that was accepted
	tunnel    chan struct{}              // one token per tunnel, over all connections
	serves    func(hostname string) bool // nil serves all
	live      live.Registry
	judge     *live.Judge         // nil without an HBONE listener
	endpoints *failover.Endpoints // the same
}

// New returns a Gateway.
func New(cfg Config) (*Gateway, error) {
	if cfg.Log == nil {
		return nil, errors.New("gateway: Config.Log is required")
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = defaultMaxConnections
	}
	g := &Gateway{cfg: cfg, slots: make(chan struct{}, cfg.MaxConnections), tunnel: make(chan struct{}, cfg.MaxConnections)}
	if len(cfg.Services) > 0 {
		g.serves = matcher(cfg.Services)
	}
	if cfg.Certs == nil {
		return g, nil
	}
	switch {
	case cfg.Store == nil:
		return nil, errors.New("gateway: Config.Store is required")
	case cfg.Self == nil:
		return nil, errors.New("gateway: Config.Self is required")
	}
	if cfg.PolicyWait == 0 {
		cfg.PolicyWait = live.DefaultPolicyWait
	}
	g.judge = &live.Judge{Store: cfg.Store, Live: &g.live, Wait: cfg.PolicyWait, AllowMissing: cfg.AllowMissingPolicies, LogVerdicts: cfg.LogDecisions, Log: cfg.Log,
		Now: func(s *state.Snapshot, _ *mesh.Workload) *mesh.Workload { return g.self(s) }}
	g.endpoints = failover.New(cfg.Store, cfg.EndpointWait, cfg.Metrics)
	var err error
	g.server, err = hbone.NewServer(hbone.ServerConfig{Certificate: cfg.Certs, Handler: g.serveTunnel, VerifyPeer: cfg.VerifyPeer,
		TLS: cfg.TLS, Limits: cfg.Limits, Log: cfg.Log})
	return g, err
}

// matcher reports the hostnames that one of the patterns is about.
func matcher(patterns []string) func(string) bool {
	return func(host string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			suffix, wild := strings.CutPrefix(p, "*")
			return host == p || wild && len(host) > len(suffix) && strings.HasSuffix(host, suffix)
		})
	}
}

// ParseServices reads GATEWAY_SERVICES: hostnames, or *.SUFFIX, separated by commas.
func ParseServices(s string) ([]string, error) {
	var all []string
	for part := range strings.SplitSeq(s, ",") {
		part = strings.ToLower(strings.TrimSpace(part))
		if part == "" {
			continue
		}
		if !validServerName(strings.TrimPrefix(part, "*.")) {
			return nil, fmt.Errorf("%q is not a hostname or *.SUFFIX", part)
		}
		all = append(all, part)
	}
	return all, nil
}

// Recheck asks VerifyPeer about all live tunnels again and ends those whose client it refuses now.
func (g *Gateway) Recheck() {
	if g.server != nil {
		g.server.Recheck()
	}
}

// self is the gateway as xDS knows it, with the policies that name it, or else as it was configured.
func (g *Gateway) self(s *state.Snapshot) *mesh.Workload {
	if w := s.Local(g.cfg.Self.Name, g.cfg.Self.Namespace, g.cfg.Self.ServiceAccount, ""); w != nil {
		return w
	}
	return g.cfg.Self
}

// Listeners are where connections come from. Run closes them.
type Listeners struct {
	TLS   []net.Listener
	HBONE net.Listener // may be nil
}

// Run serves until ctx ends, lets connections finish for Config.Grace, and ends the rest.
func (g *Gateway) Run(ctx context.Context, ls Listeners) error {
	if ls.HBONE != nil && g.server == nil {
		return errors.New("gateway: an HBONE listener needs Config.Certs")
	}
	hard, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	var background, accepting, conns sync.WaitGroup
	errs := make([]error, len(ls.TLS)+1)
	serve := func(i int, name string, l net.Listener, serve func(context.Context, *net.TCPConn)) {
		loop := accept.Loop{Name: name, Listener: l, Slots: g.slots, Conns: &conns, Metrics: g.cfg.Metrics, Log: g.cfg.Log,
			Serve: func(c *net.TCPConn) { serve(hard, c) }}
		accepting.Go(func() { errs[i] = loop.Run(ctx) })
	}
	for i, l := range ls.TLS {
		serve(i, "tls", l, g.serveTLS)
	}
	if ls.HBONE != nil {
		background.Go(func() { g.judge.Watch(hard) })
		serve(len(ls.TLS), "hbone", ls.HBONE, g.serveHBONE)
	}
	accepting.Wait()
	g.drain(ctx, &conns)
	cut(live.ErrDrain)
	conns.Wait()
	background.Wait()
	return errors.Join(errs...)
}

func (g *Gateway) drain(ctx context.Context, conns *sync.WaitGroup) {
	draining, cutTunnels := context.WithCancel(context.WithoutCancel(ctx))
	defer cutTunnels()
	var drained sync.WaitGroup
	if g.server != nil {
		drained.Go(func() { _ = g.server.Drain(draining) }) // its error is that the deadline passed, which is ours
	}
	done := make(chan struct{})
	go func() { conns.Wait(); close(done) }()
	t := time.NewTimer(g.cfg.Grace)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		g.live.EndAll(live.ErrDrain)
	}
	cutTunnels()
	drained.Wait()
}

func (g *Gateway) serveHBONE(ctx context.Context, c *net.TCPConn) {
	src, dst := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	if err := g.server.ServeConn(ctx, c); err != nil && ctx.Err() == nil {
		g.cfg.Access.EarlyDeny(&telemetry.Conn{Reporter: telemetry.Destination, SrcAddr: src, DstAddr: dst}, err)
	}
}

// serveTunnel hands the bytes of one outer tunnel to a workload's proxy, which ends the tunnel inside.
func (g *Gateway) serveTunnel(ctx context.Context, s *hbone.ServerStream) {
	rec := &telemetry.Conn{
		Reporter: telemetry.Destination, MutualTLS: true, HBONEAddr: s.Authority(), Start: time.Now(),
		SrcAddr: addrPort(s.RemoteAddr()), DstAddr: addrPort(s.LocalAddr()), Trace: live.TraceOf(s.Header()),
	}
	rec.Source.Identity = s.Peer()
	select {
	case g.tunnel <- struct{}{}:
		defer func() { <-g.tunnel }()
	default:
		g.cfg.Metrics.LimitReached("tunnels")
		g.cfg.Access.EarlyDeny(rec, errTooManyTunnels)
		_ = s.Reject(http.StatusServiceUnavailable)
		return
	}
	snap := g.cfg.Store.Snapshot()
	source := s.Get(headerSource)
	q := route.GatewayQuery{
		Network: g.cfg.Network, Self: g.cfg.Self, Authority: s.Authority(),
		Processed: source == "waypoint" || source == "gateway", Serves: g.serves, Rand: rand.Uint64N,
	}
	out, err := route.ResolveGateway(snap, q)
	if err != nil {
		status := http.StatusServiceUnavailable
		if r, ok := errors.AsType[*route.Rejection](err); ok {
			status = r.Status
		}
		g.cfg.Access.EarlyDeny(rec, err)
		_ = s.Reject(status)
		return
	}
	rec.Destination = telemetry.PartyOf(out.Upstream)
	if out.Service != nil {
		rec.Service, rec.ServiceName = out.Service.Key, out.Service.Name
	}
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	c := &live.Conn{Ask: policy.Connection{Source: s.Peer(), SourceAddr: rec.SrcAddr, DestinationAddr: rec.DstAddr}, Dst: g.cfg.Self}
	defer g.live.Add(c)()
	c.OnStop(cancel)
	report := live.Open(rec, g.cfg.Access, g.cfg.Metrics)
	fail := func(status int, err error) {
		_ = s.Reject(status)
		report.Failed(err)
	}
	if err := g.judge.Decide(setup, c, snap, rec); err != nil {
		fail(http.StatusUnauthorized, err)
		return
	}
	up, err := g.connect(setup, rec, q, out)
	if err != nil {
		if ruling, cause := c.Stopped(); cause != nil {
			rec.Policy, rec.Rule, err = ruling.Policy, ruling.Rule, cause
		}
		fail(http.StatusServiceUnavailable, err)
		return
	}
	down, err := s.Accept(nil)
	if err != nil {
		relay.Abort(up)
		fail(http.StatusServiceUnavailable, err)
		return
	}
	cancel() // a context costs about 1 KiB, for hours
	report.Transfer(c, &relay.Pipe{Down: down, Up: up})
}

// connect connects to the workload that was chosen or, if it is gone, to another of its service.
func (g *Gateway) connect(ctx context.Context, rec *telemetry.Conn, q route.GatewayQuery, out route.Outbound) (*net.TCPConn, error) {
	return failover.Connect(ctx, g.endpoints, out, failover.Attempt[*net.TCPConn]{
		Connect: func(ctx context.Context, out route.Outbound) (*net.TCPConn, error) {
			rec.Destination = telemetry.PartyOf(out.Upstream)
			return g.dial(ctx, out.Addr.String())
		},
		Route: func(_ context.Context, failed []*mesh.Workload) (route.Outbound, error) {
			q.Exclude = failed
			return route.ResolveGateway(g.cfg.Store.Snapshot(), q)
		},
		Gone: func(err error, _ route.Outbound) bool {
			return !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE)
		},
	})
}

func (g *Gateway) dial(ctx context.Context, addr string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c, err := g.cfg.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connection failed: %w", err)
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("connection failed: dial %s: not a TCP connection", addr)
	}
	return tc, nil
}

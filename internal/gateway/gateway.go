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
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
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
	defaultGrace          = 5 * time.Second
)

// headerSource is how waypoints and gateways say that they have dealt with a connection.
const headerSource = "x-istio-source"

var errTooManyTunnels = errors.New("too many inbound tunnels")

// ErrDrain ends the connections that are left when the gateway stops.
var ErrDrain = errors.New("connection closed due to connection drain")

// Gateway routes between networks.
type Gateway struct {
	cfg    Config
	server *hbone.Server              // nil without an HBONE listener
	slots  chan struct{}              // one token per connection that was accepted
	tunnel chan struct{}              // one token per tunnel, over all connections
	serves func(hostname string) bool // nil serves all

	mu    sync.Mutex
	pipes map[*relay.Pipe]error // guarded by mu; live connections and why they were ended, if they were
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
	g := &Gateway{cfg: cfg, slots: make(chan struct{}, cfg.MaxConnections), tunnel: make(chan struct{}, cfg.MaxConnections), pipes: map[*relay.Pipe]error{}}
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
	var accepting, conns sync.WaitGroup
	errs := make([]error, len(ls.TLS)+1)
	for i, l := range ls.TLS {
		accepting.Go(func() { errs[i] = g.accept(ctx, hard, "tls", l, g.serveTLS, &conns) })
	}
	if ls.HBONE != nil {
		accepting.Go(func() { errs[len(ls.TLS)] = g.accept(ctx, hard, "hbone", ls.HBONE, g.serveHBONE, &conns) })
	}
	accepting.Wait()
	g.drain(ctx, &conns)
	cut(ErrDrain)
	conns.Wait()
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
		g.endAll(ErrDrain)
	}
	cutTunnels()
	drained.Wait()
}

func (g *Gateway) endAll(cause error) {
	g.mu.Lock()
	var all []*relay.Pipe
	for p := range g.pipes {
		g.pipes[p] = cause
		all = append(all, p)
	}
	g.mu.Unlock()
	for _, p := range all {
		p.Abort()
	}
}

func (g *Gateway) accept(ctx, hard context.Context, name string, l net.Listener, serve func(context.Context, *net.TCPConn), conns *sync.WaitGroup) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { l.Close(); close(closed) })
	defer func() {
		if stop() {
			l.Close()
			return
		}
		<-closed // the port is free for a successor only when Close has returned
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne interface{ Temporary() bool }
			if errors.As(err, &ne) && ne.Temporary() {
				g.cfg.Log.Warn("connection could not be accepted", logattr.Listener(name), logattr.Err(err))
				if !pause(ctx) {
					return nil
				}
				continue
			}
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		tc, ok := c.(*net.TCPConn)
		if !ok {
			c.Close()
			return fmt.Errorf("accept on %s: not a TCP listener", l.Addr())
		}
		select {
		case g.slots <- struct{}{}:
		default:
			g.cfg.Metrics.LimitReached("connections")
			relay.Abort(tc)
			continue
		}
		conns.Go(func() {
			g.cfg.Metrics.Connections(name, 1)
			defer func() {
				g.cfg.Metrics.Connections(name, -1)
				<-g.slots
			}()
			serve(hard, tc)
		})
	}
}

// pause waits a moment for descriptors to become free.
func pause(ctx context.Context) bool {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
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
		SrcAddr: addrPort(s.RemoteAddr()), DstAddr: addrPort(s.LocalAddr()),
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
	out, err := route.ResolveGateway(snap, route.GatewayQuery{
		Network: g.cfg.Network, Self: g.cfg.Self, Authority: s.Authority(),
		Processed: source == "waypoint" || source == "gateway", Serves: g.serves, Rand: rand.Uint64N,
	})
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
	g.cfg.Access.Opened(rec)
	open := g.cfg.Metrics.Opened(rec)
	fail := func(status int, why telemetry.Reason, err error) {
		_ = s.Reject(status)
		g.cfg.Access.Closed(rec, 0, 0, why, err)
		open.Closed(rec, why)
	}
	ps, missing := snap.PoliciesFor(g.self(snap))
	for _, k := range missing {
		g.cfg.Log.Warn("policy of the gateway is not known and cannot be enforced", logattr.Policy(k))
	}
	if d := policy.Evaluate(ps, policy.Connection{Source: s.Peer(), SourceAddr: rec.SrcAddr, DestinationAddr: rec.DstAddr}); !d.Allowed {
		rec.Policy = d.Policy
		fail(http.StatusUnauthorized, telemetry.Denied, fmt.Errorf("connection closed due to policy rejection: %s", d.Reason))
		return
	}
	up, err := g.dial(ctx, out.Addr.String())
	if err != nil {
		fail(http.StatusServiceUnavailable, telemetry.ConnectFailure, err)
		return
	}
	down, err := s.Accept(nil)
	if err != nil {
		relay.Abort(up)
		fail(http.StatusServiceUnavailable, telemetry.ConnectFailure, err)
		return
	}
	g.transfer(rec, open, &relay.Pipe{Down: down, Up: up})
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

func (g *Gateway) transfer(rec *telemetry.Conn, open *telemetry.Open, p *relay.Pipe) {
	open.Transfer(rec, p.Counts)
	g.mu.Lock()
	g.pipes[p] = nil
	g.mu.Unlock()
	err := p.Run()
	g.mu.Lock()
	if cause := g.pipes[p]; cause != nil {
		err = cause
	}
	delete(g.pipes, p)
	g.mu.Unlock()
	why := telemetry.OK
	switch {
	case errors.Is(err, hbone.ErrRevoked):
		why = telemetry.CertRevoked
	case err != nil:
		why = telemetry.ConnectFailure
	}
	sent, received := p.Counts()
	g.cfg.Access.Closed(rec, sent, received, why, err)
	open.Closed(rec, why)
}

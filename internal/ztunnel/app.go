package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/internal/admin"
	"github.com/isthmus-mesh/isthmus/internal/dns"
	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/identity/istioca"
	"github.com/isthmus-mesh/isthmus/internal/identity/revocation"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/xds"
)

// The readiness tasks. The first four are ztunnel's.
const (
	taskState       = "state manager"
	taskProxy       = "proxy"
	taskDNS         = "dns proxy"
	taskPods        = "workload proxy manager"
	taskCertificate = "certificate"
	taskDraining    = "draining"
)

// app is the running program: what all roles share.
type app struct {
	cfg     Config
	log     *slog.Logger
	levels  *telemetry.Levels
	reg     *prometheus.Registry
	metrics *telemetry.Metrics
	access  *telemetry.AccessLog
	ready   *admin.Readiness
	store   *state.Store
	hosts   *net.Resolver
	resolv  dns.ResolvConf

	manager atomicManager
	crl     *revocation.List // nil without CRL_PATH
	cache   *dns.Cache

	mu      sync.Mutex
	proxies map[string]*served // guarded by mu; by uid
	tunnels []rechecker        // guarded by mu; what serves or makes tunnels beside proxies
}

// served is one proxied workload, for config_dump.
type served struct {
	info  proxy.WorkloadInfo
	proxy *proxy.Proxy // nil while pending
}

func newApp(cfg Config, log *slog.Logger, levels *telemetry.Levels) (*app, error) {
	reg := prometheus.NewRegistry()
	metrics, err := telemetry.NewMetrics(reg, "")
	if err != nil {
		return nil, err
	}
	a := &app{
		cfg: cfg, log: log, levels: levels, reg: reg, metrics: metrics, access: telemetry.NewAccessLog(log),
		ready: admin.NewReadiness(taskState), store: state.NewStore(), proxies: map[string]*served{}, cache: dns.NewCache(cfg.DNSCache),
	}
	var once sync.Once
	a.ready.OnChange(func(ready bool) {
		if ready {
			log.Info("proxy is ready")
			once.Do(func() { go settle() })
		} else {
			log.Info("proxy is not ready any more")
		}
	})
	f, err := os.Open(cfg.ResolvConf)
	if err != nil {
		log.Warn("no upstream resolvers are known", logattr.Err(err))
	} else {
		defer f.Close()
		if a.resolv, err = dns.ParseResolvConf(f); err != nil {
			return nil, fmt.Errorf("read %s: %w", cfg.ResolvConf, err)
		}
	}
	a.hosts = &net.Resolver{PreferGo: true, Dial: a.dial}
	if cfg.Static != nil {
		a.store.Apply(*cfg.Static)
	}
	if cfg.CRLPath != "" {
		a.crl, err = revocation.New(revocation.Config{Path: cfg.CRLPath, Changed: a.recheck, Log: log.With(logattr.Scope("crl"))})
		if err != nil {
			return nil, fmt.Errorf("CRL_PATH: %w", err)
		}
	}
	return a, nil
}

// run runs the role until ctx ends, then drains, then stops the rest.
func (a *app) run(ctx context.Context) error {
	// Everything but the data path outlives ctx, until the data path has drained.
	outer, stopAll := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopAll(nil)
	inner, shutdown := context.WithCancelCause(ctx)
	defer shutdown(nil)
	var g group
	srv, err := a.adminServer(outer, func() { shutdown(errors.New("asked by /quitquitquit")) })
	if err != nil {
		return err
	}
	g.start(outer, func(err error) { shutdown(err) }, srv.Run)
	g.start(outer, func(error) {}, func(ctx context.Context) error { return a.metrics.Run(ctx, a.cfg.MetricIdle) })
	if a.crl != nil {
		g.start(outer, func(error) {}, a.crl.Run)
	}
	context.AfterFunc(inner, func() {
		a.ready.Set(taskDraining, false)
		a.log.Info("proxy is draining", logattr.Outcome(context.Cause(inner).Error()), logattr.Deadline(a.cfg.Grace))
	})
	role := map[Mode]func(data, control context.Context, g *group, fail func(error)) error{
		Shared: a.runShared, Dedicated: a.runDedicated, Gateway: a.runGateway,
	}[a.cfg.Mode]
	err = role(inner, outer, &g, func(err error) { shutdown(err) })
	shutdown(err)
	stopAll(nil)
	return errors.Join(err, g.wait())
}

// group runs components and keeps their errors.
type group struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error // guarded by mu
}

// start runs f until ctx ends; if it fails before, fail is told.
func (g *group) start(ctx context.Context, fail func(error), f func(context.Context) error) {
	g.wg.Go(func() {
		if err := f(ctx); err != nil {
			g.mu.Lock()
			g.errs = append(g.errs, err)
			g.mu.Unlock()
			fail(err)
		}
	})
}

func (g *group) wait() error {
	g.wg.Wait()
	return errors.Join(g.errs...)
}

// identityInfo is what a proxy knows of itself before it asks the control plane.
type identityInfo struct {
	name, namespace, serviceAccount string
	network, clusterID              string
	instanceIP                      netip.Addr
	token                           func(context.Context) (string, error)
	rejected                        func(token string) // told of tokens that istiod does not accept; nil ignores them
	impersonate                     bool
}

// controlPlane starts the xDS client and the certificate manager, as far as they have an address. The channel closes
// when the state is complete, which without xDS it is at once.
func (a *app) controlPlane(ctx context.Context, g *group, fail func(error), who identityInfo) (<-chan struct{}, error) {
	if who.clusterID == "" {
		who.clusterID = defaultClusterID
	}
	if err := a.startCA(ctx, g, fail, who); err != nil {
		return nil, err
	}
	if a.cfg.XDSAddress == "" {
		complete := make(chan struct{})
		close(complete)
		return complete, nil
	}
	roots, err := rootsOf("XDS_ROOT_CA", a.cfg.XDSRoot)
	if err != nil {
		return nil, err
	}
	client, err := xds.New(xds.Config{
		Address: a.cfg.XDSAddress, ServerName: a.cfg.XDSServerName, Roots: roots, Token: who.token, TokenRejected: who.rejected,
		ClusterID: who.clusterID, Headers: a.cfg.XDSHeaders, Sink: a.store, Dial: a.dialControlPlane, TLS: a.cfg.Tuning.TLS.Apply,
		Metrics: xdsMetrics{a.metrics}, Log: a.log,
		Node: xds.NodeInfo{Name: who.name, Namespace: who.namespace, InstanceIP: who.instanceIP, NodeName: a.cfg.NodeName,
			Metadata: a.nodeMetadata(who)},
	})
	if err != nil {
		return nil, err
	}
	g.start(ctx, fail, client.Run)
	return client.Synced(), nil
}

// startCA starts the certificate manager.
func (a *app) startCA(ctx context.Context, g *group, fail func(error), who identityInfo) error {
	if a.cfg.CAAddress == "" {
		a.log.Warn("CA_ADDRESS is empty: there are no certificates, and no tunnels")
		return nil
	}
	roots, err := rootsOf("CA_ROOT_CA", a.cfg.CARoot)
	if err != nil {
		return err
	}
	ca, err := istioca.New(istioca.Config{
		Address: a.cfg.CAAddress, ServerName: a.cfg.CAServerName, Roots: roots, Token: who.token, TokenRejected: who.rejected,
		ClusterID: who.clusterID, Headers: a.cfg.CAHeaders, Dial: a.dialControlPlane, TLS: a.cfg.Tuning.TLS.Apply, Log: a.log,
	})
	if err != nil {
		return err
	}
	manager, err := identity.NewManager(identity.Config{Signer: ca, Log: a.log, TTL: a.cfg.SecretTTL, Impersonate: who.impersonate})
	if err != nil {
		return err
	}
	a.manager.set(manager)
	a.metrics.WatchExpiry(manager.EarliestExpiry)
	g.start(ctx, fail, manager.Run)
	g.start(ctx, fail, func(ctx context.Context) error {
		<-ctx.Done()
		return ca.Close()
	})
	return nil
}

func (a *app) nodeMetadata(who identityInfo) map[string]any {
	md := map[string]any{}
	for k, v := range a.cfg.Metadata {
		md[k] = v
	}
	md["CLUSTER_ID"] = who.clusterID
	if who.network != "" {
		md["NETWORK"] = who.network
	}
	return md
}

// synced waits for the first complete state.
func (a *app) synced(ctx context.Context, ch <-chan struct{}) bool {
	start := time.Now()
	select {
	case <-ctx.Done():
		return false
	case <-ch:
		workloads, services, policies := a.store.Snapshot().Counts()
		a.log.Info("mesh state received", logattr.Elapsed(time.Since(start)), logattr.Count(workloads+services+policies))
		a.ready.Set(taskState, true)
		return true
	}
}

// certificate is the hbone.CertSource of this program.
func (a *app) certificate(ctx context.Context, id mesh.Identity) (hbone.Certificate, error) {
	m := a.manager.get()
	if m == nil && a.cfg.CAAddress == "" {
		return hbone.Certificate{}, errNoCA
	}
	if m == nil {
		return hbone.Certificate{}, errors.New("identity error: there is no certificate authority yet")
	}
	c, err := m.Certificate(ctx, id)
	if err != nil {
		return hbone.Certificate{}, fmt.Errorf("identity error: %w", err)
	}
	return hbone.Certificate{TLS: c.TLS, Roots: c.Roots}, nil
}

// dnsView lets the DNS proxy read the state.
type dnsView struct{ *state.Snapshot }

// EndpointWorkloads returns the workloads behind a service.
func (v dnsView) EndpointWorkloads(k mesh.ServiceKey) []*mesh.Workload {
	eps := v.Endpoints(k)
	out := make([]*mesh.Workload, len(eps))
	for i := range eps {
		out[i] = eps[i].Workload
	}
	return out
}

// xdsMetrics lets the xDS client count.
type xdsMetrics struct{ m *telemetry.Metrics }

// Terminated counts the end of a stream.
func (x xdsMetrics) Terminated(reason string) { x.m.XDSTerminated(reason) }

// Received counts a response.
func (x xdsMetrics) Received(typeURL string, bytes int) { x.m.XDSMessage(typeURL, bytes) }

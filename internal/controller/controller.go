// Package controller is isthmus-controller: it joins ecs -> discovery -> plan -> kube, runs the broker, and serves
// east-west gateways.
//
//	every replica    one reflector per account and region, the broker, health and metrics
//	the leader       plans and writes Istio's objects, status and events; revokes tokens; serves Gateways
//
// Reflectors are independent of each other, so an account that is slow, throttled or denied delays no other; planning
// never waits for AWS. What a snapshot does not prove is not deleted (package plan).
package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/controller/eastwest"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/identity/istioca"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/telemetry/control"
)

// SourceFunc makes the reader of one account and region.
type SourceFunc func(a settings.Account, region string) (ecs.Source, error)

// Config is what a Controller needs.
type Config struct {
	Options  Options       // required
	Settings settings.File // required
	Kube     *kube.Client  // required
	// Source is required. Region is used for accounts that list none.
	Source SourceFunc
	Region string
	// Hosts makes the finder of EC2 hosts of one account and region; nil means that tasks in bridge and host mode have no
	// address.
	Hosts func(a settings.Account, region string) (ecs.HostSource, error)
	// Queue makes the reader of an account's event queue; nil means that events are not read.
	Queue func(a settings.Account, e settings.Events) (Queue, error)
	// Identity names this replica in the lease; required.
	Identity string
	Metrics  *control.Metrics // nil records nothing
	Log      *slog.Logger     // required
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Controller is a replica of isthmus-controller.
type Controller struct {
	cfg      Config
	log      *slog.Logger
	accounts *accounts
	// resources are the ECSAccounts, which stay empty where their definition is not installed.
	resources *kube.Cache
	declared  atomic.Pointer[[]declared]
	health    *health
	listen    func(address string) (net.Listener, error)

	mu        sync.Mutex
	addresses map[string]string // guarded by mu; what each listener really listens on, for tests
}

// New returns a Controller.
func New(cfg Config) (*Controller, error) {
	switch {
	case cfg.Kube == nil:
		return nil, errors.New("controller: Config.Kube is required")
	case cfg.Source == nil:
		return nil, errors.New("controller: Config.Source is required")
	case cfg.Identity == "":
		return nil, errors.New("controller: Config.Identity is required")
	case cfg.Log == nil:
		return nil, errors.New("controller: Config.Log is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	acc, err := newAccounts(cfg)
	if err != nil {
		return nil, err
	}
	resources, err := cfg.Kube.NewCache(kube.CacheConfig{Kind: kube.ECSAccounts})
	if err != nil {
		return nil, err
	}
	c := &Controller{
		cfg: cfg, log: cfg.Log, accounts: acc, resources: resources, health: newHealth(), addresses: map[string]string{},
		listen: func(address string) (net.Listener, error) { return net.Listen("tcp", address) },
	}
	c.declare(nil)
	return c, nil
}

// SnapshotAge returns how long ago the account and region that was read least recently was read completely.
func (c *Controller) SnapshotAge() time.Duration { return c.accounts.age(c.cfg.Now()) }

// Run runs the replica until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	c.health.set("kubernetes", errors.New("not asked yet"))
	if err := c.startMonitoring(ctx, g); err != nil {
		return err
	}
	g.Go(func() error { return c.accounts.run(ctx) })
	g.Go(func() error { return c.resources.Run(ctx) })
	g.Go(func() error { return c.followAccounts(ctx) })
	if c.cfg.Options.BrokerAddress != "" {
		if err := c.startBroker(ctx, g); err != nil {
			return err
		}
	}
	g.Go(func() error { return c.waitForKube(ctx) })
	if c.cfg.Options.DryRun {
		g.Go(func() error { return c.dryRun(ctx) })
		return g.Wait()
	}
	g.Go(func() error {
		lease := kube.LeaseConfig{Namespace: c.cfg.Options.Namespace, Name: "isthmus-controller", Identity: c.cfg.Identity, Duration: c.cfg.Options.LeaseDuration}
		return c.cfg.Kube.Lead(ctx, lease, c.lead)
	})
	return g.Wait()
}

// waitForKube keeps the health condition of the API server, which only matters until it was reached once: a replica that
// worked is not taken out of service because the API server is away for a while.
func (c *Controller) waitForKube(ctx context.Context) error {
	for {
		_, err := c.cfg.Kube.List(ctx, kube.Namespaces, "", "kubernetes.io/metadata.name="+c.cfg.Options.Namespace)
		c.health.set("kubernetes", err)
		if err == nil {
			return nil
		}
		c.log.Warn("kubernetes api not reachable yet", slog.String("error", err.Error()))
		if !sleep(ctx, time.Second) {
			return nil
		}
	}
}

// lead is what the leader does.
func (c *Controller) lead(ctx context.Context) error {
	c.cfg.Metrics.Leader(true)
	defer c.cfg.Metrics.Leader(false)
	g, ctx := errgroup.WithContext(ctx)
	r, err := newReconciler(c)
	if err != nil {
		return err
	}
	g.Go(func() error { return r.run(ctx) })
	revoker, err := broker.NewRevoker(broker.RevokerConfig{
		Lives: c.accounts, Secrets: c.cfg.Kube, Interval: c.cfg.Options.RevokeInterval, Changed: c.accounts.changed, Log: c.cfg.Log, Observe: c.cfg.Metrics.Revocation,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return revoker.Run(ctx) })
	gateways, err := eastwest.New(eastwest.Config{
		Kube: c.cfg.Kube, Namespace: c.cfg.Options.Namespace, Image: c.cfg.Options.GatewayImage, Replicas: c.cfg.Options.GatewayReplicas,
		Network: c.cfg.Settings.Network, ClusterID: c.cfg.Settings.ClusterName, TrustDomain: c.cfg.Settings.TrustDomain, Log: c.cfg.Log, Now: c.cfg.Now,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return gateways.Run(ctx) })
	return g.Wait()
}

// startBroker runs the broker with a certificate from istiod.
func (c *Controller) startBroker(ctx context.Context, g *errgroup.Group) error {
	o := c.cfg.Options
	audience := o.BrokerAudience
	if audience == "" {
		audience = c.cfg.Settings.TrustDomain
	}
	b, err := broker.New(broker.Config{
		Directory: c.accounts, Issuer: c.cfg.Kube, Audience: audience, TrustDomain: c.cfg.Settings.TrustDomain, ClusterID: c.cfg.Settings.ClusterName,
		Network: c.cfg.Settings.Network, STSEndpoint: o.STSEndpoint, Log: c.cfg.Log, Now: c.cfg.Now,
		WebIdentity: &broker.WebIdentity{Issuer: c.accounts.issuer, Roles: c.accounts, Endpoint: o.WebIdentityEndpoint},
		Limits:      broker.Limits{SourceRate: o.BrokerSourceRate, RoleRate: o.BrokerRoleRate},
		Observe:     func(out broker.Outcome) { c.cfg.Metrics.Token(string(out.Code), out.Took) },
	})
	if err != nil {
		return err
	}
	roots := func() (*x509.CertPool, error) { return readPool(o.RootCert) }
	signer, err := istioca.New(istioca.Config{
		Address: o.IstiodAddress, ServerName: "istiod." + o.Namespace + ".svc", Roots: roots, ClusterID: c.cfg.Settings.ClusterName, Log: c.cfg.Log,
		Token: func(context.Context) (string, error) { return readToken(o.Token) },
	})
	if err != nil {
		return err
	}
	manager, err := identity.NewManager(identity.Config{Signer: signer, Log: c.cfg.Log})
	if err != nil {
		return err
	}
	self := mesh.Identity{TrustDomain: c.cfg.Settings.TrustDomain, Namespace: o.Namespace, ServiceAccount: o.ServiceAccount}
	certificate := func(ctx context.Context) (*tls.Certificate, error) {
		cert, err := manager.Certificate(ctx, self)
		if err != nil {
			return nil, err
		}
		return &cert.TLS, nil
	}
	ln, err := c.listen(o.BrokerAddress)
	if err != nil {
		return fmt.Errorf("listen for the broker: %w", err)
	}
	c.noteAddress("broker", ln)
	c.health.set("broker-certificate", errors.New("not issued yet"))
	g.Go(func() error { return manager.Run(ctx) })
	g.Go(func() error { return c.watchCertificate(ctx, manager, self) })
	g.Go(func() error {
		return broker.Serve(ctx, broker.ServerConfig{Listener: ln, Certificate: certificate, Log: c.cfg.Log}, b)
	})
	return nil
}

// watchCertificate keeps the health condition of the broker's certificate.
func (c *Controller) watchCertificate(ctx context.Context, m *identity.Manager, self mesh.Identity) error {
	for {
		cert, err := m.Certificate(ctx, self)
		c.health.set("broker-certificate", err)
		wait := time.Second
		if err == nil {
			c.cfg.Metrics.Certificate(cert.NotAfter)
			wait = min(time.Minute, max(time.Second, time.Until(cert.NotAfter)/2))
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// Address returns where a listener ("broker" or "monitoring") really listens; it is "" before Run.
func (c *Controller) Address(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addresses[name]
}

func (c *Controller) noteAddress(name string, ln net.Listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addresses[name] = ln.Addr().String()
	c.log.Info("listening", slog.String("listener", name), slog.String("addr", ln.Addr().String()))
}

func readPool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read mesh root: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read mesh root: no certificate in %s", path)
	}
	return pool, nil
}

func readToken(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read own token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return "", fmt.Errorf("read own token: %s is empty", path)
	}
	return token, nil
}

// sleep waits and reports whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

var _ broker.Directory = (*accounts)(nil)
var _ broker.Lives = (*accounts)(nil)

// configError gives an error of the configuration its code.
func configError(format string, args ...any) error {
	return diag.Newf(diag.ConfigInvalid, format, args...)
}

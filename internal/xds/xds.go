// Package xds keeps the state of the mesh up to date from istiod, over one delta ADS stream.
//
// Bytes in, mesh values out: the client decodes and checks each resource and hands what is good to a Sink, as one
// mesh.Update per response. A resource that makes no sense is rejected by name (NACK) and the rest is applied; the
// former version of a rejected resource stays in force. After a lost connection the client names what it holds, so
// that istiod sends only what changed meanwhile and also what disappeared. Losing istiod loses nothing else: the state
// stays as it is for as long as it takes.
package xds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// The resource types of Istio's workload API.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// Config configures a Client.
type Config struct {
	// Address of istiod: host:port or https://host:port; without a port it is 15012. Required.
	Address string
	// ServerName is the SNI and the name that the server's certificate must bear; "" means the host of Address.
	ServerName string
	// Roots returns what the server's certificate must verify under. It is called for each connection. Required.
	Roots func() (*x509.CertPool, error)
	// Token returns the bearer token; it is called for each connection. nil means none is sent.
	Token func(ctx context.Context) (string, error)
	// TokenRejected is told of each token that istiod does not accept; nil ignores it.
	TokenRejected func(token string)
	ClusterID     string // required: istiod chooses by it which cluster judges the token
	// TLS narrows what is spoken to the server; nil leaves it at TLS 1.3.
	TLS func(*tls.Config)
	// Headers are further metadata of each stream.
	Headers map[string]string
	Node    NodeInfo
	// Sink takes the updates. Required.
	Sink interface{ Apply(mesh.Update) }
	// Dial connects to istiod; nil means the standard way.
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	Metrics Metrics      // nil records nothing
	Log     *slog.Logger // required
}

// NodeInfo says who asks. istiod demands that Namespace is the namespace of the token.
type NodeInfo struct {
	Name       string // of the pod or workload
	Namespace  string
	InstanceIP netip.Addr
	NodeName   string
	// Metadata are further entries of the node's metadata, for example CLUSTER_ID. A value is anything that a
	// structpb.Value can hold.
	Metadata map[string]any
}

// Metrics takes note of what happens on the stream.
type Metrics interface {
	// Terminated counts the end of a stream, with one of ztunnel's reasons: ConnectionError, Error, Reconnect,
	// Complete.
	Terminated(reason string)
	// Received counts a response with its size on the wire.
	Received(typeURL string, bytes int)
}

// Client is a client of the aggregated discovery service.
type Client struct {
	cfg    Config
	log    *slog.Logger
	target string // host:port
	types  []*subscription

	synced     chan struct{}
	syncedOnce sync.Once
}

// New returns a Client. It makes no connection before Run.
func New(cfg Config) (*Client, error) {
	switch {
	case cfg.Roots == nil:
		return nil, errors.New("xds: Config.Roots is required")
	case cfg.ClusterID == "":
		return nil, errors.New("xds: Config.ClusterID is required")
	case cfg.Sink == nil:
		return nil, errors.New("xds: Config.Sink is required")
	case cfg.Log == nil:
		return nil, errors.New("xds: Config.Log is required")
	}
	target, host, err := parseTarget(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("xds: Config.Address: %w", err)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAliveConfig: KeepAlive()}).DialContext
	}
	if cfg.TLS == nil {
		cfg.TLS = func(*tls.Config) {}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = noMetrics{}
	}
	c := &Client{
		cfg:    cfg,
		log:    cfg.Log.With(logattr.Scope("xds")),
		target: target,
		synced: make(chan struct{}),
		types: []*subscription{
			{typeURL: AddressType, decode: decodeAddresses},
			{typeURL: AuthorizationType, decode: decodePolicies},
		},
	}
	if _, err := c.node(); err != nil {
		return nil, fmt.Errorf("xds: Config.Node: %w", err)
	}
	return c, nil
}

// Synced returns a channel that closes when the first complete state has been applied. It stays closed.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// Run keeps the state up to date until ctx ends, and returns nil then. It connects again for ever.
func (c *Client) Run(ctx context.Context) error {
	var wait backoff
	for {
		began := time.Now()
		reason, err := c.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.cfg.Metrics.Terminated(reason)
		delay := wait.next(time.Since(began))
		c.log.Warn("stream to istiod ended", slog.String("outcome", reason), logattr.Err(err),
			logattr.Address(c.target), slog.Duration("retry_in", delay.Round(time.Millisecond)))
		if !sleep(ctx, delay) {
			return nil
		}
	}
}

// parseTarget returns host:port for dialling and the host alone for verifying.
func parseTarget(address string) (target, host string, err error) {
	if address == "" {
		return "", "", errors.New("it is required")
	}
	rest := strings.TrimPrefix(address, "https://")
	rest = strings.TrimSuffix(rest, "/")
	if strings.Contains(rest, "/") {
		return "", "", fmt.Errorf("%q is not HOST:PORT or https://HOST:PORT", address)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		host, port = strings.Trim(rest, "[]"), fmt.Sprint(mesh.XDSPort)
	}
	if host == "" || port == "" {
		return "", "", fmt.Errorf("%q is not HOST:PORT or https://HOST:PORT", address)
	}
	return net.JoinHostPort(host, port), host, nil
}

type noMetrics struct{}

func (noMetrics) Terminated(string)    {}
func (noMetrics) Received(string, int) {}

// Times between connections. A stream that lasted resets them, whatever ended it; one that did not makes the next wait
// longer, so that neither a wrong certificate nor a response that cannot be read becomes a busy loop.
const (
	minBackoff = 10 * time.Millisecond
	maxBackoff = 15 * time.Second
	lasting    = 2 * time.Second
)

type backoff struct{ last time.Duration }

func (b *backoff) next(lived time.Duration) time.Duration {
	if lived >= lasting || b.last == 0 {
		b.last = minBackoff
		return b.last
	}
	b.last = min(2*b.last, maxBackoff)
	return b.last
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

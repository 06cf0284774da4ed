// Package istioca signs certificates through istiod's certificate authority.
package istioca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	pb "github.com/isthmus-mesh/isthmus/internal/identity/istioca/capb"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Limits and times of the transport.
const (
	connectTimeout = 5 * time.Second
	maxReconnect   = 15 * time.Second
	pingEvery      = 30 * time.Second
	pingTimeout    = 10 * time.Second
	maxAnswer      = 4 << 20
)

// Config configures a Client.
type Config struct {
	// Address of the authority: host:port or https://host:port; without a port it is 15012. Required.
	Address string
	// ServerName is the SNI and the name that the server's certificate must bear; "" means the host of Address.
	ServerName string
	// Roots returns what the server's certificate must verify under. It is called for each request; when it answers
	// differently from before, the connection is made anew. Required.
	Roots func() (*x509.CertPool, error)
	// Token returns the bearer token; it is called for each request. nil means none is sent.
	Token func(ctx context.Context) (string, error)
	// TokenRejected is told of each token that istiod does not accept; nil ignores it.
	TokenRejected func(token string)
	ClusterID     string // required: istiod chooses by it which cluster judges the token
	// TLS narrows what is spoken to the server; nil leaves it at TLS 1.3.
	TLS func(*tls.Config)
	// Headers are further metadata of each request.
	Headers map[string]string
	// Dial connects to the authority; nil means the standard way.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger // required
}

// Client is an identity.Signer. Its methods may be called from any goroutine.
type Client struct {
	cfg    Config
	log    *slog.Logger
	target string

	mu    sync.Mutex
	conn  *grpc.ClientConn // guarded by mu
	roots *x509.CertPool   // guarded by mu: what conn verifies with
}

// New returns a Client. It makes no connection yet.
func New(cfg Config) (*Client, error) {
	switch {
	case cfg.Roots == nil:
		return nil, errors.New("istioca: Config.Roots is required")
	case cfg.ClusterID == "":
		return nil, errors.New("istioca: Config.ClusterID is required")
	case cfg.Log == nil:
		return nil, errors.New("istioca: Config.Log is required")
	}
	target, host, err := parseTarget(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("istioca: Config.Address: %w", err)
	}
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.TLS == nil {
		cfg.TLS = func(*tls.Config) {}
	}
	return &Client{cfg: cfg, log: cfg.Log.With(logattr.Scope("istioca")), target: target}, nil
}

// Close closes the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn, c.roots = nil, nil
	return err
}

// Sign asks istiod to sign the request. istiod signs the identity of the token, whatever the request says, unless it
// is asked to impersonate, which it allows the proxies of nodes.
func (c *Client) Sign(ctx context.Context, csrPEM []byte, ttl time.Duration, impersonate mesh.Identity) ([]string, error) {
	conn, err := c.connection()
	if err != nil {
		return nil, err
	}
	request := &pb.IstioCertificateRequest{Csr: string(csrPEM), ValidityDuration: int64(ttl / time.Second)}
	if !impersonate.IsZero() {
		request.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(impersonate.String()),
		}}
	}
	ctx, token, err := c.authorize(ctx)
	if err != nil {
		return nil, err
	}
	answer, err := pb.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, request, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		if grpcstatus.Code(err) == codes.Unauthenticated && c.cfg.TokenRejected != nil {
			c.cfg.TokenRejected(token)
		}
		return nil, fmt.Errorf("request a certificate from %s: %w", c.target, explain(err))
	}
	return answer.CertChain, nil
}

// connection returns the present connection, or a new one if the roots have changed.
func (c *Client) connection() (*grpc.ClientConn, error) {
	roots, err := c.cfg.Roots()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.conn == nil {
			return nil, fmt.Errorf("load the roots for the certificate authority: %w", err)
		}
		c.log.Warn("roots for the certificate authority cannot be loaded, using the former", logattr.Err(err))
		return c.conn, nil
	}
	if c.conn != nil && c.roots.Equal(roots) {
		return c.conn, nil
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: c.cfg.ServerName, RootCAs: roots}
	c.cfg.TLS(tlsConfig)
	conn, err := grpc.NewClient("passthrough:///"+c.target,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.cfg.Dial(ctx, "tcp", addr) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: time.Second, Multiplier: 2, Jitter: 0.2, MaxDelay: maxReconnect},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to the certificate authority: %w", err)
	}
	if c.conn != nil {
		c.log.Info("roots for the certificate authority changed, connecting again")
		_ = c.conn.Close() // requests under way fail and are retried by the manager
	}
	c.conn, c.roots = conn, roots
	return conn, nil
}

// authorize returns the context with the metadata of a request, and the token in it.
func (c *Client) authorize(ctx context.Context) (_ context.Context, token string, err error) {
	pairs := []string{"clusterid", c.cfg.ClusterID}
	if c.cfg.Token != nil {
		if token, err = c.cfg.Token(ctx); err != nil {
			return ctx, "", fmt.Errorf("get a token for the certificate authority: %w", err)
		}
		if token == "" {
			return ctx, "", errors.New("get a token for the certificate authority: it is empty")
		}
		pairs = append(pairs, "authorization", "Bearer "+token)
	}
	for name, value := range c.cfg.Headers {
		pairs = append(pairs, strings.ToLower(name), value)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...), token, nil
}

// explain adds what usually helps to the errors that operators meet.
func explain(err error) error {
	switch grpcstatus.Code(err) {
	case codes.Unauthenticated:
		return fmt.Errorf("istiod did not accept the token (audience istio-ca, cluster id, expiry, impersonation?): %w", err)
	case codes.InvalidArgument:
		return fmt.Errorf("istiod did not accept the request (lifetime too long?): %w", err)
	}
	return err
}

// parseTarget returns host:port for dialling and the host alone for verifying.
func parseTarget(address string) (target, host string, err error) {
	if address == "" {
		return "", "", errors.New("it is required")
	}
	rest := strings.TrimSuffix(strings.TrimPrefix(address, "https://"), "/")
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

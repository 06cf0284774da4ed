package iamproof

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Limits and times of the client.
const (
	maxTokenAnswer  = 64 << 10
	minTokenBackoff = 250 * time.Millisecond // a task may be a moment ahead of its discovery
	maxTokenBackoff = 15 * time.Second
	// refreshAt is the part of a token's life after which a new one is fetched.
	refreshNumerator, refreshDenominator = 2, 3
	defaultMinTokenAge                   = 10 * time.Second
)

// BrokerConfig configures a BrokerClient.
type BrokerConfig struct {
	Address    string        // required: https://HOST:PORT, as a rule of the east-west gateway
	ServerName string        // required: the SNI, by which the gateway finds the broker
	Identity   mesh.Identity // required: who the broker must prove to be
	// Roots returns what the broker's certificate must verify under. It is called for each connection. Required.
	Roots       func() (*x509.CertPool, error)
	Credentials aws.CredentialsProvider // required: the task role
	Region      string                  // required: whose STS is to vouch for the role
	Audience    string                  // required: the mesh
	// Prove proves the role in another way than by a signed request; Credentials are not used then. Nil means that way.
	Prove func(ctx context.Context) (Asking, error)

	// Dial connects to the broker; nil means the standard way.
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	Timeout time.Duration // of one request; 0 means 10s
	// MinTokenAge is how old a token must be for its rejection to count; 0 means 10s. One that is rejected when new
	// would be rejected again, and the broker would be asked without end.
	MinTokenAge time.Duration
	Log         *slog.Logger // required
}

// BrokerClient gets tokens for istiod from the broker. A token is kept and replaced after two thirds of its life; as
// long as the broker cannot be reached the present one is used to its end. Methods may be called from any goroutine.
type BrokerClient struct {
	cfg BrokerConfig
	url string
	log *slog.Logger

	fetching chan struct{} // one place: only one request at a time

	mu       sync.Mutex
	current  TokenResponse // guarded by mu
	issued   time.Time     // guarded by mu
	rejected bool          // guarded by mu: istiod did not accept current
	err      error         // guarded by mu: the last failure
	backoff  time.Duration // guarded by mu
	notUntil time.Time     // guarded by mu: no attempt before, after a failure
}

// NewBrokerClient returns a BrokerClient. It makes no connection yet.
func NewBrokerClient(cfg BrokerConfig) (*BrokerClient, error) {
	switch {
	case cfg.Address == "":
		return nil, errors.New("iamproof: BrokerConfig.Address is required")
	case cfg.ServerName == "":
		return nil, errors.New("iamproof: BrokerConfig.ServerName is required")
	case cfg.Identity.IsZero():
		return nil, errors.New("iamproof: BrokerConfig.Identity is required")
	case cfg.Roots == nil:
		return nil, errors.New("iamproof: BrokerConfig.Roots is required")
	case cfg.Credentials == nil && cfg.Prove == nil:
		return nil, errors.New("iamproof: BrokerConfig.Credentials is required")
	case cfg.Region == "":
		return nil, errors.New("iamproof: BrokerConfig.Region is required")
	case cfg.Log == nil:
		return nil, errors.New("iamproof: BrokerConfig.Log is required")
	}
	if err := checkAudience(cfg.Audience); err != nil {
		return nil, fmt.Errorf("iamproof: BrokerConfig.Audience: %w", err)
	}
	if _, err := STSHost(cfg.Region); err != nil {
		return nil, fmt.Errorf("iamproof: BrokerConfig.Region: %w", err)
	}
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		return nil, fmt.Errorf("iamproof: BrokerConfig.Address: %q is not https://HOST:PORT", cfg.Address)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.MinTokenAge == 0 {
		cfg.MinTokenAge = defaultMinTokenAge
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	return &BrokerClient{
		cfg:      cfg,
		url:      "https://" + u.Host,
		log:      cfg.Log.With(logattr.Scope("iamproof")),
		fetching: make(chan struct{}, 1),
	}, nil
}

// Token returns a valid token, from the cache or from the broker. After a failure it answers with that failure until
// the next attempt is due, so that callers that retry do not become the broker's load.
func (c *BrokerClient) Token(ctx context.Context) (TokenResponse, error) {
	if t, err, final := c.cached(time.Now()); final {
		return t, err
	}
	select {
	case c.fetching <- struct{}{}:
		defer func() { <-c.fetching }()
	case <-ctx.Done():
		return TokenResponse{}, fmt.Errorf("wait for a token of the broker: %w", context.Cause(ctx))
	}
	// Another caller may have fetched it while this one waited.
	if t, err, final := c.cached(time.Now()); final {
		return t, err
	}
	t, err := c.fetch(ctx)
	return c.record(t, err, time.Now())
}

// Rejected tells the client that istiod did not accept a token, for example because it was revoked. The next call of
// Token asks the broker for another one.
func (c *BrokerClient) Rejected(token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if token == c.current.Token && time.Since(c.issued) >= c.cfg.MinTokenAge {
		c.rejected = true
	}
}

// Run keeps a fresh token at hand until ctx ends, so that a broker that cannot be reached for a while is not noticed.
// Running it is optional.
func (c *BrokerClient) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		_, _ = c.Token(ctx) // logged by record, retried below
		c.mu.Lock()
		next := c.notUntil
		if c.err == nil {
			next = c.refreshTime()
		}
		c.mu.Unlock()
		timer.Reset(max(time.Until(next), minTokenBackoff))
	}
}

// cached answers without the broker where that is final: with a token that is fresh, with one that is still valid
// while the broker must not be asked again yet, or with the failure of which the same is true.
func (c *BrokerClient) cached(now time.Time) (t TokenResponse, err error, final bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	valid := now.Before(c.current.Expiration)
	waiting := now.Before(c.notUntil)
	switch {
	case valid && (waiting || now.Before(c.refreshTime()) && !c.rejected):
		return c.current, nil, true
	case waiting:
		return TokenResponse{}, fmt.Errorf("%w (next attempt in %v)", c.err, c.notUntil.Sub(now).Round(time.Second/10)), true
	}
	return TokenResponse{}, nil, false
}

func (c *BrokerClient) refreshTime() time.Time {
	return c.issued.Add(c.current.Expiration.Sub(c.issued) * refreshNumerator / refreshDenominator)
}

func (c *BrokerClient) record(t TokenResponse, err error, now time.Time) (TokenResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.current, c.issued, c.rejected, c.err, c.backoff, c.notUntil = t, now, false, nil, 0, time.Time{}
		c.log.Info("token issued by the broker", slog.Any("token", t))
		return t, nil
	}
	c.backoff = min(max(2*c.backoff, minTokenBackoff), maxTokenBackoff)
	wait := time.Duration(float64(c.backoff) * (0.8 + 0.4*rand.Float64()))
	c.err, c.notUntil = err, now.Add(wait)
	valid := now.Before(c.current.Expiration)
	c.log.Warn("broker issued no token", logattr.Err(err), slog.Bool("still_valid", valid), slog.Duration("retry_in", wait.Round(time.Millisecond)))
	if valid {
		return c.current, nil
	}
	return TokenResponse{}, err
}

// Asking is one request to the broker: a proof, and the key that opens the answer to it.
type Asking struct {
	Path string
	Body []byte
	Open func(answer []byte) (TokenResponse, error)
}

// prove signs a request of which the broker sees the fields.
func (c *BrokerClient) prove(ctx context.Context) (Asking, error) {
	creds, err := Retrieve(ctx, c.cfg.Credentials)
	if err != nil {
		return Asking{}, err
	}
	proof, err := Sign(ctx, creds, c.cfg.Region, c.cfg.Audience)
	if err != nil {
		return Asking{}, err
	}
	body, err := json.Marshal(proof)
	if err != nil {
		return Asking{}, fmt.Errorf("encode the proof: %w", err)
	}
	return Asking{Path: TokenPath, Body: body, Open: proof.Open}, nil
}

// fetch makes one proof and one request.
func (c *BrokerClient) fetch(ctx context.Context) (TokenResponse, error) {
	prove := c.cfg.Prove
	if prove == nil {
		prove = c.prove
	}
	asking, err := prove(ctx)
	if err != nil {
		return TokenResponse{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, fmt.Errorf("no answer within %v", c.cfg.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+asking.Path, bytes.NewReader(asking.Body))
	if err != nil {
		return TokenResponse{}, fmt.Errorf("ask the broker: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	client, err := c.client()
	if err != nil {
		return TokenResponse{}, fmt.Errorf("ask the broker: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return TokenResponse{}, fmt.Errorf("ask the broker: %w", err)
	}
	defer resp.Body.Close()
	return decodeAnswer(resp, asking.Open, time.Now())
}

func decodeAnswer(resp *http.Response, open func([]byte) (TokenResponse, error), now time.Time) (TokenResponse, error) {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxTokenAnswer+1))
	if err != nil {
		return TokenResponse{}, fmt.Errorf("read the broker's answer: %w", err)
	}
	if len(text) > maxTokenAnswer {
		return TokenResponse{}, fmt.Errorf("read the broker's answer: more than %d bytes", maxTokenAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		refusal := &TokenError{}
		if err := json.Unmarshal(text, refusal); err != nil || refusal.Message == "" {
			refusal = &TokenError{Message: http.StatusText(resp.StatusCode)}
		}
		refusal.Status = resp.StatusCode
		return TokenResponse{}, refusal
	}
	t, err := open(text)
	switch {
	case err != nil:
		return TokenResponse{}, err
	case t.Token == "" || strings.ContainsAny(t.Token, " \r\n"):
		return TokenResponse{}, errors.New("read the broker's answer: no usable token in it")
	case t.Namespace == "" || t.ServiceAccount == "" || t.WorkloadName == "":
		return TokenResponse{}, errors.New("read the broker's answer: it does not say who the task is")
	case !t.Expiration.After(now):
		return TokenResponse{}, fmt.Errorf("read the broker's answer: the token expired at %s; is a clock wrong?", t.Expiration.UTC().Format(time.RFC3339))
	}
	return t, nil
}

// client returns an HTTP client for one request. Requests are an hour apart, so nothing is gained by keeping a
// connection, and the roots are always today's.
func (c *BrokerClient) client() (*http.Client, error) {
	roots, err := c.cfg.Roots()
	if err != nil {
		return nil, fmt.Errorf("load the roots of the mesh: %w", err)
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:             nil, // the proof must not pass through a proxy from the environment
			DialContext:       c.cfg.Dial,
			TLSClientConfig:   c.tlsConfig(roots),
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// tlsConfig verifies the broker by its identity in the mesh. Its certificate names no DNS host: the address is a load
// balancer's, and the server name only tells the gateway where to go.
func (c *BrokerClient) tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         c.cfg.ServerName,
		InsecureSkipVerify: true, // VerifyConnection replaces it
		VerifyConnection: func(state tls.ConnectionState) error {
			return verifyPeer(state.PeerCertificates, roots, c.cfg.Identity)
		},
	}
}

func verifyPeer(chain []*x509.Certificate, roots *x509.CertPool, want mesh.Identity) error {
	if len(chain) == 0 {
		return errors.New("verify the broker: it sent no certificate")
	}
	opts := x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, cert := range chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("verify the broker under the mesh's roots: %w", err)
	}
	if uris := chain[0].URIs; len(uris) != 1 || uris[0].String() != want.String() {
		return fmt.Errorf("verify the broker: its certificate is for %q, not for %q", uris, want)
	}
	return nil
}

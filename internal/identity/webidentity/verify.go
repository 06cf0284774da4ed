package webidentity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync"
	"time"
)

// Config is what a Verifier needs.
type Config struct {
	// Audience is the mesh that tokens must be meant for; required.
	Audience string
	// Issuer returns the issuer that is pinned to an account; false means that tokens of the account are not accepted.
	// It is asked for each token. Required.
	Issuer func(account string) (issuer string, ok bool)
	// Endpoint is asked for the documents of issuers instead of the issuers themselves: an emulator of AWS. Only an
	// operator sets it.
	Endpoint string
	// Transport carries requests to issuers; nil means one without proxies and with its own connections.
	Transport http.RoundTripper
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Verifier checks web identity tokens. It is safe for concurrent use.
type Verifier struct {
	cfg   Config
	fetch *fetcher

	mu     sync.Mutex
	caches map[string]*keyCache // guarded by mu; by account, so that there are no more than accounts
}

// maxAccounts bounds the caches of keys of accounts that came and went.
const maxAccounts = 1000

// NewVerifier returns a Verifier. It makes no connection yet.
func NewVerifier(cfg Config) (*Verifier, error) {
	switch {
	case cfg.Audience == "":
		return nil, errors.New("webidentity: Config.Audience is required")
	case cfg.Issuer == nil:
		return nil, errors.New("webidentity: Config.Issuer is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{
			Proxy:               nil, // as for STS: what is behind a proxy of the environment is not AWS
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: fetchTimeout,
			DisableKeepAlives:   true, // requests are minutes apart
		}
	}
	f, err := newFetcher(cfg.Endpoint, cfg.Transport)
	if err != nil {
		return nil, fmt.Errorf("webidentity: Config.Endpoint: %w", err)
	}
	return &Verifier{cfg: cfg, fetch: f, caches: map[string]*keyCache{}}, nil
}

// Verify checks a token that came with a one-time key, in the order of the package comment. An error wraps one of the
// kinds of the package. That a token is used only once is the caller's to see to.
func (v *Verifier) Verify(ctx context.Context, text, key string) (Identity, error) {
	t, err := parse(text)
	if err != nil {
		return Identity{}, err
	}
	issuer, ok := v.cfg.Issuer(t.claims.account)
	switch {
	case !ok:
		return Identity{}, fmt.Errorf("account %s: %w", t.claims.account, ErrNotEnabled)
	case t.claims.issuer != issuer:
		return Identity{}, fmt.Errorf("issuer %.256q is not that of account %s: %w", t.claims.issuer, t.claims.account, ErrNotEnabled)
	}
	if err := t.claims.checkTime(v.cfg.Now()); err != nil {
		return Identity{}, err
	}
	if want := Audience(v.cfg.Audience, key); t.claims.audience != want {
		return Identity{}, fmt.Errorf("audience %.512q, want %q: %w", t.claims.audience, want, ErrAudience)
	}
	public, err := v.cache(t.claims.account, issuer).key(ctx, t.keyID)
	if err != nil {
		return Identity{}, err
	}
	if err := public.verify(t); err != nil {
		return Identity{}, err
	}
	return t.claims.identity()
}

func (v *Verifier) cache(account, issuer string) *keyCache {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := v.caches[account]
	if c != nil && c.issuer == issuer {
		return c
	}
	if len(v.caches) >= maxAccounts {
		clear(v.caches)
	}
	c = &keyCache{issuer: issuer, fetch: v.fetch.keys, now: v.cfg.Now}
	v.caches[account] = c
	return c
}

func (c claims) checkTime(now time.Time) error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch life := c.expires.Sub(c.issued); {
	case life <= 0 || life > MaxLife:
		return fmt.Errorf("a life of %v, at most %v is accepted: %w", life, MaxLife, ErrTime)
	case c.issued.After(now.Add(MaxClockSkew)):
		return fmt.Errorf("issued at %s, the broker's clock says %s: %w", at(c.issued), at(now), ErrTime)
	case c.notBefore.After(now.Add(MaxClockSkew)):
		return fmt.Errorf("not valid before %s, the broker's clock says %s: %w", at(c.notBefore), at(now), ErrTime)
	case !c.expires.After(now.Add(-MaxClockSkew)):
		return fmt.Errorf("expired at %s, the broker's clock says %s: %w", at(c.expires), at(now), ErrTime)
	}
	return nil
}

// rolePattern is the ARN of a role. Tokens exist only in the partition whose issuers are known.
var rolePattern = regexp.MustCompile(`^arn:(aws):iam::([0-9]{12}):role/((?:[!-~]{1,510}/)?)([\w+=,.@-]{1,64})$`)

// identity reads the subject of a token whose signature is good.
func (c claims) identity() (Identity, error) {
	m := rolePattern.FindStringSubmatch(c.subject)
	switch {
	case m == nil:
		return Identity{}, fmt.Errorf("%.256q is not a role: %w", c.subject, ErrSubject)
	case m[2] != c.account:
		return Identity{}, fmt.Errorf("role %.256q is not of account %s: %w", c.subject, c.account, ErrSubject)
	case c.principal != "" && c.principal != c.subject:
		// The subject may be somebody on whose behalf the caller acts; only the caller's own name proves its role.
		return Identity{}, fmt.Errorf("requested by %.256q in the name of %.256q: %w", c.principal, c.subject, ErrSubject)
	case c.foreign != "":
		return Identity{}, fmt.Errorf("the token has the claim %s, so the role is not used by an ECS task: %w", c.foreign, ErrSubject)
	}
	return Identity{Partition: m[1], Account: m[2], RoleName: m[4], RoleARN: c.subject, Region: c.region, Issuer: c.issuer, ID: c.id, Expires: c.expires}, nil
}

package webidentity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Times and sizes of an issuer's keys.
const (
	// KeyLife is how long keys are used before they are fetched again: a key that AWS withdraws counts that long.
	KeyLife = 15 * time.Minute
	// StaleKeyLife is how long keys are used while the issuer cannot be asked.
	StaleKeyLife = 6 * time.Hour
	// RefreshInterval is the least time between two attempts to fetch the keys of an issuer, whatever came of them and
	// whatever key ids tokens name.
	RefreshInterval = 30 * time.Second

	fetchTimeout = 5 * time.Second
	maxDocument  = 64 << 10
)

// fetcher gets the keys of issuers.
type fetcher struct {
	client   *http.Client
	endpoint *url.URL // asked instead of the issuer's host; nil means the issuer
}

func newFetcher(endpoint string, transport http.RoundTripper) (*fetcher, error) {
	f := &fetcher{client: &http.Client{
		Transport: transport, Timeout: fetchTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if endpoint != "" {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fmt.Errorf("%q is not an http(s) URL", endpoint)
		}
		f.endpoint = &url.URL{Scheme: u.Scheme, Host: u.Host}
	}
	return f, nil
}

// keys reads the discovery document of an issuer and the key set that it names, which must be the issuer's own.
func (f *fetcher) keys(ctx context.Context, issuer string) (map[string]publicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	raw, err := f.get(ctx, issuer+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	doc, err := object(raw)
	if err != nil {
		return nil, fmt.Errorf("discovery document of %s: %w", issuer, err)
	}
	if got, _ := str(doc["issuer"]); got != issuer {
		return nil, fmt.Errorf("discovery document of %s is that of %.256q", issuer, got)
	}
	address, _ := str(doc["jwks_uri"])
	if path, ok := strings.CutPrefix(address, issuer+"/"); !ok || strings.ContainsAny(path, "?#\\ ") {
		return nil, fmt.Errorf("discovery document of %s names keys at %.256q, which is not the issuer's", issuer, address)
	}
	if raw, err = f.get(ctx, address); err != nil {
		return nil, err
	}
	keys, err := parseKeys(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", issuer, err)
	}
	return keys, nil
}

func (f *fetcher) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	if f.endpoint != nil {
		req.Host = req.URL.Host
		req.URL.Scheme, req.URL.Host = f.endpoint.Scheme, f.endpoint.Host
	}
	req.Header.Set("Accept", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", address, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("get %s: %w", address, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("get %s: status %d", address, resp.StatusCode)
	case len(raw) > maxDocument:
		return nil, fmt.Errorf("get %s: more than %d bytes", address, maxDocument)
	}
	return raw, nil
}

// keyCache holds the keys of one issuer.
type keyCache struct {
	issuer string
	fetch  func(ctx context.Context, issuer string) (map[string]publicKey, error)
	now    func() time.Time

	mu       sync.Mutex
	keys     map[string]publicKey // guarded by mu
	fetched  time.Time            // guarded by mu: when keys were fetched
	tried    time.Time            // guarded by mu: when that was last attempted
	err      error                // guarded by mu: of the last attempt
	fetching chan struct{}        // guarded by mu; closed when the attempt that is under way ends, nil without one
}

// key returns the key of an id. Keys are fetched when they are old or the id is not among them, but by one caller at a
// time, for which the others wait, and no sooner than RefreshInterval after the last attempt.
func (c *keyCache) key(ctx context.Context, id string) (publicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.keys[id]; ok && c.now().Sub(c.fetched) < KeyLife {
		return k, nil
	}
	if done := c.fetching; done != nil {
		c.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
		}
		c.mu.Lock()
	} else if c.tried.IsZero() || c.now().Sub(c.tried) >= RefreshInterval {
		c.refreshLocked(ctx)
	}
	if c.keys == nil || c.now().Sub(c.fetched) >= StaleKeyLife {
		return publicKey{}, fmt.Errorf("%w: %w", ErrKeys, c.reasonLocked())
	}
	if k, ok := c.keys[id]; ok {
		return k, nil
	}
	if c.err != nil { // the key may be new
		return publicKey{}, fmt.Errorf("%w: %w", ErrKeys, c.err)
	}
	return publicKey{}, fmt.Errorf("the issuer publishes no key %.128q: %w", id, ErrSignature)
}

// refreshLocked fetches the keys without holding the lock. The caller that does it does not take it along when it goes
// away: others wait for it.
func (c *keyCache) refreshLocked(ctx context.Context) {
	done := make(chan struct{})
	c.fetching, c.tried = done, c.now()
	c.mu.Unlock()
	keys, err := c.fetch(context.WithoutCancel(ctx), c.issuer)
	c.mu.Lock()
	c.fetching, c.err = nil, err
	if err == nil {
		c.keys, c.fetched = keys, c.now()
	}
	close(done)
}

func (c *keyCache) reasonLocked() error {
	if c.err != nil {
		return c.err
	}
	return errors.New("they are being fetched")
}

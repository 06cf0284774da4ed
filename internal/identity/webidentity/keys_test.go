package webidentity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

func TestCheckIssuer(t *testing.T) {
	for issuer, ok := range map[string]bool{
		issuer: true,
		"https://abc123-def456.tokens.sts.global.api.aws": true,
		"": false, "https://tokens.sts.global.api.aws": false, "https://.tokens.sts.global.api.aws": false,
		strings.Replace(issuer, "https", "http", 1): false, issuer + "/": false, issuer + ":443": false, issuer + "\n": false,
		issuer + ".evil.example": false, "https://a.b.tokens.sts.global.api.aws": false, "https://evil.example/x.tokens.sts.global.api.aws": false,
		"https://evil.example#.tokens.sts.global.api.aws": false, "https://u@a.tokens.sts.global.api.aws": false, strings.ToUpper(issuer): false,
	} {
		if err := webidentity.CheckIssuer(issuer); (err == nil) != ok {
			t.Errorf("CheckIssuer(%q) = %v, want ok %t", issuer, err, ok)
		}
	}
}

// TestKeysThatMustNotBeUsed has key sets that lack a usable key, beside tokens that are otherwise good.
func TestKeysThatMustNotBeUsed(t *testing.T) {
	k := keys()
	ec := func(change func(map[string]any)) []any {
		jwk := ecJWK("EC384_0", &k.ec.PublicKey)
		change(jwk)
		return []any{jwk}
	}
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	small := ecJWK("EC384_0", &k.ec.PublicKey)
	point, _ := p256.PublicKey.Bytes()
	small["crv"], small["x"], small["y"] = "P-256", b64(point[1:33]), b64(point[33:])
	zero := strings.Repeat("A", 64) // 48 bytes
	many := make([]any, 33)
	for i := range many {
		many[i] = ecJWK(fmt.Sprintf("EC384_%d", i), &k.ec.PublicKey)
	}
	weak := rsaJWK("RSA_0", &k.weak.PublicKey)
	for name, set := range map[string][]any{
		"no keys":                       {},
		"too many keys":                 many,
		"a weak RSA key":                {weak},
		"an even modulus":               {map[string]any{"kty": "RSA", "kid": "RSA_0", "use": "sig", "e": "AQAB", "n": b64(append([]byte{0x80}, make([]byte, 255)...))}},
		"a small exponent":              {map[string]any{"kty": "RSA", "kid": "RSA_0", "use": "sig", "e": "Aw", "n": b64(k.rsa.N.Bytes())}},
		"a modulus with zeros before":   {map[string]any{"kty": "RSA", "kid": "RSA_0", "use": "sig", "e": "AQAB", "n": b64(append([]byte{0}, k.rsa.N.Bytes()...))}},
		"a key without a use":           ec(func(j map[string]any) { delete(j, "use") }),
		"a key for encryption":          ec(func(j map[string]any) { j["use"] = "enc" }),
		"a key of another algorithm":    ec(func(j map[string]any) { j["alg"] = "ES256" }),
		"a key of a null algorithm":     ec(func(j map[string]any) { j["alg"] = nil }),
		"a symmetric key":               {map[string]any{"kty": "oct", "kid": "EC384_0", "use": "sig", "k": "c2VjcmV0"}},
		"a private key":                 ec(func(j map[string]any) { j["d"] = "AQ" }),
		"another curve":                 {small},
		"a point that is not on it":     ec(func(j map[string]any) { j["y"] = j["x"] }),
		"the point at infinity":         ec(func(j map[string]any) { j["x"], j["y"] = zero, zero }),
		"a coordinate that is short":    ec(func(j map[string]any) { j["x"] = b64([]byte{1}) }),
		"a coordinate beyond the prime": ec(func(j map[string]any) { j["x"] = b64([]byte(strings.Repeat("\xff", 48))) }),
		"two keys of one name":          {ecJWK("EC384_0", &k.ec.PublicKey), ecJWK("EC384_0", &p384().PublicKey)},
		"a key without a name":          ec(func(j map[string]any) { delete(j, "kid") }),
		"something that is not a key":   {"EC384_0"},
	} {
		a, c := newAuthority(), newClock()
		a.set(nil, set...)
		if len(set) == 0 {
			a.keys = []any{}
		}
		v := newVerifier(t, a, c)
		for _, d := range []*draft{newDraft(c.Now()), newDraft(c.Now())} {
			if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); !errors.Is(err, webidentity.ErrKeys) {
				t.Errorf("%s: Verify() = %v, want %v", name, err, webidentity.ErrKeys)
			}
		}
	}
	// Beside a good key, one that cannot be used is only left out.
	a, c := newAuthority(), newClock()
	a.set(nil, weak, small, ecJWK("EC384_1", &k.ec.PublicKey), map[string]any{"kty": "AKP", "kid": "PQ_0", "use": "sig"})
	v := newVerifier(t, a, c)
	d := newDraft(c.Now())
	d.header["kid"] = "EC384_1"
	if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); err != nil {
		t.Errorf("a good key among others: %v", err)
	}
	d = newDraft(c.Now())
	d.rs256()
	d.key = k.weak
	if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); !errors.Is(err, webidentity.ErrSignature) {
		t.Errorf("signed with the weak key: %v, want %v", err, webidentity.ErrSignature)
	}
}

func p384() *ecdsa.PrivateKey {
	k, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	return k
}

// TestDocumentsThatMustNotBeBelieved has issuers that answer something else than their documents.
func TestDocumentsThatMustNotBeBelieved(t *testing.T) {
	discovery := func(body string) func(*http.Request) []any {
		return func(r *http.Request) []any {
			if strings.HasSuffix(r.URL.Path, "openid-configuration") {
				return []any{200, body}
			}
			return nil
		}
	}
	jwks := func(answer ...any) func(*http.Request) []any {
		return func(r *http.Request) []any {
			if strings.HasSuffix(r.URL.Path, "jwks.json") {
				return answer
			}
			return nil
		}
	}
	at := func(uri string) string { return `{"issuer":"` + issuer + `","jwks_uri":"` + uri + `"}` }
	for name, answer := range map[string]func(*http.Request) []any{
		"another issuer's":        discovery(`{"issuer":"https://evil.example","jwks_uri":"` + issuer + `/.well-known/jwks.json"}`),
		"keys of another host":    discovery(at("https://evil.example/jwks.json")),
		"keys by the name's end":  discovery(at(issuer + ".evil.example/jwks.json")),
		"keys with a user":        discovery(at("https://" + strings.TrimPrefix(issuer, "https://") + "@evil.example/jwks.json")),
		"keys in the clear":       discovery(at(strings.Replace(issuer, "https", "http", 1) + "/.well-known/jwks.json")),
		"keys at another port":    discovery(at(issuer + ":8443/jwks.json")),
		"keys by a query":         discovery(at(issuer + "/?to=jwks.json")),
		"keys nowhere":            discovery(`{"issuer":"` + issuer + `"}`),
		"two places":              discovery(at(issuer + "/.well-known/jwks.json")[:10] + `","jwks_uri":"https://evil.example","jwks_uri":"` + issuer + `/.well-known/jwks.json"}`),
		"not JSON":                discovery("<html>"),
		"a document without end":  discovery(strings.Repeat(" ", 70<<10) + at(issuer+"/.well-known/jwks.json")),
		"a redirect of discovery": func(*http.Request) []any { return []any{302, "", issuer + "/.well-known/jwks.json"} },
		"a redirect of keys":      jwks(307, "", issuer+"/elsewhere.json"),
		"an error":                jwks(503, "{}"),
		"keys without end":        jwks(200, `{"keys":[`+strings.Repeat(" ", 70<<10)+`]}`),
		"keys that are no list":   jwks(200, `{"keys":{}}`),
		"keys twice":              jwks(200, `{"keys":[],"keys":[]}`),
	} {
		a, c := newAuthority(), newClock()
		a.set(answer)
		v := newVerifier(t, a, c)
		if _, err := v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey); !errors.Is(err, webidentity.ErrKeys) {
			t.Errorf("%s: Verify() = %v, want %v", name, err, webidentity.ErrKeys)
		}
		if n := a.count(); n > 2 {
			t.Errorf("%s: %d requests", name, n)
		}
	}
}

// TestAnotherServerIsNotTheIssuer has a server with a certificate that is good, but not the issuer's.
func TestAnotherServerIsNotTheIssuer(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the request was made") }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	transport, _ := srv.Client().Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, srv.Listener.Addr().String())
	}
	defer transport.CloseIdleConnections()
	c := newClock()
	if _, err := newVerifier(t, transport, c).Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey); !errors.Is(err, webidentity.ErrKeys) {
		t.Errorf("Verify() = %v, want %v", err, webidentity.ErrKeys)
	}
}

func TestUnknownKeysAskTheIssuerOncePerInterval(t *testing.T) {
	a, c := newAuthority(), newClock()
	v := newVerifier(t, a, c)
	flood := func(n int) {
		for i := range n {
			d := newDraft(c.Now())
			d.header["kid"] = fmt.Sprintf("EC384_%d", i+1)
			if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); !errors.Is(err, webidentity.ErrSignature) {
				t.Fatalf("Verify() = %v, want %v", err, webidentity.ErrSignature)
			}
		}
	}
	flood(1000)
	if n := a.count(); n != 2 {
		t.Errorf("1,000 unknown keys made %d requests, want 2", n)
	}
	c.pass(webidentity.RefreshInterval)
	flood(1000)
	if n := a.count(); n != 4 {
		t.Errorf("1,000 more, an interval later, made %d requests in all, want 4", n)
	}
	// A key that AWS has begun to use is found at the next attempt.
	next := p384()
	a.set(nil, ecJWK("EC384_N", &next.PublicKey))
	d := newDraft(c.Now())
	d.header["kid"], d.key = "EC384_N", next
	if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); err == nil {
		t.Error("a new key is known before the issuer was asked")
	}
	c.pass(webidentity.RefreshInterval)
	d = newDraft(c.Now())
	d.header["kid"], d.key = "EC384_N", next
	if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); err != nil {
		t.Errorf("a new key: %v", err)
	}
	// And the one that AWS has withdrawn counts no longer.
	if _, err := v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey); !errors.Is(err, webidentity.ErrSignature) {
		t.Errorf("a withdrawn key: %v, want %v", err, webidentity.ErrSignature)
	}
}

func TestKeysWhileTheIssuerIsAway(t *testing.T) {
	a, c := newAuthority(), newClock()
	v := newVerifier(t, a, c)
	verify := func() error {
		_, err := v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey)
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	away := func(*http.Request) []any { return []any{503, ""} }
	a.set(away)
	c.pass(webidentity.KeyLife - time.Second)
	if err := verify(); err != nil || a.count() != 2 {
		t.Errorf("young keys: %v after %d requests, want none more than 2", err, a.count())
	}
	c.pass(time.Second)
	for range 100 {
		if err := verify(); err != nil {
			t.Fatalf("old keys while the issuer is away: %v", err)
		}
	}
	if n := a.count(); n != 3 {
		t.Errorf("%d requests, want one failed attempt after the first two", n)
	}
	d := newDraft(c.Now())
	d.header["kid"] = "EC384_N"
	if _, err := v.Verify(t.Context(), d.sign(), oneTimeKey); !errors.Is(err, webidentity.ErrKeys) {
		t.Errorf("an unknown key while the issuer is away: %v, want %v: it may be a good one", err, webidentity.ErrKeys)
	}
	c.pass(webidentity.StaleKeyLife - webidentity.KeyLife)
	if err := verify(); !errors.Is(err, webidentity.ErrKeys) {
		t.Errorf("very old keys: %v, want %v", err, webidentity.ErrKeys)
	}
	a.set(nil)
	c.pass(webidentity.RefreshInterval)
	if err := verify(); err != nil {
		t.Errorf("when the issuer is back: %v", err)
	}
}

// slow is an issuer that does not answer until it may.
type slow struct {
	*authority
	begun chan struct{}
	may   chan struct{}
}

func (s *slow) RoundTrip(r *http.Request) (*http.Response, error) {
	s.begun <- struct{}{}
	select {
	case <-s.may:
		return s.authority.RoundTrip(r)
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

func TestManyCallersFetchOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{authority: newAuthority(), begun: make(chan struct{}, 1000), may: make(chan struct{})}
		c := newClock()
		v := newVerifier(t, s, c)
		text := newDraft(c.Now()).sign()
		var wg sync.WaitGroup
		errs := make(chan error, 100)
		verify := func() {
			_, err := v.Verify(t.Context(), text, oneTimeKey)
			errs <- err
		}
		first, leave := context.WithCancel(t.Context())
		wg.Go(func() { _, _ = v.Verify(first, text, oneTimeKey) })
		<-s.begun // this one fetches, the others wait for it
		for range 100 {
			wg.Go(verify)
		}
		gone, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := v.Verify(gone, text, oneTimeKey); err == nil {
				t.Error("a caller that went away was not let go")
			}
		})
		synctest.Wait()
		cancel()
		leave() // it takes nothing along
		synctest.Wait()
		close(s.may)
		wg.Wait()
		for range 100 {
			if err := <-errs; err != nil {
				t.Errorf("Verify() = %v", err)
			}
		}
		if n := s.count(); n != 2 {
			t.Errorf("%d requests of 102 callers, want 2", n)
		}
	})
}

// TestAnIssuerThatDoesNotAnswer bounds how long a caller waits.
func TestAnIssuerThatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slow{authority: newAuthority(), begun: make(chan struct{}, 1000), may: make(chan struct{})}
		c := newClock()
		v := newVerifier(t, s, c)
		start := time.Now()
		_, err := v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey)
		if took := time.Since(start); !errors.Is(err, webidentity.ErrKeys) || took > 5*time.Second {
			t.Errorf("Verify() = %v after %v", err, took)
		}
		start = time.Now()
		_, err = v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey)
		if took := time.Since(start); !errors.Is(err, webidentity.ErrKeys) || took > 0 {
			t.Errorf("the next Verify() = %v after %v, want an answer at once", err, took)
		}
	})
}

// TestEndpoint has an emulator answer for the issuer: the request goes there, but is for the issuer's host.
func TestEndpoint(t *testing.T) {
	a, c := newAuthority(), newClock()
	var hosts []string
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		hosts = append(hosts, r.URL.Scheme+" "+r.URL.Host+" "+r.Host)
		r.URL.Host = r.Host
		return a.RoundTrip(r)
	})
	v, err := webidentity.NewVerifier(webidentity.Config{Audience: mesh, Issuer: pinned, Endpoint: "http://10.0.0.1:4566/x", Transport: transport, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey); err != nil {
		t.Fatal(err)
	}
	want := "http 10.0.0.1:4566 " + strings.TrimPrefix(issuer, "https://")
	if len(hosts) != 2 || hosts[0] != want || hosts[1] != want {
		t.Errorf("requests to %q, want two to %q", hosts, want)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

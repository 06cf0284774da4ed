package webidentity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

const (
	account  = "123456789012"
	issuer   = "https://a103a2cc-b461-473d-84fe-6c4f6d45af88.tokens.sts.global.api.aws"
	role     = "arn:aws:iam::123456789012:role/ecs/ambient/shop-web"
	mesh     = "cluster.local"
	awsSpace = "https://sts.amazonaws.com/"
)

const oneTimeKey = "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// Key generation is slow: the tests share these, which is what an issuer's keys are anyway.
var keys = sync.OnceValue(func() (k struct {
	rsa, weak *rsa.PrivateKey
	ec        *ecdsa.PrivateKey
}) {
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.weak, _ = rsa.GenerateKey(rand.Reader, 1024)
	k.ec, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	return k
})

// authority is AWS as the verifier sees it: the issuer's two documents. It is a http.RoundTripper.
type authority struct {
	mu       sync.Mutex
	keys     []any                     // guarded by mu
	answer   func(*http.Request) []any // guarded by mu: status, body, location; nil means the documents
	requests int                       // guarded by mu
}

func newAuthority() *authority {
	return &authority{keys: []any{rsaJWK("RSA_0", &keys().rsa.PublicKey), ecJWK("EC384_0", &keys().ec.PublicKey)}}
}

func (a *authority) set(answer func(*http.Request) []any, keys ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
	if keys != nil {
		a.keys = keys
	}
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

func (a *authority) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	w := httptest.NewRecorder()
	if a.answer != nil {
		if ans := a.answer(r); ans != nil {
			if len(ans) > 2 {
				w.Header().Set("Location", ans[2].(string))
			}
			w.WriteHeader(ans[0].(int))
			fmt.Fprint(w, ans[1])
			return w.Result(), nil
		}
	}
	host := "https://" + r.URL.Host
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": host, "jwks_uri": host + "/.well-known/jwks.json", "id_token_signing_alg_values_supported": []string{"RS256", "ES384"}})
	case "/.well-known/jwks.json":
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": a.keys})
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	return w.Result(), nil
}

func b64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

func rsaJWK(id string, k *rsa.PublicKey) map[string]any {
	return map[string]any{"kty": "RSA", "kid": id, "use": "sig", "e": "AQAB", "n": b64(k.N.Bytes())}
}

func ecJWK(id string, k *ecdsa.PublicKey) map[string]any {
	point, _ := k.Bytes()
	return map[string]any{"kty": "EC", "kid": id, "use": "sig", "alg": "ES384", "crv": "P-384", "x": b64(point[1:49]), "y": b64(point[49:])}
}

// draft is a token that is being made; tests change what they attack.
type draft struct {
	header, claims, aws map[string]any
	payload             string // replaces the claims
	key                 any    // what signs; nil means the key of the header's kid
}

func newDraft(now time.Time) *draft {
	d := &draft{
		header: map[string]any{"alg": "ES384", "kid": "EC384_0", "typ": "JWT"},
		claims: map[string]any{
			"iss": issuer, "sub": role, "aud": webidentity.Audience(mesh, oneTimeKey), "jti": "5b1d7d2c-7a0f-4f5c-9d31-0c0f6b3a7e11",
			"iat": now.Unix(), "exp": now.Add(time.Minute).Unix(),
		},
		aws: map[string]any{
			"aws_account": account, "source_region": "us-east-2", "principal_id": role, "org_id": "o-abc1234567",
			"ou_path": []string{"o-abc1234567/r-ab12/"}, "original_session_exp": "2026-11-29T12:00:00Z",
		},
	}
	d.claims[awsSpace] = d.aws
	return d
}

func (d *draft) sign() string {
	header, _ := json.Marshal(d.header)
	payload, _ := json.Marshal(d.claims)
	if d.payload != "" {
		payload = []byte(d.payload)
	}
	return d.signParts(b64(header), b64(payload))
}

func (d *draft) signParts(header, payload string) string {
	text := header + "." + payload
	key := d.key
	if key == nil {
		key = keys().ec
		if d.header["alg"] == "RS256" {
			key = keys().rsa
		}
	}
	var sig []byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		sum := sha512.Sum384([]byte(text))
		r, s, _ := ecdsa.Sign(rand.Reader, k, sum[:])
		size := (k.Params().BitSize + 7) / 8
		sig = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		sum := sha256.Sum256([]byte(text))
		sig, _ = rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:])
	case func(string) []byte:
		sig = k(text)
	}
	return text + "." + b64(sig)
}

func (d *draft) rs256() { d.header["alg"], d.header["kid"] = "RS256", "RSA_0" }

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)} }

func pinned(acct string) (string, bool) { return issuer, acct == account }

func newVerifier(t *testing.T, a http.RoundTripper, c *clock) *webidentity.Verifier {
	t.Helper()
	v, err := webidentity.NewVerifier(webidentity.Config{Audience: mesh, Issuer: pinned, Transport: a, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// negate returns the other signature that ECDSA has for the same text.
func negate(token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	sig, _ := base64.RawURLEncoding.DecodeString(token[at:])
	s := new(big.Int).Sub(elliptic.P384().Params().N, new(big.Int).SetBytes(sig[48:]))
	s.FillBytes(sig[48:])
	return token[:at] + b64(sig)
}

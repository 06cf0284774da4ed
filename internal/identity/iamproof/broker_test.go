package iamproof_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

var brokerID = meshtest.ID("istio-system", "isthmus-controller")

// broker answers token requests over TLS with a workload's certificate. handle is called for each valid proof.
type broker struct {
	*httptest.Server
	mu     sync.Mutex
	sni    []string
	proofs []iamproof.Proof
}

func newBroker(t *testing.T, ca *meshtest.CA, id mesh.Identity, ttl time.Duration, handle http.HandlerFunc) *broker {
	t.Helper()
	b := &broker{}
	b.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		p, err := iamproof.ParseProof(text)
		if err != nil || r.URL.Path != iamproof.TokenPath || r.Method != http.MethodPost {
			t.Errorf("request %s %s: %v", r.Method, r.URL, err)
		}
		b.mu.Lock()
		b.proofs = append(b.proofs, p)
		b.mu.Unlock()
		handle(w, r.WithContext(context.WithValue(r.Context(), proofOf{}, p)))
	}))
	cert := ca.IssueFor(t, id, ttl)
	b.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		b.mu.Lock()
		b.sni = append(b.sni, hello.ServerName)
		b.mu.Unlock()
		return &tls.Config{Certificates: []tls.Certificate{cert.TLS}}, nil
	}}
	b.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that fail on purpose
	b.StartTLS()
	t.Cleanup(b.Close)
	return b
}

func (b *broker) requests() []iamproof.Proof {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]iamproof.Proof(nil), b.proofs...)
}

// proofOf is the key of the request's proof in its context.
type proofOf struct{}

// respond answers with JSON, or with a token that is sealed to the proof.
func respond(status int, body any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		text, err := json.Marshal(body)
		if answer, ok := body.(iamproof.TokenResponse); ok {
			p, _ := r.Context().Value(proofOf{}).(iamproof.Proof)
			text, err = iamproof.Seal(p.Key, answer)
		}
		if err != nil {
			status = http.StatusInternalServerError
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(text)
	}
}

func token(life time.Duration) iamproof.TokenResponse {
	return iamproof.TokenResponse{
		Token: "header.payload.signature", Expiration: time.Now().Add(life), Namespace: "ecs-demo-1", ServiceAccount: "sa",
		WorkloadName: "ecs-task-1", TrustDomain: "cluster.local", ClusterID: "Kubernetes", Network: "eks",
	}
}

func brokerConfig(address string, ca *meshtest.CA) iamproof.BrokerConfig {
	return iamproof.BrokerConfig{
		Address: address, ServerName: "isthmus-broker.istio-system.svc", Identity: brokerID, Roots: ca.RootsFunc,
		Credentials: credentials.NewStaticCredentialsProvider(keyID, secret, session), Region: region, Audience: audience,
		Log: meshtest.Discard(),
	}
}

func newClient(t *testing.T, cfg iamproof.BrokerConfig) *iamproof.BrokerClient {
	t.Helper()
	c, err := iamproof.NewBrokerClient(cfg)
	if err != nil {
		t.Fatalf("NewBrokerClient() = %v", err)
	}
	return c
}

func TestBrokerClient(t *testing.T) {
	ca := meshtest.NewCA(t)
	b := newBroker(t, ca, brokerID, time.Hour, respond(200, token(time.Hour)))
	c := newClient(t, brokerConfig(b.URL, ca))
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			got, err := c.Token(t.Context())
			if err != nil || got.Token != "header.payload.signature" || got.WorkloadName != "ecs-task-1" {
				t.Errorf("Token() = %+v, %v", got, err)
			}
		})
	}
	all.Wait()
	if n := len(b.requests()); n != 1 {
		t.Errorf("%d requests for five calls, want 1", n)
	}
	if b.sni[0] != "isthmus-broker.istio-system.svc" {
		t.Errorf("SNI %q", b.sni[0])
	}
	p := b.requests()[0]
	if err := p.Validate(time.Now()); err != nil {
		t.Errorf("proof: %v", err)
	}
	req, err := p.Request(audience, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := verifySigV4(req, secret); err != nil {
		t.Errorf("proof: %v", err)
	}
}

func TestBrokerIsVerified(t *testing.T) {
	ca, stranger := meshtest.NewCA(t), meshtest.NewCA(t)
	tests := []struct {
		name, want string
		ca         *meshtest.CA
		id         mesh.Identity
		ttl        time.Duration
	}{
		{"another identity", "its certificate is for", ca, meshtest.ID("istio-system", "other"), time.Hour},
		{"another trust domain", "its certificate is for", ca, mesh.Identity{TrustDomain: "evil", Namespace: "istio-system", ServiceAccount: "isthmus-controller"}, time.Hour},
		{"another root", "under the mesh's roots", stranger, brokerID, time.Hour},
		{"expired", "expired", ca, brokerID, -time.Minute},
	}
	for _, tt := range tests {
		b := newBroker(t, tt.ca, tt.id, tt.ttl, respond(200, token(time.Hour)))
		_, err := newClient(t, brokerConfig(b.URL, ca)).Token(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Token() = %v, want an error with %q", tt.name, err, tt.want)
		}
		if n := len(b.requests()); n != 0 {
			t.Errorf("%s: the proof was sent to a broker that is not verified", tt.name)
		}
	}
}

func TestBrokerAnswers(t *testing.T) {
	ca := meshtest.NewCA(t)
	noName := token(time.Hour)
	noName.WorkloadName = ""
	header := token(time.Hour)
	header.Token = "a\r\nb"
	tests := []struct {
		name, want string
		handle     http.HandlerFunc
	}{
		{"refusal", "the broker refused: task is not known [IST2202]", respond(403, iamproof.TokenError{Code: "IST2202", Message: "task is not known"})},
		{"no JSON", "status 502: Bad Gateway", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }},
		{"redirect", "status 307", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "https://evil.example.com/", 307) }},
		{"expired token", "expired at", respond(200, token(-time.Second))},
		{"no name", "does not say who", respond(200, noName)},
		{"unusable token", "no usable token", respond(200, header)},
		{"not sealed", "open the broker's answer", respond(200, map[string]any{"token": "a", "namespace": "b", "serviceAccount": "c", "workloadName": "d"})},
		{"garbage", "open the broker's answer", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{")) }},
		{"endless", "more than 65536 bytes", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 70000)) }},
	}
	for _, tt := range tests {
		b := newBroker(t, ca, brokerID, time.Hour, tt.handle)
		_, err := newClient(t, brokerConfig(b.URL, ca)).Token(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Token() = %v, want an error with %q", tt.name, err, tt.want)
		}
		var refusal *iamproof.TokenError
		if tt.name == "refusal" && (!errors.As(err, &refusal) || refusal.Code != "IST2202" || refusal.Status != 403) {
			t.Errorf("refusal = %+v", refusal)
		}
	}
}

// failing counts how often credentials are asked for, and gives none: the cheapest way to see attempts.
type failing struct{ calls int }

func (f *failing) Retrieve(context.Context) (aws.Credentials, error) {
	f.calls++
	return aws.Credentials{}, errors.New("no credentials")
}

func TestBrokerIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := brokerConfig("https://127.0.0.1:1", meshtest.NewCA(t))
		provider := &failing{}
		cfg.Credentials = provider
		c := newClient(t, cfg)
		for range 600 { // a minute of a caller that retries ten times a second
			if _, err := c.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "no credentials") {
				t.Fatalf("Token() = %v, want the cause", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if provider.calls < 6 || provider.calls > 13 {
			t.Errorf("%d attempts in a minute, want 6 to 13", provider.calls)
		}
	})
}

func TestTokenIsRefreshedAndSurvivesAnOutage(t *testing.T) {
	ca := meshtest.NewCA(t)
	var mu sync.Mutex
	handle := respond(200, token(3*time.Second))
	b := newBroker(t, ca, brokerID, time.Hour, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		handle(w, r)
	})
	c := newClient(t, brokerConfig(b.URL, ca))
	meshtest.Run(t, c.Run)
	meshtest.Eventually(t, "a token", func() bool { return len(b.requests()) == 1 })
	mu.Lock()
	handle = respond(503, iamproof.TokenError{Code: "IST2210", Message: "starting"})
	mu.Unlock()
	meshtest.Eventually(t, "an attempt to refresh before the end", func() bool { return len(b.requests()) >= 2 })
	if got, err := c.Token(t.Context()); err != nil || got.Token == "" {
		t.Errorf("Token() during an outage = %+v, %v, want the present token", got, err)
	}
	mu.Lock()
	handle = respond(200, token(time.Hour))
	mu.Unlock()
	meshtest.Eventually(t, "a new token", func() bool {
		got, err := c.Token(t.Context())
		return err == nil && time.Until(got.Expiration) > time.Minute
	})
}

func TestNewBrokerClientNamesWhatIsWrong(t *testing.T) {
	ca := meshtest.NewCA(t)
	tests := map[string]func(*iamproof.BrokerConfig){
		"Address":     func(c *iamproof.BrokerConfig) { c.Address = "http://broker:443" },
		"ServerName":  func(c *iamproof.BrokerConfig) { c.ServerName = "" },
		"Identity":    func(c *iamproof.BrokerConfig) { c.Identity = mesh.Identity{} },
		"Roots":       func(c *iamproof.BrokerConfig) { c.Roots = nil },
		"Credentials": func(c *iamproof.BrokerConfig) { c.Credentials = nil },
		"Region":      func(c *iamproof.BrokerConfig) { c.Region = "nowhere" },
		"Audience":    func(c *iamproof.BrokerConfig) { c.Audience = "" },
		"Log":         func(c *iamproof.BrokerConfig) { c.Log = nil },
	}
	for field, change := range tests {
		cfg := brokerConfig("https://broker:443", ca)
		change(&cfg)
		if _, err := iamproof.NewBrokerClient(cfg); err == nil || !strings.Contains(err.Error(), "BrokerConfig."+field) {
			t.Errorf("NewBrokerClient() without %s = %v", field, err)
		}
	}
}

func TestCredentialsFromEnvironment(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/credentials/uuid" || r.Header.Get("Authorization") != "Bearer t" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		respond(200, map[string]string{"AccessKeyId": keyID, "SecretAccessKey": secret, "Token": session,
			"Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})(w, r)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		env  map[string]string
		want string // of the error; "" means the credentials come
	}{
		{"full URI", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": server.URL + "/v2/credentials/uuid", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Bearer t"}, ""},
		{"full URI by name", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://localhost:" + u.Port() + "/v2/credentials/uuid", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Bearer t"}, ""},
		{"static", map[string]string{"AWS_ACCESS_KEY_ID": keyID, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": session}, ""},
		{"nothing", nil, "does the task have a task role?"},
		{"relative without a slash", map[string]string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "@evil.example.com/"}, "slash"},
		{"foreign host", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://evil.example.com/"}, "plain http"},
		{"another link-local host", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.169.254/"}, "plain http"},
		{"another scheme", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "ftp://localhost/"}, "scheme"},
		{"no URL", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "::"}, "not a URL"},
	}
	for _, tt := range tests {
		p, err := iamproof.CredentialsFromEnvironment(func(k string) string { return tt.env[k] })
		if tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got, err := p.Retrieve(t.Context())
		if err != nil || got.AccessKeyID != keyID || got.SessionToken != session {
			t.Errorf("%s: Retrieve() = %+v, %v", tt.name, got, err)
		}
	}
}

func TestRejectedTokenIsReplaced(t *testing.T) {
	ca := meshtest.NewCA(t)
	var n atomic.Int32
	b := newBroker(t, ca, brokerID, time.Hour, func(w http.ResponseWriter, r *http.Request) {
		answer := token(time.Hour)
		answer.Token = fmt.Sprintf("token-%d", n.Add(1))
		respond(200, answer)(w, r)
	})
	c := newClient(t, brokerConfig(b.URL, ca))
	get := func() string {
		got, err := c.Token(t.Context())
		if err != nil {
			t.Fatalf("Token() = %v", err)
		}
		return got.Token
	}
	if got := get(); got != "token-1" {
		t.Fatalf("Token() = %s", got)
	}
	c.Rejected("token-1")
	if got := get(); got != "token-1" {
		t.Errorf("a token that was rejected when new was replaced by %s at once", got)
	}
	iamproof.Age(c, time.Minute)
	c.Rejected("token-0")
	if got := get(); got != "token-1" {
		t.Errorf("the rejection of another token replaced it by %s", got)
	}
	c.Rejected("token-1")
	if got := get(); got != "token-2" {
		t.Errorf("Token() after a rejection = %s, want another", got)
	}
}

// The token for the credentials endpoint is one line of a few KiB.
func TestAuthTokenFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(strings.Repeat("t", 16<<10+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1/", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": path}
	p, err := iamproof.CredentialsFromEnvironment(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Retrieve(t.Context()); err == nil || !strings.Contains(err.Error(), "does not hold a single-line token") {
		t.Errorf("Retrieve() = %v", err)
	}
}

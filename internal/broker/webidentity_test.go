package broker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

const issuerURL = "https://a103a2cc-b461-473d-84fe-6c4f6d45af88.tokens.sts.global.api.aws"

// issuer is AWS's issuer of the account. It is a http.RoundTripper.
type issuer struct {
	key *ecdsa.PrivateKey

	mu   sync.Mutex
	away bool // guarded by mu
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.away {
		return nil, errors.New("no route to host")
	}
	point, _ := i.key.PublicKey.Bytes()
	b64 := base64.RawURLEncoding.EncodeToString
	text := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-384","use":"sig","alg":"ES384","kid":"EC384_0","x":%q,"y":%q}]}`, b64(point[1:49]), b64(point[49:]))
	if strings.HasSuffix(r.URL.Path, "openid-configuration") {
		text = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, issuerURL, issuerURL+"/.well-known/jwks.json")
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

// webWorld is a world whose account accepts web identity tokens.
type webWorld struct {
	*world
	issuer *issuer
	on     bool
	users  []string
	usesOf error
	n      int
}

func (w *webWorld) RoleUse(acct, role string) ([]string, error) {
	if acct != account || role != "eks-ecs-task-role" {
		w.t.Errorf("RoleUse(%q, %q)", acct, role)
	}
	return w.users, w.usesOf
}

func newWebWorld(t *testing.T) *webWorld {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &webWorld{issuer: &issuer{key: key}, on: true, users: []string{"ecs-demo-1/ecs-demo-sa-local"}}
	w.world = newWorld(t, func(c *Config) {
		c.WebIdentity = &WebIdentity{
			Issuer: func(a string) (string, bool) { return issuerURL, w.on && a == account }, Roles: w, Transport: w.issuer,
		}
	})
	return w
}

// token has STS sign a token for a key; change may be nil.
func (w *webWorld) token(key string, change func(claims, aws map[string]any)) string {
	w.t.Helper()
	w.n++
	aws := map[string]any{"aws_account": account, "source_region": region, "principal_id": roleARN}
	claims := map[string]any{
		"iss": issuerURL, "sub": roleARN, "aud": webidentity.Audience(audience, key), "jti": fmt.Sprintf("token-%06d", w.n),
		"iat": w.now.Unix(), "exp": w.now.Add(time.Minute).Unix(), "https://sts.amazonaws.com/": aws,
	}
	if change != nil {
		change(claims, aws)
	}
	payload, _ := json.Marshal(claims)
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES384","kid":"EC384_0","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	sum := sha512.Sum384([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, w.issuer.key, sum[:])
	if err != nil {
		w.t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...))
}

func (w *webWorld) key() iamproof.OneTimeKey {
	w.t.Helper()
	k, err := iamproof.NewOneTimeKey()
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// show posts a proof and opens the answer with the key.
func (w *webWorld) show(p webidentity.Proof, key iamproof.OneTimeKey) (answer iamproof.TokenResponse, refused diag.Code, status int) {
	w.t.Helper()
	body, _ := json.Marshal(p)
	rec := httptest.NewRecorder()
	w.broker.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, webidentity.TokenPath, strings.NewReader(string(body))))
	if logged := w.log.String() + rec.Body.String(); p.Token != "" && strings.Contains(logged, p.Token[strings.LastIndexByte(p.Token, '.')+1:]) {
		w.t.Errorf("the token is repeated:\n%s", logged)
	}
	if rec.Code != http.StatusOK {
		return answer, diag.Code(w.refusal(rec).Code), rec.Code
	}
	answer, err := key.Open(rec.Body.Bytes())
	if err != nil {
		w.t.Fatalf("the asker cannot open %q: %v", rec.Body, err)
	}
	return answer, "", rec.Code
}

func TestTokenIsIssuedForAWebIdentity(t *testing.T) {
	w := newWebWorld(t)
	key := w.key()
	got, refused, status := w.show(webidentity.Proof{Token: w.token(key.Public(), nil), TaskID: task1, Key: key.Public()}, key)
	if status != http.StatusOK {
		t.Fatalf("status %d, %s\n%s", status, refused, w.log)
	}
	got.Expiration = time.Time{}
	want := iamproof.TokenResponse{
		Token: "token/ecs-demo-1/ecs-demo-sa-local/isthmus-task-" + task1, Namespace: "ecs-demo-1", ServiceAccount: "ecs-demo-sa-local",
		WorkloadName: "ecs-task-" + task1, TaskARN: demoTask(task1, "ecs-demo-1").ARN, TrustDomain: "cluster.local", ClusterID: "Kubernetes", Network: "eks",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := w.sts.callCount(); n != 0 {
		t.Errorf("STS was asked %d times for a token that it has signed", n)
	}
}

// TestWebIdentityAttacks has what each step of the second method refuses.
func TestWebIdentityAttacks(t *testing.T) {
	claim := func(key string, value any) func(*webWorld, map[string]any, map[string]any) {
		return func(_ *webWorld, claims, _ map[string]any) { claims[key] = value }
	}
	other := "arn:aws:iam::123456789012:role/other"
	tests := []struct {
		name   string
		world  func(*webWorld)
		change func(w *webWorld, claims, aws map[string]any)
		task   string
		code   diag.Code
	}{
		{"the account does not accept it", func(w *webWorld) { w.on = false }, nil, task1, diag.WebIdentityOff},
		{"another issuer", nil, claim("iss", strings.Replace(issuerURL, "a103", "b204", 1)), task1, diag.WebIdentityOff},
		{"another account", nil, func(_ *webWorld, _, aws map[string]any) { aws["aws_account"] = "999999999999" }, task1, diag.WebIdentityOff},
		{"no subject", nil, claim("sub", nil), task1, diag.WebTokenMalformed},
		{"expired", nil, func(w *webWorld, claims, _ map[string]any) {
			claims["iat"], claims["exp"] = w.now.Add(-time.Hour).Unix(), w.now.Add(-59*time.Minute).Unix()
		}, task1, diag.WebTokenExpired},
		{"another mesh", nil, claim("aud", "isthmus-broker/other/key"), task1, diag.WebTokenForeign},
		{"a forged signature", func(w *webWorld) {
			key := w.key()
			w.show(webidentity.Proof{Token: w.token(key.Public(), nil), TaskID: task2, Key: key.Public()}, key) // after this the broker knows the keys
			w.issuer.key, _ = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		}, nil, task1, diag.WebTokenForged},
		{"in the name of a role", nil, func(_ *webWorld, _, aws map[string]any) { aws["principal_id"] = other }, task1, diag.WebTokenSubject},
		{"the issuer is away", func(w *webWorld) { w.issuer.away = true }, nil, task1, diag.IssuerKeysUnknown},
		{"another role's task", func(w *webWorld) { w.dir.change(task1, func(x *Task) { x.RoleARN = other }) }, nil, task1, diag.TaskRoleMismatch},
		{"a task that has stopped", func(w *webWorld) { w.dir.change(task1, func(x *Task) { x.LastStatus = "STOPPED" }) }, nil, task1, diag.TaskNotServing},
		{"a task that does not exist", nil, nil, strings.Repeat("f", 32), diag.TaskUnknown},
		{"a task with another service account", nil, nil, task2, diag.RoleAmbiguous},
		{"a role of two service accounts", func(w *webWorld) { w.users = append(w.users, "ecs-demo-2/ecs-demo-sa-local") }, nil, task1, diag.RoleAmbiguous},
		{"a role of something that is none", func(w *webWorld) {
			w.users = append(w.users, "service cron of cluster ecs-demo-1, which names no service account")
		}, nil, task1, diag.RoleAmbiguous},
		{"not everything is known", func(w *webWorld) { w.usesOf = errors.New("us-west-2 was never read") }, nil, task1, diag.DiscoveryUnavailable},
		{"tags that name another", func(w *webWorld) { w.users = append(w.users, "bank/admin") }, func(_ *webWorld, _, aws map[string]any) {
			aws["request_tags"] = map[string]string{"namespace": "bank", "service-account": "admin"}
		}, task1, diag.RoleAmbiguous},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWebWorld(t)
			if tt.world != nil {
				tt.world(w)
			}
			key := w.key()
			text := w.token(key.Public(), func(claims, aws map[string]any) {
				if tt.change != nil {
					tt.change(w, claims, aws)
				}
			})
			_, got, _ := w.show(webidentity.Proof{Token: text, TaskID: tt.task, Key: key.Public()}, key)
			if got != tt.code {
				t.Errorf("refused with %q, want %q\n%s", got, tt.code, w.log)
			}
			if !strings.Contains(w.log.String(), "code="+string(tt.code)) || w.outcomes[len(w.outcomes)-1] != tt.code {
				t.Errorf("the refusal is not logged or counted:\n%s", w.log)
			}
		})
	}
}

// TestCopiedWebIdentity shows a copy of a proof: again, with another key, and to another replica.
func TestCopiedWebIdentity(t *testing.T) {
	w := newWebWorld(t)
	key, thief := w.key(), w.key()
	p := webidentity.Proof{Token: w.token(key.Public(), nil), TaskID: task1, Key: key.Public()}
	stolen := p
	stolen.Key = thief.Public()
	if _, got, _ := w.show(stolen, thief); got != diag.WebTokenForeign {
		t.Errorf("with the thief's own key: %q, want %q", got, diag.WebTokenForeign)
	}
	if _, refused, status := w.show(p, key); status != http.StatusOK {
		t.Fatalf("the owner: %d %s", status, refused)
	}
	if _, got, _ := w.show(p, key); got != diag.ProofReplayed {
		t.Errorf("a second time: %q, want %q", got, diag.ProofReplayed)
	}
	w.now = w.now.Add(50 * time.Second)
	if _, got, _ := w.show(p, key); got != diag.ProofReplayed {
		t.Errorf("a second time, later: %q, want %q", got, diag.ProofReplayed)
	}
	w.now = w.now.Add(webidentity.ReplayWindow)
	if _, got, _ := w.show(p, key); got != diag.WebTokenExpired {
		t.Errorf("when it is forgotten: %q, want %q", got, diag.WebTokenExpired)
	}
	// Another replica does not know that it was used, and seals its answer to the owner's key.
	w.now = w.now.Add(-webidentity.ReplayWindow)
	second := newWebWorld(t)
	second.issuer, second.now = w.issuer, w.now
	second.broker.web.verifier, _ = webidentity.NewVerifier(webidentity.Config{Audience: audience, Issuer: func(string) (string, bool) { return issuerURL, true }, Transport: w.issuer, Now: func() time.Time { return w.now }})
	body, _ := json.Marshal(p)
	rec := httptest.NewRecorder()
	second.broker.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, webidentity.TokenPath, strings.NewReader(string(body))))
	if _, err := thief.Open(rec.Body.Bytes()); rec.Code != http.StatusOK || err == nil {
		t.Errorf("status %d, and the thief opens it with %v", rec.Code, err)
	}
	if _, err := key.Open(rec.Body.Bytes()); err != nil {
		t.Errorf("the owner cannot open it: %v", err)
	}
}

func TestMalformedWebIdentityRequests(t *testing.T) {
	w := newWebWorld(t)
	key := w.key()
	good := webidentity.Proof{Token: w.token(key.Public(), nil), TaskID: task1, Key: key.Public()}
	text := func(p webidentity.Proof) string { b, _ := json.Marshal(p); return string(b) }
	for name, body := range map[string]string{
		"empty":              "",
		"a field more":       strings.Replace(text(good), "{", `{"role":"admin",`, 1),
		"a field twice":      strings.Replace(text(good), "{", `{"taskId":"`+task2+`",`, 1),
		"no key":             text(webidentity.Proof{Token: good.Token, TaskID: task1}),
		"a key of low order": text(webidentity.Proof{Token: good.Token, TaskID: task1, Key: base64.StdEncoding.EncodeToString(make([]byte, 32))}),
		"no task":            text(webidentity.Proof{Token: good.Token, Key: good.Key}),
		"a task by its ARN":  text(webidentity.Proof{Token: good.Token, Key: good.Key, TaskID: demoTask(task1, "ecs-demo-1").ARN}),
	} {
		rec := httptest.NewRecorder()
		w.broker.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, webidentity.TokenPath, strings.NewReader(body)))
		if got := w.refusal(rec).Code; rec.Code != 400 || diag.Code(got) != diag.RequestMalformed {
			t.Errorf("%s: %d %s, want 400 %s", name, rec.Code, got, diag.RequestMalformed)
		}
	}
	// The second method has a path of its own, and none where it is not wanted.
	off := newWorld(t, nil)
	rec := httptest.NewRecorder()
	off.broker.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, webidentity.TokenPath, strings.NewReader(text(good))))
	if rec.Code != 404 {
		t.Errorf("a broker without the method answers with status %d", rec.Code)
	}
	if rec := w.post([]byte(text(good))); rec.Code != 400 {
		t.Errorf("a web identity at the first method's path: status %d", rec.Code)
	}
}

func TestFullMemoryOfWebIdentities(t *testing.T) {
	w := newWebWorld(t)
	w.broker.web.replays = newReplayCache(1)
	for i, want := range []diag.Code{"", diag.BrokerBusy} {
		key := w.key()
		if _, got, _ := w.show(webidentity.Proof{Token: w.token(key.Public(), nil), TaskID: task1, Key: key.Public()}, key); got != want {
			t.Errorf("token %d: %q, want %q", i+1, got, want)
		}
	}
}

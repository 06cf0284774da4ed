package controller

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// callers is an STS that signs again what it receives and says whose key it was.
type callers struct {
	mu   sync.Mutex
	keys map[string]caller // guarded by mu; by access key id
}

type caller struct {
	creds aws.Credentials
	arn   string
}

func (c *callers) of(arn string) aws.Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	creds := aws.Credentials{AccessKeyID: fmt.Sprintf("ASIAAAAAAAAAAAAA%c%c", 'A'+len(c.keys)/26, 'A'+len(c.keys)%26), SecretAccessKey: "secret of " + arn, SessionToken: "token"}
	c.keys[creds.AccessKeyID] = caller{creds, arn}
	return creds
}

func (c *callers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var scope, signed, signature string
	for _, part := range strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 "), ", ") {
		k, v, _ := strings.Cut(part, "=")
		switch k {
		case "Credential":
			scope = v
		case "SignedHeaders":
			signed = v
		case "Signature":
			signature = v
		}
	}
	key, rest, _ := strings.Cut(scope, "/")
	c.mu.Lock()
	who, ok := c.keys[key]
	c.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.RequestURI(), bytes.NewReader(body))
	date, dateErr := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if !ok || err != nil || dateErr != nil || r.Header.Get("X-Amz-Security-Token") != who.creds.SessionToken {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	for _, name := range strings.Split(signed, ";") {
		if name != "host" && name != "content-length" && name != "x-amz-date" && name != "x-amz-security-token" {
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	hash := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(r.Context(), who.creds, again, hex.EncodeToString(hash[:]), "sts", strings.Split(rest+"//", "/")[1], date)
	if _, want, _ := strings.Cut(again.Header.Get("Authorization"), "Signature="); err != nil || want != signature {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	name := who.arn[strings.LastIndexByte(who.arn, '/')+1:]
	fmt.Fprintf(w, `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":%q,"Arn":%q,"UserId":"AROAEXAMPLEEXAMPLE123:%s"},"ResponseMetadata":{"RequestId":"r"}}}`,
		strings.Split(who.arn, ":")[4], who.arn, name)
}

// Trap 9: what a task's proof may not be, from end to end: the broker in front of what discovery knows of a real account.
// Package broker has the whole table of attacks.
func TestTrap9Proofs(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	running := a.RunTask(a.cluster, "echo", a.definition)
	stopped := a.RunTask(a.cluster, "echo", a.definition)
	a.EndTask(stopped)
	cluster := kubetest.New(t, namespaces("istio-system", "ecs-demo-1")+"apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: echo-sa, namespace: ecs-demo-1, annotations: {ecs.solo.io/role-arn: '"+taskRole+"'}}\n")
	now := time.Now()
	w := newWorld(t, cluster, func(c *Config) { c.Now = func() time.Time { return now } }, a)
	if err := w.ctl.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	sts := &callers{keys: map[string]caller{}}
	srv := httptest.NewServer(sts)
	t.Cleanup(srv.Close)
	b, err := broker.New(broker.Config{
		Directory: w.ctl.accounts, Issuer: cluster.Client, Audience: "cluster.local", TrustDomain: "cluster.local", ClusterID: "Kubernetes",
		STSEndpoint: srv.URL, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(body []byte) (int, diag.Code) {
		rec := httptest.NewRecorder()
		b.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, iamproof.TokenPath, bytes.NewReader(body)))
		var refused iamproof.TokenError
		_ = json.Unmarshal(rec.Body.Bytes(), &refused) // a token has no code
		return rec.Code, diag.Code(refused.Code)
	}
	session := func(role, name string) string {
		return "arn:aws:sts::" + accountA + ":assumed-role/" + role + "/" + name
	}
	mine := session("task", inventory.LastPart(running))
	proof := func(arn, region, audience string, change func(*iamproof.Proof)) []byte {
		p, err := iamproof.Sign(t.Context(), sts.of(arn), region, audience)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(&p)
		}
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	signed := func(arn string, change func(*iamproof.Proof)) []byte {
		return proof(arn, region, "cluster.local", change)
	}
	good := signed(mine, nil)
	if status, code := ask(good); status != http.StatusOK {
		t.Fatalf("the task's own proof: %d %s", status, code)
	}
	edited := func(old, new string) []byte {
		text := string(signed(mine, nil))
		if !strings.Contains(text, old) {
			t.Fatalf("no %q in %s", old, text)
		}
		return []byte(strings.Replace(text, old, new, 1))
	}
	for name, tt := range map[string]struct {
		body []byte
		at   time.Duration // of the broker's clock
		want diag.Code
	}{
		"wrong audience":              {proof(mine, region, "other.mesh", nil), 0, diag.ProofRefused},
		"wrong bind hash":             {signed(mine, func(p *iamproof.Proof) { p.Key = "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" }), 0, diag.ProofRefused},
		"six minutes old":             {signed(mine, nil), 6 * time.Minute, diag.ProofExpired},
		"from the future":             {signed(mine, nil), -6 * time.Minute, diag.ProofExpired},
		"one more header":             {edited(`"region"`, `"headers":"x-evil:1","region"`), 0, diag.RequestMalformed},
		"a field missing":             {edited(`"amzDate"`, `"amzdate"`), 0, diag.RequestMalformed},
		"a field twice":               {edited(`"region"`, `"region":"eu-west-1","region"`), 0, diag.RequestMalformed},
		"another region than signed":  {edited(`"us-east-2"`, `"eu-west-1"`), 0, diag.ProofRefused},
		"a host as region":            {edited(`"us-east-2"`, `"evil.example/us-east-2"`), 0, diag.RegionUnknown},
		"a long-lived key":            {edited(`"ASIA`, `"AKIA`), 0, diag.KeyNotTemporary},
		"a user":                      {signed("arn:aws:iam::"+accountA+":user/eve", nil), 0, diag.CallerNotTaskRole},
		"a federated user":            {signed("arn:aws:sts::"+accountA+":federated-user/eve", nil), 0, diag.CallerNotTaskRole},
		"root":                        {signed("arn:aws:iam::"+accountA+":root", nil), 0, diag.CallerNotTaskRole},
		"a person in the task's role": {signed(session("task", "eve@example.com"), nil), 0, diag.CallerNotTaskRole},
		"a forged name of no task":    {signed(session("task", strings.Repeat("f", 32)), nil), 0, diag.TaskUnknown},
		"a forged name, another role": {signed(session("eve", inventory.LastPart(running)), nil), 0, diag.TaskRoleMismatch},
		"a stopped task":              {signed(session("task", inventory.LastPart(stopped)), nil), 0, diag.TaskNotServing},
		"replay":                      {good, 0, diag.ProofReplayed},
	} {
		t.Run(name, func(t *testing.T) {
			before := now
			now = now.Add(tt.at)
			defer func() { now = before }()
			if status, code := ask(tt.body); status == http.StatusOK || code != tt.want {
				t.Errorf("%d %s, want %s", status, code, tt.want)
			}
		})
	}
}

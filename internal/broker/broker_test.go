package broker

import (
	"bytes"
	"context"
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
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

const (
	account  = "123456789012"
	region   = "us-east-2"
	audience = "cluster.local"
	task1    = "11111111111111111111111111111111" // in ecs-demo-1
	task2    = "22222222222222222222222222222222" // in ecs-demo-2, same role
	roleARN  = "arn:aws:iam::123456789012:role/ecs/ambient/eks-ecs-task-role"

	serviceAccounts = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: ecs-demo-sa-local, namespace: ecs-demo-1, annotations: {ecs.solo.io/role-arn: 'arn:aws:iam::123456789012:role/ecs/ambient/eks-ecs-task-role'}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: ecs-demo-sa-local, namespace: ecs-demo-2, annotations: {ecs.solo.io/role-arn: 'arn:aws:iam::123456789012:role/ecs/ambient/eks-ecs-task-role'}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: plain, namespace: ecs-demo-1}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: foreign-role, namespace: ecs-demo-1, annotations: {ecs.solo.io/role-arn: 'arn:aws:iam::123456789012:role/other'}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: foreign-account, namespace: ecs-demo-1, annotations: {ecs.solo.io/role-arn: 'arn:aws:iam::999999999999:role/eks-ecs-task-role'}}
`
)

func sessionARN(id string) string {
	return "arn:aws:sts::" + account + ":assumed-role/eks-ecs-task-role/" + id
}

// directory is a Directory of fixed tasks.
type directory struct {
	mu    sync.Mutex
	tasks map[string]Task // guarded by mu
	err   error           // guarded by mu
}

func (d *directory) FindTask(_ context.Context, acct, _, id string) (Task, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if acct != account {
		return Task{}, ErrAccountUnknown
	}
	if d.err != nil {
		return Task{}, d.err
	}
	t, ok := d.tasks[id]
	if !ok {
		return Task{}, ErrTaskUnknown
	}
	return t, nil
}

func (d *directory) change(id string, f func(*Task)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tasks[id]
	f(&t)
	d.tasks[id] = t
}

func demoTask(id, cluster string) Task {
	return Task{
		ARN: "arn:aws:ecs:us-east-2:" + account + ":task/" + cluster + "/" + id, ID: id,
		ClusterARN: "arn:aws:ecs:us-east-2:" + account + ":cluster/" + cluster, RoleARN: roleARN,
		LastStatus: "RUNNING", DesiredStatus: "RUNNING",
		Namespace: cluster, ServiceAccount: "ecs-demo-sa-local", WorkloadName: "ecs-task-" + id,
	}
}

type world struct {
	t        *testing.T
	now      time.Time
	sts      *fakeSTS
	dir      *directory
	kube     *kubetest.Cluster
	broker   *Broker
	log      *bytes.Buffer
	outcomes []diag.Code
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, now: time.Now(), kube: kubetest.New(t, serviceAccounts), log: &bytes.Buffer{}}
	clock := func() time.Time { return w.now }
	w.sts = newFakeSTS(t, clock)
	w.dir = &directory{tasks: map[string]Task{task1: demoTask(task1, "ecs-demo-1"), task2: demoTask(task2, "ecs-demo-2")}}
	cfg := Config{
		Directory: w.dir, Issuer: w.kube.Client, Audience: audience, TrustDomain: "cluster.local", ClusterID: "Kubernetes", Network: "eks",
		STSEndpoint: w.sts.URL, Log: slog.New(slog.NewTextHandler(w.log, nil)), Now: clock,
		Observe: func(o Outcome) { w.outcomes = append(w.outcomes, o.Code) },
	}
	if change != nil {
		change(&cfg)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.broker = b
	return w
}

func (w *world) sign(creds aws.Credentials) iamproof.Proof {
	w.t.Helper()
	p, err := iamproof.Sign(w.t.Context(), creds, region, audience)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) post(body []byte) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, iamproof.TokenPath, bytes.NewReader(body))
	rec := httptest.NewRecorder()
	w.broker.ServeHTTP(rec, req)
	return rec
}

func (w *world) ask(p iamproof.Proof) (iamproof.TokenResponse, iamproof.TokenError, int) {
	w.t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		w.t.Fatal(err)
	}
	rec := w.post(body)
	if rec.Code != http.StatusOK {
		return iamproof.TokenResponse{}, w.refusal(rec), rec.Code
	}
	ok, err := p.Open(rec.Body.Bytes())
	if err != nil {
		w.t.Fatalf("the asker cannot open %q: %v", rec.Body, err)
	}
	return ok, iamproof.TokenError{}, rec.Code
}

// refusal reads an answer that must be one.
func (w *world) refusal(rec *httptest.ResponseRecorder) (refused iamproof.TokenError) {
	w.t.Helper()
	if err := json.Unmarshal(rec.Body.Bytes(), &refused); err != nil || rec.Code == http.StatusOK {
		w.t.Fatalf("answer %d is no refusal: %q", rec.Code, rec.Body)
	}
	return refused
}

func TestTokenIsIssued(t *testing.T) {
	for _, state := range []string{"PENDING", "ACTIVATING", "RUNNING"} {
		t.Run(state, func(t *testing.T) {
			w := newWorld(t, nil)
			w.dir.change(task1, func(x *Task) { x.LastStatus = state })
			got, refused, status := w.ask(w.sign(w.sts.session(sessionARN(task1))))
			if status != http.StatusOK {
				t.Fatalf("status %d, %+v", status, refused)
			}
			if left := got.Expiration.Sub(w.now); left < 59*time.Minute || left > 61*time.Minute {
				t.Errorf("token lives %v, want an hour", left)
			}
			got.Expiration = time.Time{}
			want := iamproof.TokenResponse{
				Token: "token/ecs-demo-1/ecs-demo-sa-local/isthmus-task-" + task1, Namespace: "ecs-demo-1", ServiceAccount: "ecs-demo-sa-local",
				WorkloadName: "ecs-task-" + task1, TaskARN: demoTask(task1, "ecs-demo-1").ARN, TrustDomain: "cluster.local", ClusterID: "Kubernetes", Network: "eks",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]diag.Code{""}, w.outcomes); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSameRoleTwoClusters is the case that a role alone cannot decide: both clusters' tasks run with one role, and the
// service accounts have one name. The task id decides.
func TestSameRoleTwoClusters(t *testing.T) {
	w := newWorld(t, nil)
	for id, ns := range map[string]string{task1: "ecs-demo-1", task2: "ecs-demo-2"} {
		got, refused, status := w.ask(w.sign(w.sts.session(sessionARN(id))))
		if status != http.StatusOK || got.Namespace != ns {
			t.Errorf("task %.4s: status %d namespace %q (%+v), want %s", id, status, got.Namespace, refused, ns)
		}
	}
}

func TestMalformedRequests(t *testing.T) {
	w := newWorld(t, nil)
	proof := w.sign(w.sts.session(sessionARN(task1)))
	good, err := json.Marshal(proof)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, method, path string
		body               string
		status             int
		code               diag.Code
	}{
		{"get", http.MethodGet, iamproof.TokenPath, "", 405, diag.MethodNotAllowed},
		{"another path", http.MethodPost, "/", string(good), 404, diag.MethodNotAllowed},
		{"a path below", http.MethodPost, iamproof.TokenPath + "/x", string(good), 404, diag.MethodNotAllowed},
		{"empty", http.MethodPost, iamproof.TokenPath, "", 400, diag.RequestMalformed},
		{"not JSON", http.MethodPost, iamproof.TokenPath, "a=b", 400, diag.RequestMalformed},
		{"a list", http.MethodPost, iamproof.TokenPath, "[" + string(good) + "]", 400, diag.RequestMalformed},
		{"a field more", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), "{", `{"url":"https://evil.example.com/",`, 1), 400, diag.RequestMalformed},
		{"a key twice", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), "{", `{"region":"us-east-2",`, 1), 400, diag.RequestMalformed},
		{"a key in other case", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), `"region"`, `"Region"`, 1), 400, diag.RequestMalformed},
		{"a key more in other case", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), "{", `{"REGION":"eu-west-1",`, 1), 400, diag.RequestMalformed},
		{"a key less", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), `"region":"us-east-2",`, "", 1), 400, diag.RequestMalformed},
		{"null for a string", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), `"us-east-2"`, "null", 1), 400, diag.RequestMalformed},
		{"not UTF-8", http.MethodPost, iamproof.TokenPath, strings.Replace(string(good), "us-east-2", "us-east-2\xff", 1), 400, diag.RequestMalformed},
		{"two objects", http.MethodPost, iamproof.TokenPath, string(good) + string(good), 400, diag.RequestMalformed},
		{"too large", http.MethodPost, iamproof.TokenPath, `{"region":"` + strings.Repeat("x", 65<<10) + `"}`, 413, diag.RequestTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.outcomes = nil
			w.log.Reset()
			rec := httptest.NewRecorder()
			w.broker.ServeHTTP(rec, httptest.NewRequest(tt.method, tt.path, strings.NewReader(tt.body)))
			if diff := cmp.Diff([]diag.Code{tt.code}, w.outcomes); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
			if text := w.log.String() + rec.Body.String(); !strings.Contains(text, "code="+string(tt.code)) || strings.Contains(text, proof.SessionToken) || strings.Contains(text, proof.Signature) {
				t.Errorf("the refusal is not logged, or with a secret:\n%s", text)
			}
			if refused := w.refusal(rec); rec.Code != tt.status || diag.Code(refused.Code) != tt.code {
				t.Errorf("refused with %d %s, want %d %s", rec.Code, refused.Code, tt.status, tt.code)
			}
		})
	}
	if n := w.sts.callCount(); n != 0 {
		t.Errorf("AWS was asked %d times", n)
	}
}

func TestReplay(t *testing.T) {
	w := newWorld(t, nil)
	p := w.sign(w.sts.session(sessionARN(task1)))
	if _, refused, status := w.ask(p); status != http.StatusOK {
		t.Fatalf("first use: %d %+v", status, refused)
	}
	for _, later := range []time.Duration{0, time.Minute, 3 * time.Minute} {
		w.now = w.now.Add(later)
		if _, refused, _ := w.ask(p); diag.Code(refused.Code) != diag.ProofReplayed {
			t.Errorf("second use after %v: %+v, want %s", later, refused, diag.ProofReplayed)
		}
	}
	w.now = w.now.Add(30 * time.Minute)
	if _, refused, _ := w.ask(p); diag.Code(refused.Code) != diag.ProofExpired {
		t.Errorf("use after 34 minutes: %+v, want %s", refused, diag.ProofExpired)
	}
	if w.broker.replays.begin([32]byte{}, w.now); w.broker.replays.len() != 0 {
		t.Error("an expired proof is still remembered")
	}
}

func TestTwoCopiesAtOnceWinOnce(t *testing.T) {
	w := newWorld(t, nil)
	var mu sync.Mutex
	w.broker.cfg.Observe = func(o Outcome) { mu.Lock(); defer mu.Unlock(); w.outcomes = append(w.outcomes, o.Code) }
	release := make(chan struct{})
	entered := make(chan struct{}, 8)
	w.sts.answerWith(func(rw http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-release
		rw.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(rw, identity(sessionARN(task1)))
	})
	body, err := json.Marshal(w.sign(w.sts.session(sessionARN(task1))))
	if err != nil {
		t.Fatal(err)
	}
	codes := make(chan int, 2)
	go func() { codes <- w.post(body).Code }()
	<-entered
	go func() { codes <- w.post(body).Code }()
	if first := <-codes; first != http.StatusForbidden {
		t.Errorf("the copy got %d, want 403", first)
	}
	close(release)
	if second := <-codes; second != http.StatusOK {
		t.Errorf("the original got %d, want 200", second)
	}
}

func TestFullReplayMemoryIssuesNothing(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Limits.Replays = 1 })
	if _, _, status := w.ask(w.sign(w.sts.session(sessionARN(task1)))); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	if _, refused, _ := w.ask(w.sign(w.sts.session(sessionARN(task2)))); diag.Code(refused.Code) != diag.BrokerBusy {
		t.Errorf("with a full memory: %+v, want %s", refused, diag.BrokerBusy)
	}
}

func TestRateLimits(t *testing.T) {
	t.Run("source", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.SourceRate, c.Limits.SourceBurst = 1, 2 })
		for range 2 {
			w.post([]byte("x"))
		}
		rec := w.post([]byte("x"))
		if refused := w.refusal(rec); rec.Code != 429 || diag.Code(refused.Code) != diag.SourceRateLimited || rec.Header().Get("Retry-After") != "1" {
			t.Errorf("third request: %d %+v Retry-After %q", rec.Code, refused, rec.Header().Get("Retry-After"))
		}
		w.now = w.now.Add(time.Second)
		if rec := w.post([]byte("x")); rec.Code != 400 {
			t.Errorf("a second later: %d, want 400", rec.Code)
		}
	})
	t.Run("role", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.RoleRate, c.Limits.RoleBurst = 1, 2 })
		creds := w.sts.session(sessionARN(task1))
		for range 2 {
			if _, refused, status := w.ask(w.sign(creds)); status != 200 {
				t.Fatalf("%d %+v", status, refused)
			}
		}
		if _, refused, status := w.ask(w.sign(creds)); status != 429 || diag.Code(refused.Code) != diag.RoleRateLimited {
			t.Errorf("third token: %d %+v", status, refused)
		}
	})
	t.Run("table is bounded", func(t *testing.T) {
		table := newLimitTable(1, 1, 10)
		now := time.Unix(0, 0)
		for i := range 1000 {
			table.allow(fmt.Sprint(i), now)
		}
		if len(table.byKey) != 10 || table.order.Len() != 10 {
			t.Errorf("table holds %d keys, want 10", len(table.byKey))
		}
		if _, ok := table.allow("999", now); ok {
			t.Error("the newest key was forgotten")
		}
	})
	t.Run("in flight", func(t *testing.T) {
		w := newWorld(t, func(c *Config) { c.Limits.InFlight = 1 })
		w.broker.slots <- struct{}{}
		rec := w.post([]byte("x"))
		if refused := w.refusal(rec); rec.Code != 503 || diag.Code(refused.Code) != diag.BrokerBusy {
			t.Errorf("%d %+v", rec.Code, refused)
		}
	})
}

func TestClockSkewAnswerCarriesTheTime(t *testing.T) {
	w := newWorld(t, nil)
	p := w.sign(w.sts.session(sessionARN(task1)))
	w.now = w.now.Add(10 * time.Minute)
	_, refused, _ := w.ask(p)
	if !strings.Contains(refused.Message, w.now.UTC().Format(time.RFC3339)) {
		t.Errorf("message %q lacks the broker's time", refused.Message)
	}
}

func TestRevoker(t *testing.T) {
	w := newWorld(t, nil)
	tokens := map[string]string{}
	for _, id := range []string{task1, task2} {
		got, refused, status := w.ask(w.sign(w.sts.session(sessionARN(id))))
		if status != http.StatusOK {
			t.Fatalf("%d %+v", status, refused)
		}
		tokens[id] = got.Token
	}
	lives := livesMap{demoTask(task1, "ecs-demo-1").ARN: Alive, demoTask(task2, "ecs-demo-2").ARN: Unknown}
	r, err := NewRevoker(RevokerConfig{Lives: lives, Secrets: w.kube.Client, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	valid := func() string {
		t.Helper()
		if err := r.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, id := range []string{task1, task2} {
			_, ok, err := w.kube.Client.ReviewToken(t.Context(), tokens[id])
			if err != nil {
				t.Fatal(err)
			}
			out += fmt.Sprint(ok, " ")
		}
		return out
	}
	if got := valid(); got != "true true " {
		t.Errorf("alive and unknown: %s", got)
	}
	lives[demoTask(task1, "ecs-demo-1").ARN] = Ended
	if got := valid(); got != "false true " {
		t.Errorf("after task 1 ended: %s", got)
	}
}

type livesMap map[string]Life

func (l livesMap) Life(arn string) Life { return l[arn] }

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"region":"us-east-2","accessKeyId":"ASIAAAAAAAAAAAAAAAAA","sessionToken":"t","amzDate":"20260101T000000Z","signature":"00","key":"AA=="}`))
	f.Add([]byte(`{`))
	f.Add([]byte(`{"region":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := New(Config{
			Directory: &directory{}, Issuer: nobody{}, Audience: audience, TrustDomain: "x", ClusterID: "y", STSEndpoint: "http://127.0.0.1:1",
			Log: slog.New(slog.DiscardHandler), Transport: refuseAll{},
		})
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		b.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, iamproof.TokenPath, bytes.NewReader(body)))
		if rec.Code == http.StatusOK {
			t.Errorf("a token for %q", body)
		}
	})
}

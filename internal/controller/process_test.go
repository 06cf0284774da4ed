package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// programsVariable names the environment variable with the folder of the programs; make test sets it.
const programsVariable = "ISTHMUS_BIN"

// Limits of a test with a real process, in real time.
const (
	longestLife = 3 * time.Second // of a controller that is killed by the clock
	longestWait = 6 * time.Second // for a request at which it is killed
	convergence = 2 * time.Minute
	quietSweeps = 3 // sweeps of everything without a write, after which a controller has nothing left to do
)

// trap is when the controller of now is killed.
type trap uint8

const (
	byClock      trap = iota // some time after its start
	beforeAWrite             // when it asks for a write, which never reaches Kubernetes
	afterAWrite              // when a write was done, of which it never hears
	whileItReads             // when it asks AWS
	never
)

func (t trap) String() string {
	return [...]string{"by the clock", "before a write", "after a write", "while it reads", "not"}[t&7]
}

// process is a world in which the controller is bin/isthmus-controller, between a real API server and an endpoint that
// speaks ECS's protocol. Its requests pass through the test, which kills it at one of them.
type process struct {
	*churn
	api     *kubetest.APIServer
	program string
	env     []string
	args    []string
	says    string // file with all that the controllers said

	mu       sync.Mutex
	running  *os.Process   // guarded by mu
	trap     trap          // guarded by mu
	left     int           // guarded by mu; writes, or calls of AWS, until the trap closes
	killed   map[trap]int  // guarded by mu; how the controllers died
	writes   int           // guarded by mu; of entries
	slow     time.Duration // guarded by mu; how long AWS takes to answer
	quiet    int           // guarded by mu; sweeps of everything since the last of them
	wrong    []string      // guarded by mu; what should never have been deleted
	restarts int
}

// newProcess starts the endpoints that a controller is given, in front of api.
func newProcess(t *testing.T, api *kubetest.APIServer, token string) *process {
	t.Helper()
	p := &process{churn: newChurn(), api: api, program: filepath.Join(os.Getenv(programsVariable), "isthmus-controller"), killed: map[trap]int{}}
	p.wait = func(d time.Duration) { sleep(context.Background(), d/5) }
	real, err := url.Parse(api.URL())
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(real) },
		Transport:      &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // loopback, the test's own
		FlushInterval:  -1,
		ModifyResponse: p.wrote,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	k8s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.asks(r) {
			panic(http.ErrAbortHandler) // nobody is there to answer
		}
		proxy.ServeHTTP(w, r)
	}))
	k8s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that die are the point
	k8s.StartTLS()
	t.Cleanup(k8s.Close)
	aws := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sleep(r.Context(), p.reads(r))
		p.aws.ServeHTTP(w, r)
	}))
	t.Cleanup(aws.Close)

	dir := t.TempDir()
	config := "sweepInterval: 1s\nplatforms: {ecs: {accounts: [{id: '" + accountA + "', domain: ecs.local, regions: [" + region + "]}]}}\n"
	kubeconfig := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]\n"+
		"users: [{name: u, user: {token: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n", k8s.URL, token)
	for name, text := range map[string]string{"config.yaml": config, "kubeconfig": kubeconfig} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.says = filepath.Join(dir, "log")
	p.args = []string{
		"--config=" + filepath.Join(dir, "config.yaml"), "--kubeconfig=" + filepath.Join(dir, "kubeconfig"), "--namespace=istio-system",
		"--broker-address=", "--monitoring-address=", "--lease-duration=1s", "--revoke-interval=1s",
	}
	p.env = []string{
		"HOME=" + dir, "AWS_ENDPOINT_URL_ECS=" + aws.URL, "AWS_REGION=" + region, "AWS_ACCESS_KEY_ID=AKIATEST", "AWS_SECRET_ACCESS_KEY=secret",
		"AWS_EC2_METADATA_DISABLED=true",
	}
	t.Cleanup(func() {
		if text, err := os.ReadFile(p.says); err == nil && t.Failed() {
			t.Logf("the controllers said, at last:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return p
}

// kill ends the controller as the kernel ends one that is out of memory. Callers hold mu.
func (p *process) kill(how trap) {
	p.trap = never
	p.killed[how]++
	_ = p.running.Kill() // it may have gone by itself, which Wait tells
}

// entryOf returns the namespace and name of the ServiceEntry or WorkloadEntry that a request changes, or "".
func entryOf(r *http.Request) string {
	if r.Method != http.MethodPatch && r.Method != http.MethodDelete && r.Method != http.MethodPost {
		return ""
	}
	parts := strings.Split(r.URL.Path, "/") // /apis/networking.istio.io/v1/namespaces/NAMESPACE/KIND/NAME
	if len(parts) != 8 || parts[6] != "serviceentries" && parts[6] != "workloadentries" {
		return ""
	}
	return parts[5] + "/" + parts[7]
}

// asks sees a request to Kubernetes, and reports whether the controller died of it.
func (p *process) asks(r *http.Request) (died bool) {
	name := entryOf(r)
	if name == "" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = 0
	if p.trap == beforeAWrite {
		if p.left--; p.left < 0 {
			p.kill(beforeAWrite)
			return true
		}
	}
	p.writes++
	if r.Method == http.MethodDelete && p.mustStay(name) {
		p.wrong = append(p.wrong, name)
	}
	return false
}

// wrote sees the answer to a request.
func (p *process) wrote(r *http.Response) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trap != afterAWrite || entryOf(r.Request) == "" {
		return nil
	}
	if p.left--; p.left >= 0 {
		return nil
	}
	p.kill(afterAWrite)
	return errKilled
}

// reads sees a call of AWS, and says how long it takes.
func (p *process) reads(r *http.Request) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".ListClusters") {
		p.quiet++
	}
	if p.trap == whileItReads {
		if p.left--; p.left < 0 {
			p.kill(whileItReads)
		}
	}
	return p.slow
}

// live runs a controller until a trap has killed it; with the trap never, until done says so.
func (p *process) live(t *testing.T, how trap, left int, limit time.Duration, meanwhile func(), done func() bool) {
	t.Helper()
	p.restarts++
	out, err := os.OpenFile(p.says, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(p.program, p.args...) //nolint:gosec // the program under test
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing survives a test that was killed
	p.mu.Lock()
	if err := cmd.Start(); err != nil {
		p.mu.Unlock()
		t.Fatalf("start the controller: %v", err)
	}
	p.running, p.trap, p.left = cmd.Process, how, left
	p.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	meanwhile()
	timer, poll := time.NewTimer(limit), time.NewTicker(100*time.Millisecond)
	defer timer.Stop()
	defer poll.Stop()
	late := false
	for {
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != -1 {
				t.Fatalf("the controller ended by itself: %v", err)
			}
			if late {
				t.Fatalf("not done within %v", limit)
			}
			return
		case <-timer.C:
			late = how == never
		case <-poll.C:
			if how != never || !done() {
				continue
			}
		}
		p.mu.Lock()
		if p.trap != never || how == never { // else a request was quicker
			p.kill(byClock)
		}
		p.mu.Unlock()
		done = func() bool { return false }
	}
}

// entries returns what there is of the controller's objects, and their uids.
func (p *process) entries(t *testing.T) (objects map[string]any, uids map[string]string) {
	t.Helper()
	objects, uids = map[string]any{}, map[string]string{}
	for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries} {
		list, err := p.api.Admin.List(t.Context(), kind, "", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			objects[kube.Ref(o)] = map[string]any{"spec": o.Object["spec"], "labels": o.GetLabels(), "annotations": o.GetAnnotations()}
			uids[kube.Ref(o)] = string(o.GetUID())
		}
	}
	return objects, uids
}

// settled reports whether the controller of now has looked several times without finding anything to write.
func (p *process) settled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.quiet > quietSweeps
}

// ages is a life under churn, as that of mortal.
func (p *process) ages(t *testing.T, rng *rand.Rand, want map[string]any) map[string]any {
	t.Helper()
	p.live(t, never, 0, convergence, func() {}, func() bool { o, _ := p.entries(t); return len(o) == len(p.services)*3 })
	_, before := p.entries(t)
	steps := func() {
		for range churnsPerAge {
			p.step()
		}
	}
	for range kills {
		if rng == nil {
			break
		}
		p.mu.Lock()
		p.slow = time.Duration(5<<rng.IntN(8)) * time.Millisecond // some lead before they have read anything
		p.mu.Unlock()
		how, left, limit := trap(rng.IntN(int(never))), 0, longestWait
		switch how {
		case beforeAWrite, afterAWrite:
			left = rng.IntN(4)
		case whileItReads:
			left = rng.IntN(15)
		default:
			limit = time.Duration(rng.Int64N(int64(longestLife)))
		}
		p.live(t, how, left, limit, steps, nil)
	}
	last := func() {}
	done := func() bool { o, _ := p.entries(t); return cmp.Equal(want, o) }
	if rng == nil {
		done = p.settled
		last = func() {
			for range kills {
				steps()
			}
		}
	}
	p.mu.Lock()
	p.slow = 0
	p.mu.Unlock()
	p.live(t, never, 0, convergence, last, done)
	objects, after := p.entries(t)
	for _, ref := range p.steady() {
		if before[ref] == "" || after[ref] != before[ref] {
			t.Errorf("%s was made anew, which changes its address: its uid was %q and is %q", ref, before[ref], after[ref])
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Logf("%d controllers made %d writes; they were killed: %v", p.restarts, p.writes, p.killed)
	if len(p.wrong) > 0 {
		t.Errorf("deleted, though nothing had happened to what it stands for: %v", p.wrong)
	}
	if rng != nil && p.killed[beforeAWrite]+p.killed[afterAWrite] < kills/10 {
		t.Errorf("too few were killed at a write to learn from")
	}
	return objects
}

// The program itself, with the rights of its own manifest before a real API server, is killed with SIGKILL fifty times:
// by the clock, before a write, after a write of which it never hears, and while it reads AWS. It leaves the objects of
// one that is not.
func TestProcessKilledFiftyTimesEndsAsUndisturbed(t *testing.T) {
	if os.Getenv(programsVariable) == "" {
		t.Skipf("SKIPPED: no program to kill: set %s to the folder with isthmus-controller (make test does)", programsVariable)
	}
	api := kubetest.StartAPIServer(t)
	api.Apply(t, kubetest.CRDs(t, filepath.Join("..", "..")))
	names := newChurn().namespaces()
	api.Apply(t, namespaces(names...))
	manifest, err := install.Config{
		Settings:       settings.File{Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{{Role: "arn:aws:iam::" + accountA + ":role/istiod-local"}}}}},
		TaskNamespaces: names[1:],
	}.Render()
	if err != nil {
		t.Fatal(err)
	}
	api.Apply(t, string(bytes.TrimSpace(manifest)))
	token, err := api.Admin.ServiceAccountToken(t.Context(), "istio-system", "isthmus-controller")
	if err != nil {
		t.Fatal(err)
	}
	want := newProcess(t, api, token).ages(t, nil, nil)
	kinds := map[string]int{}
	for ref := range want {
		kinds[strings.Fields(ref)[0]]++
	}
	if kinds[discovery.KindServiceEntry] < 3 || kinds[discovery.KindWorkloadEntry] < 5 {
		t.Fatalf("too little is left to compare: %v", kinds)
	}
	for _, ns := range names[1:] {
		for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries} {
			if _, err := api.Admin.DeleteByLabel(t.Context(), kind, ns, kube.ManagedByLabel+"="+kube.ManagedByValue); err != nil {
				t.Fatal(err)
			}
		}
	}
	const seed = 1
	t.Logf("undisturbed: %v; seed %d", kinds, seed)
	got := newProcess(t, api, token).ages(t, rand.New(rand.NewPCG(seed, 1)), want) //nolint:gosec // a test's choice
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-undisturbed +killed %d times):\n%s", kills, diff)
	}
}

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// TestMain lets the test binary be every part of the lab, as isthmus-lab is.
func TestMain(m *testing.M) {
	if handled, code := runtime.MaybeInit(os.Args); handled {
		os.Exit(code)
	}
	if handled, code := MaybeInternal(os.Args[1:]); handled {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// nobodyID is a user without any rights.
const nobodyID = 65534

// labTimeout is long, because the machine of a test may do other things too.
const labTimeout = 4 * time.Minute

// needPrograms puts the lab's programs into PATH, or skips the test.
func needPrograms(t *testing.T) {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if testing.Short() {
		t.Skip("SKIPPED: a whole lab is not brought up with -short")
	}
	if _, err := FindPrograms(); err != nil {
		t.Skipf("SKIPPED: no lab is brought up at all, because the programs are not built (make build): %v", err)
	}
}

// TestLab brings a lab up as the user who runs the test, uses it from outside, and takes it down without a trace.
func TestLab(t *testing.T) {
	needPrograms(t)
	dir := Dir(t.TempDir())
	before := trace(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), labTimeout)
	defer cancel()
	t.Cleanup(func() {
		if _, err := Down(context.Background(), dir); err != nil {
			t.Errorf("Down = %v", err)
		}
	})
	result, err := Up(ctx, dir, func(e Event) {
		if e.State == StateDone {
			t.Logf("%s took %s", e.Step, Seconds(e.Elapsed))
		}
	})
	if err != nil {
		var b bytes.Buffer
		diag.Print(&b, "lab", err)
		t.Fatalf("Up failed: %s\n%s", b.String(), tailOf(dir.Log("daemon"), 8<<10))
	}
	t.Logf("ready after %s", Seconds(result.Took))
	if again, err := Up(ctx, dir, func(Event) {}); err != nil || !again.AlreadyRunning {
		t.Errorf("second Up = %+v, %v, want that the lab runs already", again, err)
	}
	checkStatus(ctx, t, dir)
	checkFromHost(ctx, t, dir)
	checkKill(ctx, t, dir)

	begin := time.Now()
	if found, err := Down(ctx, dir); !found || err != nil {
		t.Fatalf("Down = %v, %v, want a lab ended", found, err)
	}
	t.Logf("down after %s", Seconds(time.Since(begin)))
	if after := trace(t, dir); after != before {
		t.Errorf("after Down there is left:\n%s\nwant as before:\n%s", after, before)
	}
	if _, err := NewClient(dir).Status(ctx); diag.CodeOf(err) != diag.LabNotRunning {
		t.Errorf("Status after Down = %v, want %s", err, diag.LabNotRunning)
	}
}

// TestLabAsNobody runs TestLab as a user without rights.
func TestLabAsNobody(t *testing.T) {
	needPrograms(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can become nobody; TestLab has run without rights")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // nobody must get in
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program, work := filepath.Join(dir, "daemon.test"), filepath.Join(dir, "work")
	if err := os.WriteFile(program, self, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(work, nobodyID, nobodyID); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^TestLab$", "-test.v", "-test.timeout=10m")
	cmd.Dir = work
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "TMPDIR=" + work}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyID, Gid: nobodyID}}
	out, err := cmd.CombinedOutput()
	t.Logf("as nobody:\n%s", out)
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestLab")) {
		t.Errorf("TestLab as nobody = %v, want it to pass", err)
	}
}

// trace lists what a lab could leave on the host: processes, mounts and interfaces.
func trace(t *testing.T, dir Dir) string {
	t.Helper()
	var b strings.Builder
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if text, err := os.ReadFile(p); err == nil && bytes.Contains(text, []byte(string(dir))) {
			fmt.Fprintf(&b, "process %s\n", bytes.ReplaceAll(text, []byte{0}, []byte{' '}))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, string(dir)) {
			b.WriteString("mount " + line)
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if strings.HasPrefix(i.Name, "vpc0") || strings.HasPrefix(i.Name, "veth0a") {
			b.WriteString("interface " + i.Name + "\n")
		}
	}
	for _, name := range []string{"lab.json", "control.sock", "kubeconfig", "run", "logs"} {
		if _, err := os.Lstat(dir.path(name)); err == nil {
			b.WriteString("file " + name + "\n")
		}
	}
	return b.String()
}

func checkStatus(ctx context.Context, t *testing.T, dir Dir) {
	t.Helper()
	s, err := NewClient(dir).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir.HostPIDs(&s)
	found := map[string]bool{}
	for _, c := range s.Components {
		name, _, _ := strings.Cut(c.Name, " (")
		found[name] = true
		if !c.Ready {
			t.Errorf("%s is not ready: %+v", c.Name, c)
		}
		if c.Kind != "part" && (c.PID == 0 || c.RSSBytes == 0) {
			t.Errorf("%s has process %d and %d bytes, want both", c.Name, c.PID, c.RSSBytes)
		}
		if c.Kind != "part" {
			t.Logf("%s: %d MiB", c.Name, c.RSSBytes>>20)
		}
	}
	for _, want := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "istiod", "ztunnel", "isthmus-controller"} {
		if !found[want] {
			t.Errorf("status has no %s", want)
		}
	}
}

// checkFromHost uses the lab as a person does, by the addresses on the host's loopback.
func checkFromHost(ctx context.Context, t *testing.T, dir Dir) {
	t.Helper()
	variables, err := dir.Env()
	if err != nil {
		t.Fatal(err)
	}
	environ := os.Environ()
	var endpoint string
	for _, v := range variables {
		environ = append(environ, v.Name+"="+v.Value)
		if v.Name == "AWS_ENDPOINT_URL" {
			endpoint = v.Value
		}
	}
	kubectl := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, filepath.Join(dir.Bin(), "kubectl"), args...)
		cmd.Env, cmd.Stdin = environ, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := kubectl("", "get", "ns", "-o", "name"); err != nil || !strings.Contains(out, "namespace/istio-system") {
		t.Errorf("kubectl get ns = %q, %v, want istio-system among them", out, err)
	}
	if out, err := kubectl("", "logs", "-n", "istio-system", "deployment/istiod", "--tail=1"); err != nil || out == "" {
		t.Errorf("kubectl logs = %q, %v, want a line of istiod's", out, err)
	}
	if out, err := kubectl(badPolicy, "apply", "-f", "-"); err == nil || !strings.Contains(out, "denied the request") {
		t.Errorf("kubectl apply of a policy with a port range = %q, %v, want it denied", out, err)
	}
	if out, err := kubectl(serviceEntry, "apply", "-f", "-"); err != nil {
		t.Fatalf("kubectl apply = %q, %v", out, err)
	}
	out, err := kubectl("", "wait", "serviceentry/echo", "--for=jsonpath={.status.addresses[0].value}", "--timeout=30s")
	if err != nil {
		t.Errorf("wait for the address of a service entry = %q, %v", out, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader("Action=GetCallerIdentity&Version=2011-06-15"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("ask the AWS endpoint: %v", err)
	}
	response.Body.Close()
	if response.StatusCode < 400 || response.StatusCode >= 500 {
		t.Errorf("the AWS endpoint answered an unsigned request with %s, want it refused", response.Status)
	}
}

const badPolicy = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: bad, namespace: default},
spec: {action: DENY, rules: [{to: [{operation: {ports: ["8080-8090"]}}]}]}}`

const serviceEntry = `{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: echo, namespace: default},
spec: {hosts: [echo.ecs-demo-1.ecs.local], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 8080, name: http, protocol: HTTP}]}}`

// checkKill ends the scheduler as a crash would and expects it back.
func checkKill(ctx context.Context, t *testing.T, dir Dir) {
	t.Helper()
	client := NewClient(dir)
	if err := client.Act(ctx, "kube-scheduler", ActionKill); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := client.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range s.Components {
			if c.Name == "kube-scheduler" && c.Restarts == 1 && c.Ready {
				return
			}
		}
		select {
		case <-ctx.Done():
			b, _ := json.Marshal(s)
			t.Fatalf("kube-scheduler did not come back: %s", b)
		case <-tick.C:
		}
	}
}

// TestCrash kills a lab in the middle of its start; nothing of it goes on, and the next command cleans up.
func TestCrash(t *testing.T) {
	needPrograms(t)
	dir := Dir(t.TempDir())
	before := trace(t, dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	killed := false
	_, err := Up(ctx, dir, func(e Event) {
		if e.Step == "network" && e.State == StateDone && !killed {
			killed = true
			state, ok, err := dir.ReadState()
			if !ok || err != nil {
				t.Errorf("ReadState = %v, %v", ok, err)
				return
			}
			if err := unix.Kill(state.PID, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
	if diag.CodeOf(err) != diag.LabComponentFailed {
		t.Errorf("Up of a lab that is killed = %v, want %s", err, diag.LabComponentFailed)
	}
	if _, err := Down(ctx, dir); err != nil {
		t.Errorf("Down = %v, want nil", err)
	}
	if after := trace(t, dir); after != before {
		t.Errorf("after the crash there is left:\n%s\nwant as before:\n%s", after, before)
	}
}

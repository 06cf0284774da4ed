// Package guide runs the shell scripts of examples/guide against a lab with real clients: the AWS CLI, kubectl, jq, AWS's
// session-manager-plugin where it is installed, and isthmus by the name of istioctl.
package guide

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/test/clients"
)

// limit bounds one script; the AWS CLI takes a second or more for each call.
const limit = 10 * time.Minute

// world is a lab and the environment in which a user of it works.
type world struct {
	scripts string
	env     []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: the guide's scripts take some minutes, and -short was given")
	}
	aws := clients.AWSCLI(t)
	clients.Tools(t, "bash", "jq", "curl")
	plugin := clients.SessionManagerPlugin(t)
	bin := os.Getenv("ISTHMUS_BIN")
	if bin == "" {
		bin = filepath.Join("..", "..", "bin")
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"isthmus", "isthmus-lab", "isthmus-lab-kube", "isthmus-controller", "ztunnel"} {
		if _, err := exec.LookPath(filepath.Join(bin, program)); err != nil {
			clients.Missing(t, "a program is not built (make build): %v", err)
		}
	}
	scripts, err := filepath.Abs(filepath.Join("..", "..", "examples", "guide", "scripts"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{scripts: scripts}
	lab := filepath.Join(t.TempDir(), "lab")
	tools := t.TempDir()
	// A CLI older than AWS_ENDPOINT_URL needs the endpoint as an argument.
	shim := "#!/bin/sh\nexec " + aws + " --endpoint-url \"$AWS_ENDPOINT_URL\" \"$@\"\n"
	if err := os.WriteFile(filepath.Join(tools, "aws"), []byte(shim), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	for _, name := range []string{"isthmus", "istioctl"} {
		if err := os.Symlink(filepath.Join(bin, "isthmus"), filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "AWS_") && name != "KUBECONFIG" && !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			w.env = append(w.env, kv)
		}
	}
	w.env = append(w.env, "ISTHMUS_LAB_DIR="+lab, "NO_COLOR=1", "PATH="+bin+":"+plugin+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		if _, _, err := w.run(context.Background(), "isthmus lab down"); err != nil {
			t.Errorf("lab down: %v", err)
		}
	})
	w.must(t, "isthmus lab up")
	out := w.must(t, `eval "$(isthmus lab env)"; export PATH="`+tools+`:$PATH"; env -0`)
	w.env = strings.Split(strings.TrimRight(out, "\x00"), "\x00")
	return w
}

// run runs a command line in bash and returns what it wrote and its exit code.
func (w *world) run(ctx context.Context, line string) (out string, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", line) //nolint:gosec // a test's command line
	c.Env, c.Dir, c.WaitDelay = w.env, filepath.Dir(w.scripts), 5*time.Second
	b, err := c.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(b), exit.ExitCode(), nil
	}
	return string(b), 0, err
}

func (w *world) must(t *testing.T, line string) string {
	t.Helper()
	start := time.Now()
	out, code, err := w.run(t.Context(), line)
	if err != nil || code != 0 {
		t.Fatalf("%s: exit code %d, %v\n%s", line, code, err, out)
	}
	t.Logf("%s (%s)", line, time.Since(start).Round(time.Second/10))
	return out
}

// TestGuideScripts walks through the guide with its scripts, from the roles to the clean-up.
func TestGuideScripts(t *testing.T) {
	w := newWorld(t)
	w.must(t, "scripts/setup-infrastructure.sh && scripts/create-iam-roles.sh")
	w.must(t, "kubectl apply -f ../eastwest-gateway.yaml -f ../eks-shell.yaml -f ../eks-echo.yaml && kubectl label namespace default istio.io/dataplane-mode=ambient --overwrite")
	w.must(t, "kubectl wait -n istio-system gateway/eastwest --for=condition=Programmed --timeout=120s")
	w.must(t, "scripts/deploy-ecs-clusters.sh")
	w.must(t, "scripts/create-k8s-namespaces.sh")
	if out := w.must(t, "isthmus ecs infra plan"); !strings.Contains(out, "everything is in place") {
		t.Errorf("the scripts make other roles than isthmus does:\n%s", out)
	}
	w.must(t, "scripts/add-services-to-mesh.sh")
	if out := w.must(t, "scripts/add-services-to-mesh.sh"); strings.Contains(out, "->") || strings.Count(out, "unchanged") != 4 {
		t.Errorf("adding the services again changed something:\n%s", out)
	}
	if out := w.must(t, "isthmus check --wait 2m -o short"); strings.Contains(out, "FAIL") {
		t.Errorf("check:\n%s", out)
	}
	rows := w.must(t, "istioctl ztunnel-config workloads | grep demo | awk '{ print $2 \"\\t\" $5; }'")
	if n := strings.Count(rows, "HBONE"); n != 4 {
		t.Errorf("%d workloads use HBONE, want 4:\n%s", n, rows)
	}
	out := w.must(t, "ORIGIN_CLUSTER=ecs-demo-1 scripts/test/call-from-ecs.sh echo-service.ecs-demo-2.ecs.local:8080")
	if !strings.Contains(out, `"hostname": "echo-service.ecs-demo-2.ecs.local"`) {
		t.Errorf("call-from-ecs.sh:\n%s", out)
	}
	out = w.must(t, "scripts/test/test-authz-policies.sh -e all")
	if strings.Contains(out, "differs") || strings.Count(out, "[TEST]") != 30 || strings.Count(out, "[PASS]") != 22 {
		t.Errorf("test-authz-policies.sh -e all: want 30 tests of which 22 pass:\n%s", out)
	}
	if !regexp.MustCompile(`Connection failed: curl: \(56\) Recv failure: Connection reset`).MatchString(out) {
		t.Errorf("no refusal has the guide's text:\n%s", out)
	}
	w.must(t, "scripts/test/test-authz-policies.sh --cleanup")
	w.must(t, "scripts/cleanup.sh -y")
	w.must(t, "scripts/cleanup.sh -y") // it can be repeated
	if out := w.must(t, "aws ecs list-clusters --query 'length(clusterArns)' --output text"); strings.TrimSpace(out) != "0" {
		t.Errorf("clusters left: %s", out)
	}
	if out := w.must(t, "isthmus ecs infra plan"); strings.Count(out, "create") != 4 { // two roles, security group, log group
		t.Errorf("the clean-up left:\n%s", out)
	}
}

// TestScriptsParse needs nothing but bash.
func TestScriptsParse(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "examples", "guide", "scripts", "*.sh"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join("..", "..", "examples", "guide", "scripts", "test", "*.sh"))
	if err != nil {
		t.Fatal(err)
	}
	if files = append(files, more...); len(files) < 8 {
		t.Fatalf("found %d scripts, want at least 8", len(files))
	}
	for _, f := range files {
		if out, err := exec.CommandContext(t.Context(), "bash", "-n", f).CombinedOutput(); err != nil { //nolint:gosec // our own files
			t.Errorf("%s: %v\n%s", f, err, out)
		}
	}
}

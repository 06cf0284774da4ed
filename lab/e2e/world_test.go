package e2e

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// The names of the guide.
const (
	cluster1       = "ecs-demo-1"
	cluster2       = "ecs-demo-2"
	echo           = "echo-service"
	shell          = "shell-task"
	echoHost1      = "echo-service.ecs-demo-1.ecs.local:8080"
	echoHost2      = "echo-service.ecs-demo-2.ecs.local:8080"
	proxyContainer = "ztunnel"
	serviceAccount = "ecs-demo-sa-local"
	logGroup       = "/ecs/ecs-demo"
)

// Deadlines are long, because the machine of a test may do other things too: nothing waits for them to pass.
const (
	short = 30 * time.Second
	long  = 3 * time.Minute
)

// world is the lab under test and the clients with which it is used.
type world struct {
	bin, dir, work string
	keep           bool
	ready          bool              // setUp has worked
	env            []string          // of commands
	vars           map[string]string // the same
	pid            int               // the lab's process 1

	kube *kube.Client
	aws  aws.Config
	ecs  *ecs.Client
	logs *cloudwatchlogs.Client
	iam  *iam.Client
	ec2  *ec2.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{bin: programs(t), dir: os.Getenv("ISTHMUS_E2E_DIR"), work: t.TempDir()}
	w.keep = w.dir != ""
	if !w.keep {
		w.dir = filepath.Join(t.TempDir(), "lab")
	}
	examples, err := filepath.Abs(filepath.Join("..", "..", "examples"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(examples, filepath.Join(w.work, "examples")); err != nil {
		t.Fatal(err)
	}
	w.env = append(cleanEnviron(), "ISTHMUS_LAB_DIR="+w.dir, "PATH="+w.bin+":"+os.Getenv("PATH"), "NO_COLOR=1")
	return w
}

// cleanEnviron is this process's environment without what would lead the programs elsewhere than to the lab.
func cleanEnviron() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "AWS_") || strings.HasSuffix(strings.ToLower(name), "_proxy") || name == "KUBECONFIG" {
			continue
		}
		env = append(env, kv)
	}
	return env
}

// up starts the lab, reads its environment as a shell does, and makes the clients. It sees to the lab's end.
func (w *world) up(t *testing.T) {
	t.Helper()
	if !w.keep {
		t.Cleanup(func() {
			if !w.ready && t.Failed() {
				w.printLogs(t)
			}
			w.run(context.WithoutCancel(t.Context()), "isthmus", "lab", "down")
		})
	}
	start := time.Now()
	w.must(t, "isthmus", "lab", "up")
	t.Logf("lab ready after %s", time.Since(start).Round(time.Second/10))
	out := w.must(t, "bash", "-c", `eval "$(isthmus lab env)"; env -0`)
	w.env, w.vars = nil, map[string]string{}
	for kv := range strings.SplitSeq(strings.TrimRight(out, "\x00"), "\x00") {
		name, value, _ := strings.Cut(kv, "=")
		w.env, w.vars[name] = append(w.env, kv), value
	}
	w.pid = w.readPID(t)
	var err error
	w.kube, err = kube.New(kube.Config{Kubeconfig: w.vars["KUBECONFIG"], Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	profile, err := config.LoadSharedConfigProfile(t.Context(), "default", func(o *config.LoadSharedConfigOptions) {
		o.ConfigFiles, o.CredentialsFiles = []string{w.vars["AWS_CONFIG_FILE"]}, []string{w.vars["AWS_SHARED_CREDENTIALS_FILE"]}
	})
	if err != nil {
		t.Fatal(err)
	}
	w.vars["AWS_ACCESS_KEY_ID"], w.vars["AWS_SECRET_ACCESS_KEY"] = profile.Credentials.AccessKeyID, profile.Credentials.SecretAccessKey
	w.aws = aws.Config{
		Region: w.vars["AWS_REGION"], BaseEndpoint: aws.String(w.vars["AWS_ENDPOINT_URL"]),
		Credentials: credentials.StaticCredentialsProvider{Value: profile.Credentials},
	}
	w.ecs, w.logs, w.iam, w.ec2 = ecs.NewFromConfig(w.aws), cloudwatchlogs.NewFromConfig(w.aws), iam.NewFromConfig(w.aws), ec2.NewFromConfig(w.aws)
}

// setUp does the guide's steps 0 to 5.
func (w *world) setUp(t *testing.T) {
	t.Helper()
	start := time.Now()
	for _, command := range []string{
		"isthmus config init --force",
		"isthmus ecs infra",
		"kubectl apply -f examples/eastwest-gateway.yaml",
		"kubectl label namespace istio-system topology.istio.io/network=eks --overwrite",
		"kubectl wait -n istio-system gateway/eastwest --for=condition=Programmed --timeout=120s",
		"isthmus ecs deploy",
		"isthmus ecs namespaces",
		"isthmus ecs add-service --all --wait",
		"kubectl label namespace default istio.io/dataplane-mode=ambient --overwrite",
		"kubectl apply -f examples/eks-echo.yaml -f examples/eks-shell.yaml",
		"kubectl rollout status deployment/eks-shell --timeout=120s",
		"kubectl rollout status deployment/eks-echo --timeout=120s",
	} {
		w.must(t, strings.Fields(command)[0], strings.Fields(command)[1:]...)
	}
	for _, cluster := range []string{cluster1, cluster2} {
		w.awaitEntries(t, cluster, echo, 1)
		w.awaitEntries(t, cluster, shell, 1)
	}
	w.awaitCall(t, cluster2, echoHost1)
	w.ready = true
	t.Logf("guide's steps 0 to 5 done after %s", time.Since(start).Round(time.Second/10))
}

// outcome is how a command ended.
type outcome struct {
	stdout, stderr string
	code           int
	err            error // the command did not run
}

func (o outcome) String() string {
	return strings.TrimSpace(o.stdout + "\n" + o.stderr)
}

// run runs a command as a user of the lab.
func (w *world) run(ctx context.Context, name string, args ...string) outcome {
	ctx, cancel := context.WithTimeout(ctx, 2*long)
	defer cancel()
	path := filepath.Join(w.bin, name)
	for _, dir := range []string{w.bin, filepath.Join(w.dir, "bin")} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			path = filepath.Join(dir, name)
			break
		}
		path = name
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = w.work, w.env, &stdout, &stderr
	err := cmd.Run()
	o := outcome{stdout: stdout.String(), stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		o.code = exit.ExitCode()
	case err != nil:
		o.err, o.code = err, -1
	}
	return o
}

// must runs a command that has to work and returns what it printed.
func (w *world) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	o := w.run(t.Context(), name, args...)
	if o.err != nil || o.code != 0 {
		t.Fatalf("%s %s = exit code %d, %v:\n%s", name, strings.Join(args, " "), o.code, o.err, o)
	}
	return o.stdout
}

// apply gives an object to kubectl.
func (w *world) apply(t *testing.T, object string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "object.yaml")
	if err := os.WriteFile(file, []byte(object), 0o600); err != nil {
		t.Fatal(err)
	}
	w.must(t, "kubectl", "apply", "-f", file)
}

// pollEvery is the pause between two looks at something that is being waited for.
const pollEvery = 100 * time.Millisecond

// await polls until done, and fails the test with the last state when that takes longer than limit.
func await(t *testing.T, limit time.Duration, what string, done func() (ok bool, state string)) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		ok, state := done()
		took := time.Since(start)
		if ok {
			return took
		}
		if took > limit {
			t.Fatalf("waited %s in vain until %s: %s", limit, what, state)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("interrupted while waiting until %s: %s", what, state)
		case <-tick.C:
		}
	}
}

// awaitCall calls from the shell-task of a cluster until it works.
func (w *world) awaitCall(t *testing.T, cluster, host string) time.Duration {
	t.Helper()
	return await(t, short, "a call from "+cluster+" to "+host+" works", func() (bool, string) {
		o := w.run(t.Context(), "isthmus", "ecs", "call", "--from", cluster+"/"+shell, host)
		return o.code == 0 && strings.Contains(o.stdout, `"hostname"`), o.String()
	})
}

// printLogs shows the ends of the lab's logs, for a failure that nobody was there to see.
func (w *world) printLogs(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), short)
	defer cancel()
	t.Logf("status:\n%s", w.run(ctx, "isthmus", "lab", "status"))
	for _, name := range []string{"daemon", "isthmus-controller", "istiod"} {
		t.Logf("log of %s:\n%s", name, w.run(ctx, "isthmus", "lab", "logs", "--tail", "30", name))
	}
}

package rolltest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/lab/images"
	"github.com/isthmus-mesh/isthmus/test/clients"
)

const (
	cluster = "ecs-demo-1"
	echo    = "echo-service"
	host    = "echo-service.ecs-demo-1.ecs.local:8080"
	patient = 3 * time.Minute
)

// bench is a lab with the guide's services in the mesh.
type bench struct {
	t         *testing.T
	bin, work string
	env       []string
	ecs       *ecs.Client
}

// sh runs a command in the lab's environment and returns what it printed.
func (b *bench) sh(command string) string {
	b.t.Helper()
	c := exec.CommandContext(b.t.Context(), "bash", "-c", command)
	c.Dir, c.Env = b.work, b.env
	var errw bytes.Buffer
	c.Stderr = &errw
	out, err := c.Output()
	if err != nil {
		b.t.Fatalf("%s: %v\n%s%s", command, err, out, errw.String())
	}
	return string(out)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: a rolling deployment under load takes a minute, and -short was given")
	}
	bin, err := filepath.Abs(cmp.Or(os.Getenv("ISTHMUS_BIN"), filepath.Join("..", "..", "bin")))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"isthmus", "isthmus-lab", "isthmus-lab-kube", "isthmus-controller", "ztunnel"} {
		if _, err := exec.LookPath(filepath.Join(bin, program)); err != nil {
			clients.Missing(t, "a program is not built (make build): %v", err)
		}
	}
	b := &bench{t: t, bin: bin, work: t.TempDir()}
	dir, keep := os.Getenv("ISTHMUS_ROLL_DIR"), true
	if dir == "" {
		dir, keep = filepath.Join(b.work, "lab"), false
	}
	examples, err := filepath.Abs(filepath.Join("..", "..", "examples"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(examples, filepath.Join(b.work, "examples")); err != nil {
		t.Fatal(err)
	}
	b.env = append(os.Environ(), "ISTHMUS_LAB_DIR="+dir, "PATH="+bin+":"+os.Getenv("PATH"), "NO_COLOR=1")
	b.sh("isthmus lab up")
	if !keep {
		t.Cleanup(func() {
			down := exec.Command(filepath.Join(bin, "isthmus"), "lab", "down")
			down.Env = b.env
			if out, err := down.CombinedOutput(); err != nil {
				t.Errorf("lab down: %v\n%s", err, out)
			}
		})
	}
	b.env = strings.Split(strings.TrimRight(b.sh(`eval "$(isthmus lab env)"; env -0`), "\x00"), "\x00")
	cfg, err := config.LoadDefaultConfig(t.Context(), config.WithSharedConfigFiles([]string{filepath.Join(dir, "aws", "config")}),
		config.WithSharedCredentialsFiles([]string{filepath.Join(dir, "aws", "credentials")}), config.WithSharedConfigProfile("default"))
	if err != nil {
		t.Fatal(err)
	}
	b.ecs = ecs.NewFromConfig(cfg)
	return b
}

// guide does the steps up to services in the mesh.
func (b *bench) guide() {
	b.t.Helper()
	for _, command := range []string{
		"isthmus config init --force", "isthmus ecs infra", "kubectl apply -f examples/eastwest-gateway.yaml",
		"kubectl label namespace istio-system topology.istio.io/network=eks --overwrite",
		"kubectl wait -n istio-system gateway/eastwest --for=condition=Programmed --timeout=120s",
		"isthmus ecs deploy", "isthmus ecs namespaces", "isthmus ecs add-service --all --wait",
		"kubectl label namespace default istio.io/dataplane-mode=ambient --overwrite",
	} {
		b.sh(command)
	}
}

// await polls until done.
func (b *bench) await(what string, done func() (bool, string)) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patient)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, state := done()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			b.t.Fatalf("waited in vain until %s: %s", what, state)
		case <-tick.C:
		}
	}
}

// steady waits until the service has one deployment whose tasks all run, and the mesh has as many endpoints.
func (b *bench) steady(want int32) {
	b.t.Helper()
	b.await("the service is steady", func() (bool, string) {
		out, err := b.ecs.DescribeServices(b.t.Context(), &ecs.DescribeServicesInput{Cluster: aws.String(cluster), Services: []string{echo}})
		if err != nil || len(out.Services) != 1 {
			return false, fmt.Sprint(err)
		}
		s := out.Services[0]
		return len(s.Deployments) == 1 && s.Deployments[0].RolloutState == "COMPLETED" && s.RunningCount == want && s.PendingCount == 0,
			fmt.Sprintf("%d deployments, %d running, %d pending", len(s.Deployments), s.RunningCount, s.PendingCount)
	})
	b.await("the mesh has its tasks", func() (bool, string) {
		n := strings.Count(b.sh("kubectl get workloadentry -n "+cluster+" -l ecs.solo.io/service="+echo+" -o name"), "\n")
		return n == int(want), fmt.Sprintf("%d WorkloadEntries", n)
	})
}

// definition registers the service's task definition with a LAME_DUCK: the application goes on serving for a while after
// it was asked to stop, as one must that sits behind any discovery. Without it, what is sent before the mesh has heard of
// the end finds a closed port. It also gets a health check: without one ECS says RUNNING as soon as the program is started,
// events carry that to the mesh at once, and what is sent before the program listens is refused.
func (b *bench) definition() *string {
	b.t.Helper()
	ctx := b.t.Context()
	services, err := b.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: aws.String(cluster), Services: []string{echo}})
	if err != nil || len(services.Services) != 1 {
		b.t.Fatalf("describe %s: %v", echo, err)
	}
	out, err := b.ecs.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: services.Services[0].TaskDefinition, Include: []types.TaskDefinitionField{types.TaskDefinitionFieldTags}})
	if err != nil {
		b.t.Fatal(err)
	}
	d := out.TaskDefinition
	for i := range d.ContainerDefinitions {
		if c := &d.ContainerDefinitions[i]; aws.ToString(c.Name) == echo {
			c.Environment = slices.DeleteFunc(c.Environment, func(kv types.KeyValuePair) bool { return aws.ToString(kv.Name) == "LAME_DUCK" })
			if os.Getenv("ISTHMUS_ROLL_HEALTH") != "none" {
				c.HealthCheck = &types.HealthCheck{Command: []string{"CMD-SHELL", "curl -fsS -o /dev/null --max-time 2 http://127.0.0.1:8080/"},
					Interval: aws.Int32(5), Timeout: aws.Int32(2), Retries: aws.Int32(3)}
			} else {
				c.HealthCheck = nil
			}
			c.Environment = append(c.Environment, types.KeyValuePair{Name: aws.String("LAME_DUCK"), Value: aws.String(cmp.Or(os.Getenv("ISTHMUS_ROLL_LAME_DUCK"), "5s"))})
		}
	}
	made, err := b.ecs.RegisterTaskDefinition(ctx, &ecs.RegisterTaskDefinitionInput{Family: d.Family, NetworkMode: d.NetworkMode, Cpu: d.Cpu, Memory: d.Memory,
		TaskRoleArn: d.TaskRoleArn, ExecutionRoleArn: d.ExecutionRoleArn, RequiresCompatibilities: d.RequiresCompatibilities,
		ContainerDefinitions: d.ContainerDefinitions, Volumes: d.Volumes, Tags: out.Tags})
	if err != nil {
		b.t.Fatal(err)
	}
	return made.TaskDefinition.TaskDefinitionArn
}

const loadPod = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default}
spec:
  restartPolicy: Never
  containers:
  - {name: load, image: isthmus/load, args: [--url, "http://%[2]s", --rate, "%[3]s", --for, %[4]s%[5]s]}
`

// TestRollingDeploymentLosesNothing rolls a service of three tasks over twice while a pod sends it a steady stream of
// requests, each over a connection of its own.
func TestRollingDeploymentLosesNothing(t *testing.T) {
	b := newBench(t)
	b.guide()
	update := func(in ecs.UpdateServiceInput) {
		t.Helper()
		in.Cluster, in.Service = aws.String(cluster), aws.String(echo)
		if _, err := b.ecs.UpdateService(t.Context(), &in); err != nil {
			t.Fatal(err)
		}
	}
	update(ecs.UpdateServiceInput{DesiredCount: aws.Int32(3), TaskDefinition: b.definition()})
	b.steady(3)
	b.sh("kubectl delete pod load --ignore-not-found --wait")
	spec := fmt.Sprintf(loadPod, "load", host, cmp.Or(os.Getenv("ISTHMUS_ROLL_RATE"), "200"), "10m", os.Getenv("ISTHMUS_ROLL_ARGS"))
	if err := os.WriteFile(filepath.Join(b.work, "load.yaml"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	b.sh("kubectl apply -f load.yaml && kubectl wait --for=condition=Ready pod/load --timeout=60s")
	begin := time.Now()
	mark := func(what string) {
		t.Logf("%6.1fs %s %s", time.Since(begin).Seconds(), time.Now().UTC().Format("15:04:05.000"), what)
	}
	mark("load")
	for i := range 2 {
		update(ecs.UpdateServiceInput{ForceNewDeployment: true})
		mark(fmt.Sprintf("deployment %d begins", i+1))
		b.steady(3)
		mark(fmt.Sprintf("deployment %d is complete", i+1))
	}
	// A signal ends the generator, which then waits for what is under way and prints what it has seen.
	b.sh("kubectl exec load -- sh -c 'kill -TERM 1'")
	b.await("the generator has ended", func() (bool, string) {
		phase := b.sh("kubectl get pod load -o jsonpath='{.status.phase}'")
		return phase == "Succeeded", phase
	})
	var r images.LoadResult
	out := b.sh("kubectl logs load")
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("the generator said %q: %v", out, err)
	}
	t.Logf("%d requests, %d good, %d failed, %d skipped; p50 %.1f ms, p99 %.1f ms, longest %.0f ms", r.Sent, r.OK, r.Failed, r.Skipped, r.P50, r.P99, r.Max)
	for _, f := range r.Failures {
		t.Logf("failed: sent %s, after %.0f ms: %s", f.At.Format("15:04:05.000"), f.After, f.Error)
	}
	if r.Failed > 0 || r.Sent == 0 {
		t.Errorf("%d of %d requests were lost", r.Failed, r.Sent)
	}
}

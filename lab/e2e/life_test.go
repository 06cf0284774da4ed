package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// life is a run of testLife.
type life struct {
	w       *world
	c       *caller
	phases  []phase
	stopped int // tasks
}

func (l *life) enter(name string) { l.phases = append(l.phases, phase{name, time.Now()}) }

// settle waits until n tasks are in the mesh, in the eyes of the caller's own proxy too, and for calls after that.
func (l *life) settle(t *testing.T, n int) []types.Task {
	t.Helper()
	tasks := l.w.awaitEntries(t, cluster1, echo, n)
	took := await(t, short, "the caller's proxy knows the tasks", func() (bool, string) {
		o := l.w.run(t.Context(), "isthmus", "ztunnel-config", "workloads", "-n", cluster1, "--task", cluster2+"/"+shell)
		for _, task := range tasks {
			if !hasLine(o.stdout, []string{taskID(task), address(task), "HBONE"}) {
				return false, o.String()
			}
		}
		return strings.Count(o.stdout, "ecs-task-") == n+1, o.String() // and the shell-task
	})
	t.Logf("the caller's proxy knows them %s later", took.Round(time.Second/10))
	l.enter(settled + l.phases[len(l.phases)-1].name)
	l.c.awaitCalls(t, 20)
	return tasks
}

// settled begins the names of phases in which every proxy knows the truth.
const settled = "after: "

// testLife takes a service through what ECS does with services, while somebody calls it all the time.
func testLife(t *testing.T, w *world) {
	begin := time.Now()
	entry := w.serviceEntry(t)
	l := &life{w: w}
	l.enter(settled + "the start")
	l.c = w.startCaller(t, w.task(t, cluster2, shell), echoHost1)

	l.enter("scale to 3")
	w.update(t, ecs.UpdateServiceInput{DesiredCount: aws.Int32(3)})
	tasks := l.settle(t, 3)

	l.enter("stop one task")
	l.stopped++
	if _, err := w.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String(cluster1), Task: tasks[1].TaskArn, Reason: aws.String("end-to-end test")}); err != nil {
		t.Fatal(err)
	}
	for _, task := range l.settle(t, 3) {
		if taskID(task) == taskID(tasks[1]) {
			t.Errorf("task %s still runs", taskID(task))
		}
	}

	l.enter("replace the task definition")
	l.stopped += 3
	revision := w.nextRevision(t)
	w.update(t, ecs.UpdateServiceInput{TaskDefinition: aws.String(revision)})
	await(t, long, "the new revision is rolled out", func() (bool, string) {
		out, err := w.ecs.DescribeServices(t.Context(), &ecs.DescribeServicesInput{Cluster: aws.String(cluster1), Services: []string{echo}})
		if err != nil || len(out.Services) != 1 {
			return false, fmt.Sprint(err)
		}
		s := out.Services[0]
		return len(s.Deployments) == 1 && aws.ToString(s.Deployments[0].TaskDefinition) == revision && s.RunningCount == 3 && s.PendingCount == 0,
			fmt.Sprintf("%d deployments, %d tasks run, %d pending", len(s.Deployments), s.RunningCount, s.PendingCount)
	})
	for _, task := range l.settle(t, 3) {
		if got := aws.ToString(task.TaskDefinitionArn); got != revision {
			t.Errorf("task %s has definition %s, want %s", taskID(task), got, revision)
		}
	}
	if out := w.must(t, "isthmus", "ecs", "call", "--from", cluster2+"/"+shell, echoHost1); !strings.Contains(out, `"E2E_REVISION":"2"`) {
		t.Errorf("a task of another revision answers: %s", out)
	}

	l.enter("scale to 1")
	l.stopped += 2
	w.update(t, ecs.UpdateServiceInput{DesiredCount: aws.Int32(1)})
	l.settle(t, 1)
	l.judge(t)
	t.Logf("a life of %s", time.Since(begin).Round(time.Second))
	if after := w.serviceEntry(t); after.GetUID() != entry.GetUID() {
		t.Errorf("the service entry was made anew: its uid was %s and is %s", entry.GetUID(), after.GetUID())
	}
}

// judge looks at the calls.
func (l *life) judge(t *testing.T) {
	t.Helper()
	calls := l.c.stop(t)
	failed := reportCalls(t, calls, l.phases)
	t.Logf("%d of %d calls failed, with %d tasks stopped", len(failed), len(calls), l.stopped)
	// ECS stops an application before anybody can know that its task is going; the caller's proxy then goes to another.
	for _, f := range failed {
		t.Errorf("a call failed in phase %q: code %d, %s", f.phase, f.code, f.detail)
	}
}

// update changes cluster 1's echo service.
func (w *world) update(t *testing.T, in ecs.UpdateServiceInput) {
	t.Helper()
	in.Cluster, in.Service = aws.String(cluster1), aws.String(echo)
	if _, err := w.ecs.UpdateService(t.Context(), &in); err != nil {
		t.Fatal(err)
	}
}

// serviceEntry returns the ServiceEntry of cluster 1's echo service.
func (w *world) serviceEntry(t *testing.T) *kube.Object {
	t.Helper()
	o, err := w.kube.Get(t.Context(), kube.ServiceEntries, cluster1, "ecs-service-123456789012-us-east-2-ecs-demo-1-echo-service")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// nextRevision registers the echo service's definition with one more variable in the application's environment.
func (w *world) nextRevision(t *testing.T) string {
	t.Helper()
	d, tags := w.definition(t)
	for i := range d.ContainerDefinitions {
		if c := &d.ContainerDefinitions[i]; aws.ToString(c.Name) != proxyContainer {
			c.Environment = append(c.Environment, types.KeyValuePair{Name: aws.String("E2E_REVISION"), Value: aws.String("2")})
		}
	}
	return w.register(t, d, tags)
}

// definition returns the definition of cluster 1's echo service, and its tags.
func (w *world) definition(t *testing.T) (*types.TaskDefinition, []types.Tag) {
	t.Helper()
	services, err := w.ecs.DescribeServices(t.Context(), &ecs.DescribeServicesInput{Cluster: aws.String(cluster1), Services: []string{echo}})
	if err != nil {
		t.Fatal(err)
	}
	have, err := w.ecs.DescribeTaskDefinition(t.Context(), &ecs.DescribeTaskDefinitionInput{
		TaskDefinition: services.Services[0].TaskDefinition, Include: []types.TaskDefinitionField{types.TaskDefinitionFieldTags},
	})
	if err != nil {
		t.Fatal(err)
	}
	return have.TaskDefinition, have.Tags
}

// register registers a definition and returns its ARN.
func (w *world) register(t *testing.T, d *types.TaskDefinition, tags []types.Tag) string {
	t.Helper()
	out, err := w.ecs.RegisterTaskDefinition(t.Context(), &ecs.RegisterTaskDefinitionInput{
		Family: d.Family, NetworkMode: d.NetworkMode, Cpu: d.Cpu, Memory: d.Memory, RequiresCompatibilities: d.RequiresCompatibilities,
		ContainerDefinitions: d.ContainerDefinitions, Volumes: d.Volumes, ProxyConfiguration: d.ProxyConfiguration,
		TaskRoleArn: d.TaskRoleArn, ExecutionRoleArn: d.ExecutionRoleArn, Tags: tags,
	})
	if err != nil {
		t.Fatal(err)
	}
	return aws.ToString(out.TaskDefinition.TaskDefinitionArn)
}

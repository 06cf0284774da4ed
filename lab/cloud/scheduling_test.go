package cloud_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
)

// TestRollingDeployment checks that a deployment never has fewer serving tasks than it may, nor more in all.
func TestRollingDeployment(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name             string
		minimum, maximum int32
		fewest, most     int
	}{
		{"double", 100, 200, 3, 6},
		{"in place", 50, 100, 2, 3},
		{"one more", 100, 150, 3, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.cluster("c")
			def := l.register("f", app("a"))
			must(l.ecs().CreateService(t.Context(), &awsecs.CreateServiceInput{Cluster: aws.String("c"), ServiceName: aws.String("s"), TaskDefinition: aws.String(def),
				DesiredCount: aws.Int32(3), NetworkConfiguration: network(),
				DeploymentConfiguration: &types.DeploymentConfiguration{MinimumHealthyPercent: aws.Int32(c.minimum), MaximumPercent: aws.Int32(c.maximum)}}))(t)
			l.steady("c", "s")
			next := l.register("f", app("a"))
			must(l.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), TaskDefinition: aws.String(next)}))(t)
			l.eventually("the deployment is complete", func() bool {
				sv := l.describeService("c", "s")
				wanted, serving := l.tasks("c", "s"), 0
				for _, task := range wanted {
					if *task.LastStatus == "RUNNING" {
						serving++
					}
				}
				if serving < c.fewest || len(wanted) > c.most {
					t.Errorf("%d serving of %d tasks, want at least %d and at most %d", serving, len(wanted), c.fewest, c.most)
				}
				return len(sv.Deployments) == 1 && sv.Deployments[0].RolloutState == types.DeploymentRolloutStateCompleted
			})
			for _, task := range l.tasks("c", "s") {
				if *task.TaskDefinitionArn != next {
					t.Errorf("task of %s is left", *task.TaskDefinitionArn)
				}
			}
		})
	}
}

func TestForceNewDeployment(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	l.service("c", "s", l.register("f", app("a")), 1)
	l.steady("c", "s")
	before := *l.tasks("c", "s")[0].TaskArn
	must(l.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), ForceNewDeployment: true}))(t)
	l.steady("c", "s")
	if after := *l.tasks("c", "s")[0].TaskArn; after == before {
		t.Error("the task was not replaced")
	}
	out := must(l.ecs().DescribeTasks(t.Context(), &awsecs.DescribeTasksInput{Cluster: aws.String("c"), Tasks: []string{before}}))(t)
	l.eventually("the old task is STOPPED", func() bool {
		out = must(l.ecs().DescribeTasks(t.Context(), &awsecs.DescribeTasksInput{Cluster: aws.String("c"), Tasks: []string{before}}))(t)
		return *out.Tasks[0].LastStatus == "STOPPED"
	})
	if old := out.Tasks[0]; old.StopCode != types.TaskStopCodeServiceSchedulerInitiated || old.StoppedAt == nil || *old.Containers[0].ExitCode != 0 {
		t.Errorf("old task: stop code %s, exit code %v", old.StopCode, old.Containers[0].ExitCode)
	}
}

func healthy(c types.ContainerDefinition) types.ContainerDefinition {
	c.HealthCheck = &types.HealthCheck{Command: []string{"CMD", "check"}, Interval: aws.Int32(5), Timeout: aws.Int32(2), Retries: aws.Int32(1)}
	return c
}

// TestHealthGating checks that a new deployment waits for health before the old one goes, and that dependsOn HEALTHY
// holds the application back.
func TestHealthGating(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	gate := make(chan struct{})
	l.rt.exec = func(_ *fakeContainer, spec ecs.ExecSpec) (int, error) {
		if spec.Command[0] != "check" {
			t.Errorf("health command = %q", spec.Command)
		}
		select {
		case <-gate:
			return 0, nil
		default:
			return 1, nil
		}
	}
	l.cluster("c")
	plain := l.register("f", app("app"))
	l.service("c", "s", plain, 1)
	l.steady("c", "s")
	proxy := healthy(app("ztunnel"))
	waiting := app("app")
	waiting.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("ztunnel"), Condition: types.ContainerConditionHealthy}}
	def := l.register("f", waiting, proxy)
	must(l.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), TaskDefinition: aws.String(def)}))(t)
	l.eventually("the proxy is started", func() bool { return len(l.rt.running("ztunnel")) == 1 })
	tasks := l.tasks("c", "s")
	if len(tasks) != 2 || len(l.rt.running("app")) != 1 {
		t.Fatalf("tasks = %d, applications = %d: want the old task and a held new one", len(tasks), len(l.rt.running("app")))
	}
	for _, task := range tasks {
		if *task.TaskDefinitionArn == def && *task.LastStatus != "PENDING" {
			t.Errorf("new task = %s, want PENDING", *task.LastStatus)
		}
	}
	close(gate)
	l.steady("c", "s")
	task := l.tasks("c", "s")[0]
	for _, c := range task.Containers {
		want := map[string]types.HealthStatus{"ztunnel": types.HealthStatusHealthy, "app": types.HealthStatusUnknown}[*c.Name]
		if c.HealthStatus != want {
			t.Errorf("container %s = %s, want %s", *c.Name, c.HealthStatus, want)
		}
	}
	if task.HealthStatus != types.HealthStatusUnknown {
		t.Errorf("task health = %s, want UNKNOWN because one essential container has no check", task.HealthStatus)
	}
}

func TestDependencyOrder(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.rt.exitAtOnce["init"] = 0
	init := app("init")
	init.Essential = aws.Bool(false)
	proxy := healthy(app("proxy"))
	proxy.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("init"), Condition: types.ContainerConditionSuccess}}
	main := app("main")
	main.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("proxy"), Condition: types.ContainerConditionHealthy}}
	l.cluster("c")
	l.register("f", main, proxy, init)
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	must(l.ecs().StopTask(t.Context(), &awsecs.StopTaskInput{Cluster: aws.String("c"), Task: aws.String(arn), Reason: aws.String("enough")}))(t)
	l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
	got := slices.DeleteFunc(l.rt.noted(), func(s string) bool { return s == "stop init" })
	if diff := cmp.Diff([]string{"start init", "start proxy", "start main", "stop main", "stop proxy"}, got); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	task := l.task("c", arn)
	if task.StopCode != types.TaskStopCodeUserInitiated || *task.StoppedReason != "enough" || len(task.Tags) != 0 {
		t.Errorf("stopped task = %s %q, tags %v", task.StopCode, *task.StoppedReason, task.Tags)
	}
	if task.Version < 6 || *task.Attachments[0].Status != "DELETED" {
		t.Errorf("version %d, attachment %s", task.Version, *task.Attachments[0].Status)
	}
}

func TestDependencyThatFails(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.rt.exitAtOnce["init"] = 7
	init := app("init")
	init.Essential = aws.Bool(false)
	main := app("main")
	main.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("init"), Condition: types.ContainerConditionSuccess}}
	l.cluster("c")
	l.register("f", main, init)
	arn := l.run("c", "f")
	l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
	task := l.task("c", arn)
	if task.StopCode != types.TaskStopCodeTaskFailedToStart || !strings.Contains(*task.StoppedReason, "exited with code 7") {
		t.Errorf("task = %s %q", task.StopCode, *task.StoppedReason)
	}
	if len(l.rt.running("main")) != 0 || slices.Contains(l.rt.noted(), "start main") {
		t.Error("the dependent container was started")
	}
}

func TestStartTimeout(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.rt.exec = func(*fakeContainer, ecs.ExecSpec) (int, error) { return 1, nil }
	proxy := healthy(app("proxy"))
	proxy.HealthCheck.StartPeriod = aws.Int32(300)
	proxy.StartTimeout = aws.Int32(1)
	main := app("main")
	main.DependsOn = []types.ContainerDependency{{ContainerName: aws.String("proxy"), Condition: types.ContainerConditionHealthy}}
	l.cluster("c")
	l.register("f", main, proxy)
	arn := l.run("c", "f")
	l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
	if task := l.task("c", arn); task.StopCode != types.TaskStopCodeTaskFailedToStart || !strings.Contains(*task.StoppedReason, "startTimeout of 1s") {
		t.Errorf("task = %s %q", task.StopCode, *task.StoppedReason)
	}
}

func TestEssentialContainer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	helper := app("helper")
	helper.Essential = aws.Bool(false)
	l.cluster("c")
	l.register("f", app("main"), helper)
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	l.rt.running("helper")[0].exit(3)
	l.eventually("the helper has stopped", func() bool { return *l.containerOf("c", arn, "helper").LastStatus == "STOPPED" })
	if s := *l.task("c", arn).LastStatus; s != "RUNNING" {
		t.Errorf("task after its helper ended = %s, want RUNNING", s)
	}
	l.rt.running("main")[0].exit(5)
	l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
	task := l.task("c", arn)
	if task.StopCode != types.TaskStopCodeEssentialContainerExited || *task.StoppedReason != "Essential container in task exited" {
		t.Errorf("task = %s %q", task.StopCode, *task.StoppedReason)
	}
	if c := l.containerOf("c", arn, "main"); *c.ExitCode != 5 {
		t.Errorf("exit code = %d, want 5", *c.ExitCode)
	}
}

func TestUnknownImage(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	bad := app("a")
	bad.Image = aws.String("unknown/image:1")
	l.register("f", bad)
	arn := l.run("c", "f")
	l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
	task := l.task("c", arn)
	if task.StopCode != types.TaskStopCodeTaskFailedToStart || !strings.HasPrefix(*task.StoppedReason, "CannotPullContainerError") {
		t.Errorf("task = %s %q", task.StopCode, *task.StoppedReason)
	}
	if c := l.containerOf("c", arn, "a"); c.Reason == nil || !strings.HasPrefix(*c.Reason, "CannotPullContainerError") {
		t.Errorf("container reason = %v", c.Reason)
	}
}

func TestFailingServiceBacksOffAndBreaks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	good := l.register("f", app("a"))
	must(l.ecs().CreateService(t.Context(), &awsecs.CreateServiceInput{Cluster: aws.String("c"), ServiceName: aws.String("s"), TaskDefinition: aws.String(good),
		DesiredCount: aws.Int32(3), NetworkConfiguration: network(), DeploymentConfiguration: &types.DeploymentConfiguration{
			DeploymentCircuitBreaker: &types.DeploymentCircuitBreaker{Enable: true, Rollback: true}}}))(t)
	l.steady("c", "s")
	bad := app("a")
	bad.Image = aws.String("broken/image")
	must(l.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), TaskDefinition: aws.String(l.register("f", bad))}))(t)
	l.eventually("it is rolled back", func() bool {
		sv := l.describeService("c", "s")
		if sv.RunningCount < 3 {
			t.Errorf("running = %d while the new deployment fails, want 3", sv.RunningCount)
		}
		return *sv.TaskDefinition == good && len(sv.Deployments) == 1
	})
	events := l.describeService("c", "s").Events
	if !slices.ContainsFunc(events, func(e types.ServiceEvent) bool { return strings.Contains(*e.Message, "rolling back") }) {
		t.Error("no event tells of the roll-back")
	}
}

func TestDeadTaskIsReplaced(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	l.service("c", "s", l.register("f", app("a")), 1)
	l.steady("c", "s")
	before := *l.tasks("c", "s")[0].TaskArn
	l.rt.running("a")[0].exit(1)
	l.eventually("another task runs", func() bool {
		ts := l.tasks("c", "s")
		return len(ts) == 1 && *ts[0].TaskArn != before && *ts[0].LastStatus == "RUNNING"
	})
}

// TestUnhealthyTaskIsReplaced takes the shortest interval a health check may have, five seconds.
func TestUnhealthyTaskIsReplaced(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var sick sync.Map
	l.rt.exec = func(c *fakeContainer, _ ecs.ExecSpec) (int, error) {
		if _, is := sick.Load(c.spec.ID); is {
			return 1, nil
		}
		return 0, nil
	}
	l.cluster("c")
	l.service("c", "s", l.register("f", healthy(app("a"))), 1)
	l.steady("c", "s")
	before := *l.tasks("c", "s")[0].TaskArn
	sick.Store(l.rt.running("a")[0].spec.ID, true)
	l.eventually("another task runs", func() bool {
		ts := l.tasks("c", "s")
		return len(ts) == 1 && *ts[0].TaskArn != before && ts[0].HealthStatus == types.HealthStatusHealthy
	})
	if task := l.task("c", before); *task.StoppedReason != "Task failed container health checks" || task.StopCode != types.TaskStopCodeServiceSchedulerInitiated {
		t.Errorf("old task = %s %q", task.StopCode, *task.StoppedReason)
	}
}

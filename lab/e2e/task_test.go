package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/ssmchannel"
)

// tasks returns the tasks of a service that run and shall go on running.
func (w *world) tasks(ctx context.Context, cluster, service string) ([]types.Task, error) {
	list, err := w.ecs.ListTasks(ctx, &ecs.ListTasksInput{Cluster: &cluster, ServiceName: &service})
	if err != nil || len(list.TaskArns) == 0 {
		return nil, err
	}
	described, err := w.ecs.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: &cluster, Tasks: list.TaskArns})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(described.Tasks, func(t types.Task) bool {
		return aws.ToString(t.LastStatus) != "RUNNING" || aws.ToString(t.DesiredStatus) != "RUNNING"
	}), nil
}

// task returns the one task of a service.
func (w *world) task(t *testing.T, cluster, service string) types.Task {
	t.Helper()
	var all []types.Task
	await(t, short, "one task of "+cluster+"/"+service+" runs", func() (bool, string) {
		var err error
		all, err = w.tasks(t.Context(), cluster, service)
		return err == nil && len(all) == 1, fmt.Sprintf("%d tasks, %v", len(all), err)
	})
	return all[0]
}

// taskID is the last part of a task's ARN.
func taskID(t types.Task) string {
	arn := aws.ToString(t.TaskArn)
	return arn[strings.LastIndex(arn, "/")+1:]
}

// address is the address of a task's network interface.
func address(t types.Task) string {
	for _, c := range t.Containers {
		for _, i := range c.NetworkInterfaces {
			return aws.ToString(i.PrivateIpv4Address)
		}
	}
	return ""
}

// exec runs a shell script in the application's container of a task through ECS Exec.
func (w *world) exec(ctx context.Context, task types.Task, script string) (string, error) {
	container := ""
	for _, c := range task.Containers {
		if name := aws.ToString(c.Name); name != proxyContainer {
			container = name
		}
	}
	// The encoding saves quoting; the command travels through the shells of several programs.
	command := fmt.Sprintf("sh -c 'echo %s | base64 -d | sh'", base64.StdEncoding.EncodeToString([]byte(script)))
	out, err := w.ecs.ExecuteCommand(ctx, &ecs.ExecuteCommandInput{
		Cluster: task.ClusterArn, Task: task.TaskArn, Container: &container, Command: &command, Interactive: true,
	})
	if err != nil {
		return "", err
	}
	session, err := ssmchannel.Dial(ctx, aws.ToString(out.Session.StreamUrl), aws.ToString(out.Session.TokenValue))
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	if err := session.Run(ctx, nil, &text, nil); err != nil {
		return text.String(), err
	}
	if code, known := session.ExitCode(); !known || code != 0 {
		return text.String(), fmt.Errorf("exit code %d (known: %v): %s", code, known, text.String())
	}
	return strings.ReplaceAll(text.String(), "\r\n", "\n"), nil
}

// mustExec is exec of something that has to work.
func (w *world) mustExec(t *testing.T, task types.Task, script string) string {
	t.Helper()
	out, err := w.exec(t.Context(), task, script)
	if err != nil {
		t.Fatalf("exec %q in task %s: %v", script, taskID(task), err)
	}
	return out
}

// entries returns the WorkloadEntries of a service.
func (w *world) entries(ctx context.Context, cluster, service string) ([]*kube.Object, error) {
	return w.kube.List(ctx, kube.WorkloadEntries, cluster, "ecs.solo.io/service="+service)
}

// awaitEntries waits until a service has n tasks that run, and Kubernetes exactly their WorkloadEntries, with HBONE.
func (w *world) awaitEntries(t *testing.T, cluster, service string, n int) []types.Task {
	t.Helper()
	var tasks []types.Task
	took := await(t, long, fmt.Sprintf("%s/%s has %d tasks and their workload entries", cluster, service, n), func() (bool, string) {
		var err error
		tasks, err = w.tasks(t.Context(), cluster, service)
		if err != nil {
			return false, err.Error()
		}
		found, err := w.entries(t.Context(), cluster, service)
		if err != nil {
			return false, err.Error()
		}
		state := fmt.Sprintf("%d tasks, %d entries", len(tasks), len(found))
		if len(tasks) != n || len(found) != n {
			return false, state
		}
		for _, task := range tasks {
			mine := func(o *kube.Object) bool {
				return o.GetAnnotations()["isthmus.dev/source"] == aws.ToString(task.TaskArn) && o.GetAnnotations()["ambient.istio.io/redirection"] == "enabled" &&
					o.GetAnnotations()["isthmus.dev/task-definition"] == aws.ToString(task.TaskDefinitionArn)
			}
			if !slices.ContainsFunc(found, mine) {
				return false, state + ", none with HBONE for task " + taskID(task)
			}
		}
		return true, ""
	})
	t.Logf("%s/%s: %d tasks with HBONE after %s", cluster, service, n, took.Round(100_000_000))
	return tasks
}

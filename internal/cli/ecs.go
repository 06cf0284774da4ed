package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

func (a *app) ecsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use: "ecs", Short: "Set up ECS and join its services to the mesh (guide steps 1.3 to 3.3)",
		Example: "  isthmus ecs infra\n  isthmus ecs deploy\n  isthmus ecs namespaces\n  isthmus ecs add-service --all --wait\n  isthmus ecs call --from ecs-demo-1/shell-task echo-service.ecs-demo-2.ecs.local:8080",
	}, a.ecsInfra(), a.ecsDeploy(), a.ecsNamespaces(), a.ecsRegister(), a.ecsAddService(), a.ecsRemoveService(), a.ecsRender(), a.ecsStatus(), a.ecsPlan(), a.ecsCall(), a.ecsExec(), a.ecsCleanup())
}

// pollEvery is the pause between two looks at something in AWS that is being waited for.
const pollEvery = 500 * time.Millisecond

// await calls done until it is true or an error comes, for at most limit. It says what it waits for in the error.
func await(ctx context.Context, limit time.Duration, what string, done func(context.Context) (bool, string, error)) error {
	return awaitSaying(ctx, limit, what, func(string) {}, done)
}

// awaitSaying is await that tells say, each time, what it still waits for.
func awaitSaying(ctx context.Context, limit time.Duration, what string, say func(string), done func(context.Context) (bool, string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	state := ""
	for {
		ok, now, err := done(ctx)
		if err == nil && ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if now != "" {
			state = now
		}
		say(state)
		select {
		case <-ctx.Done():
			return diag.Newf(diag.RolloutFailed, "%s after %s: %s", what, limit, state)
		case <-time.After(pollEvery):
		}
	}
}

// cluster returns an ECS cluster that is ACTIVE, or an error that names the cause.
func cluster(ctx context.Context, admin *awsadmin.Client, name string) (*inventory.Cluster, error) {
	found, _, err := admin.DescribeClusters(ctx, []string{name})
	if err != nil {
		return nil, awsError(err)
	}
	if len(found) == 0 || found[0].Status != inventory.StatusActive {
		return nil, diag.Newf(diag.ClusterNotFound, "region %s has no ACTIVE cluster %q", admin.Region(), name)
	}
	return found[0], nil
}

// service returns an ECS service that is ACTIVE, or an error that names the cause.
func service(ctx context.Context, admin *awsadmin.Client, clusterName, name string) (*inventory.Service, error) {
	found, _, err := admin.DescribeServices(ctx, clusterName, []string{name})
	if err != nil {
		if awsapi.IsNotFound(err) {
			return nil, diag.Newf(diag.ClusterNotFound, "region %s has no ACTIVE cluster %q", admin.Region(), clusterName)
		}
		return nil, awsError(err)
	}
	if len(found) == 0 || found[0].Status != inventory.StatusActive {
		return nil, diag.Newf(diag.ServiceNotFound, "cluster %s has no ACTIVE service %q", clusterName, name)
	}
	return found[0], nil
}

// runningTask returns a task of a service in which a command can be run.
func runningTask(ctx context.Context, admin *awsadmin.Client, clusterName, name string) (*inventory.Task, error) {
	return chosenTask(ctx, admin, clusterName, name, "")
}

// chosenTask is runningTask for the task of an id, or any with "".
func chosenTask(ctx context.Context, admin *awsadmin.Client, clusterName, name, id string) (*inventory.Task, error) {
	if _, err := service(ctx, admin, clusterName, name); err != nil {
		return nil, err
	}
	tasks, err := tasksOf(ctx, admin, clusterName, name)
	if err != nil {
		return nil, err
	}
	states := make([]string, 0, len(tasks))
	for _, t := range tasks {
		if id != "" && shortID(t.ARN) != shortID(id) {
			continue
		}
		if t.LastStatus == inventory.TaskRunning && t.DesiredStatus == inventory.TaskRunning && t.ExecEnabled {
			return t, nil
		}
		states = append(states, fmt.Sprintf("%s is %s (ECS Exec enabled: %v)", shortID(t.ARN), t.LastStatus, t.ExecEnabled))
	}
	if len(states) == 0 {
		states = []string{"it has no tasks"}
		if id != "" {
			states[0] = "it has no task " + id
		}
	}
	return nil, diag.Newf(diag.TaskNotRunning, "service %s of cluster %s: %s", name, clusterName, strings.Join(states, ", "))
}

// tasksOf returns the tasks of a service that are meant to run.
func tasksOf(ctx context.Context, admin *awsadmin.Client, clusterName, name string) ([]*inventory.Task, error) {
	arns, err := admin.ListTasks(ctx, clusterName, name)
	if err != nil {
		return nil, awsError(err)
	}
	if len(arns) == 0 {
		return nil, nil
	}
	tasks, _, err := admin.DescribeTasks(ctx, clusterName, arns)
	return tasks, awsError(err)
}

// shortID is the last element of an ARN.
func shortID(arn string) string { return arn[strings.LastIndex(arn, "/")+1:] }

// splitService reads "cluster/service".
func splitService(s string) (clusterName, serviceName string, err error) {
	c, n, ok := strings.Cut(s, "/")
	if !ok || c == "" || n == "" || strings.Contains(n, "/") {
		return "", "", usageError{fmt.Errorf("%q: want cluster/service", s)}
	}
	return c, n, nil
}

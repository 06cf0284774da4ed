package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

func (a *app) ecsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ecs", Short: "Set up ECS and join its services to the mesh (guide steps 1.3 to 3.3)",
		Example: "  isthmus ecs infra\n  isthmus ecs deploy\n  isthmus ecs namespaces\n  isthmus ecs add-service --all --wait\n  isthmus ecs call --from ecs-demo-1/shell-task echo-service.ecs-demo-2.ecs.local:8080",
	}
	c.AddCommand(a.ecsInfra(), a.ecsDeploy(), a.ecsNamespaces(), a.ecsAddService(), a.ecsRemoveService(), a.ecsRender(), a.ecsCall(), a.ecsCleanup())
	return c
}

// pollEvery is the pause between two looks at something in AWS that is being waited for.
const pollEvery = 500 * time.Millisecond

// await calls done until it is true or an error comes, for at most limit. It says what it waits for in the error.
func await(ctx context.Context, limit time.Duration, what string, done func(context.Context) (bool, string, error)) error {
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
		select {
		case <-ctx.Done():
			return diag.Newf(diag.RolloutFailed, "%s after %s: %s", what, limit, state)
		case <-time.After(pollEvery):
		}
	}
}

// cluster returns an ECS cluster that is ACTIVE, or an error that names the cause.
func cluster(ctx context.Context, admin *awsapi.Admin, name string) (*inventory.Cluster, error) {
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
func service(ctx context.Context, admin *awsapi.Admin, clusterName, name string) (*inventory.Service, error) {
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
func runningTask(ctx context.Context, admin *awsapi.Admin, clusterName, name string) (*inventory.Task, error) {
	if _, err := service(ctx, admin, clusterName, name); err != nil {
		return nil, err
	}
	arns, err := admin.ListTasks(ctx, clusterName, name)
	if err != nil {
		return nil, awsError(err)
	}
	tasks, _, err := admin.DescribeTasks(ctx, clusterName, arns)
	if err != nil {
		return nil, awsError(err)
	}
	states := make([]string, 0, len(tasks))
	for _, t := range tasks {
		if t.LastStatus == inventory.TaskRunning && t.DesiredStatus == inventory.TaskRunning && t.ExecEnabled {
			return t, nil
		}
		states = append(states, fmt.Sprintf("%s is %s (ECS Exec enabled: %v)", shortID(t.ARN), t.LastStatus, t.ExecEnabled))
	}
	if len(states) == 0 {
		states = []string{"it has no tasks"}
	}
	return nil, diag.Newf(diag.TaskNotRunning, "service %s of cluster %s: %s", name, clusterName, strings.Join(states, ", "))
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

package awsapi

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// The most that ECS takes or gives per call.
const (
	pageClusters      = 100
	pageServices      = 100 // ListServices gives 10 unless asked for more
	pageTasks         = 100
	batchClusters     = 100
	batchServices     = 10
	batchTasks        = 100
	batchInstances    = 100
	maxPages          = 10_000 // a list that never ends is an error, not a loop
	failureMissing    = "MISSING"
	errUnknownFailure = "%s of %s: ecs reported %s for %q"
)

// ECSCalls are the SDK's read calls that discovery uses, one by one.
type ECSCalls struct {
	ListClusters               func(context.Context, *ecs.ListClustersInput, ...func(*ecs.Options)) (*ecs.ListClustersOutput, error)
	DescribeClusters           func(context.Context, *ecs.DescribeClustersInput, ...func(*ecs.Options)) (*ecs.DescribeClustersOutput, error)
	ListServices               func(context.Context, *ecs.ListServicesInput, ...func(*ecs.Options)) (*ecs.ListServicesOutput, error)
	DescribeServices           func(context.Context, *ecs.DescribeServicesInput, ...func(*ecs.Options)) (*ecs.DescribeServicesOutput, error)
	ListTasks                  func(context.Context, *ecs.ListTasksInput, ...func(*ecs.Options)) (*ecs.ListTasksOutput, error)
	DescribeTasks              func(context.Context, *ecs.DescribeTasksInput, ...func(*ecs.Options)) (*ecs.DescribeTasksOutput, error)
	DescribeTaskDefinition     func(context.Context, *ecs.DescribeTaskDefinitionInput, ...func(*ecs.Options)) (*ecs.DescribeTaskDefinitionOutput, error)
	DescribeContainerInstances func(context.Context, *ecs.DescribeContainerInstancesInput, ...func(*ecs.Options)) (*ecs.DescribeContainerInstancesOutput, error)
}

// ECS reads ECS in one account and region.
type ECS struct{ calls ECSCalls }

// NewECS returns a reader of the target's ECS. It makes no network call.
func NewECS(s *Session, t Target) (*ECS, error) {
	cfg, err := s.SDKConfig(t)
	if err != nil {
		return nil, err
	}
	c := ecs.NewFromConfig(cfg)
	return &ECS{calls: ECSCalls{
		ListClusters: c.ListClusters, DescribeClusters: c.DescribeClusters, ListServices: c.ListServices, DescribeServices: c.DescribeServices,
		ListTasks: c.ListTasks, DescribeTasks: c.DescribeTasks, DescribeTaskDefinition: c.DescribeTaskDefinition,
		DescribeContainerInstances: c.DescribeContainerInstances,
	}}, nil
}

// NewECSFromCalls returns a reader over the given calls, for tests.
func NewECSFromCalls(calls ECSCalls) *ECS { return &ECS{calls: calls} }

// ListClusters returns the ARNs of all clusters.
func (e *ECS) ListClusters(ctx context.Context) ([]string, error) {
	return Pages("list clusters", func(token *string) ([]string, *string, error) {
		out, err := e.calls.ListClusters(ctx, &ecs.ListClustersInput{MaxResults: aws.Int32(pageClusters), NextToken: token})
		if err != nil {
			return nil, nil, err
		}
		return out.ClusterArns, out.NextToken, nil
	})
}

// ListServices returns the ARNs of all services of a cluster.
func (e *ECS) ListServices(ctx context.Context, cluster string) ([]string, error) {
	return Pages("list services of "+cluster, func(token *string) ([]string, *string, error) {
		out, err := e.calls.ListServices(ctx, &ecs.ListServicesInput{Cluster: &cluster, MaxResults: aws.Int32(pageServices), NextToken: token})
		if err != nil {
			return nil, nil, err
		}
		return out.ServiceArns, out.NextToken, nil
	})
}

// ListTasks returns the ARNs of the tasks of a cluster, or of one of its services, that ECS wants to run. A task leaves
// this list as soon as ECS decides to stop it.
func (e *ECS) ListTasks(ctx context.Context, cluster, service string) ([]string, error) {
	return e.listTasks(ctx, cluster, service, types.DesiredStatusRunning)
}

// ListStoppedTasks returns the ARNs of the tasks of a service that ECS has stopped or is stopping. ECS forgets a stopped
// task after about an hour.
func (e *ECS) ListStoppedTasks(ctx context.Context, cluster, service string) ([]string, error) {
	return e.listTasks(ctx, cluster, service, types.DesiredStatusStopped)
}

func (e *ECS) listTasks(ctx context.Context, cluster, service string, desired types.DesiredStatus) ([]string, error) {
	var name *string
	if service != "" {
		name = &service
	}
	return Pages("list tasks of "+cluster, func(token *string) ([]string, *string, error) {
		out, err := e.calls.ListTasks(ctx, &ecs.ListTasksInput{
			Cluster: &cluster, ServiceName: name, DesiredStatus: desired, MaxResults: aws.Int32(pageTasks), NextToken: token})
		if err != nil {
			return nil, nil, err
		}
		return out.TaskArns, out.NextToken, nil
	})
}

// DescribeClusters describes clusters with their tags. Missing are those that ECS does not know.
func (e *ECS) DescribeClusters(ctx context.Context, arns []string) (found []*inventory.Cluster, missing []string, err error) {
	for batch := range slices.Chunk(arns, batchClusters) {
		out, err := e.calls.DescribeClusters(ctx, &ecs.DescribeClustersInput{Clusters: batch, Include: []types.ClusterField{types.ClusterFieldTags}})
		if err != nil {
			return found, missing, fmt.Errorf("describe clusters: %w", err)
		}
		for i := range out.Clusters {
			found = append(found, clusterOf(&out.Clusters[i]))
		}
		if missing, err = addMissing(missing, "describe clusters", "the account", out.Failures); err != nil {
			return found, missing, err
		}
	}
	return found, missing, nil
}

// DescribeServices describes services of a cluster with their tags. Missing are those that ECS does not know.
func (e *ECS) DescribeServices(ctx context.Context, cluster string, services []string) (found []*inventory.Service, missing []string, err error) {
	for batch := range slices.Chunk(services, batchServices) {
		out, err := e.calls.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: &cluster, Services: batch, Include: []types.ServiceField{types.ServiceFieldTags}})
		if err != nil {
			return found, missing, fmt.Errorf("describe services of %s: %w", cluster, err)
		}
		for i := range out.Services {
			found = append(found, serviceOf(&out.Services[i]))
		}
		if missing, err = addMissing(missing, "describe services", cluster, out.Failures); err != nil {
			return found, missing, err
		}
	}
	return found, missing, nil
}

// DescribeTasks describes tasks of a cluster with their tags. Missing are those that ECS does not know (any more).
func (e *ECS) DescribeTasks(ctx context.Context, cluster string, tasks []string) (found []*inventory.Task, missing []string, err error) {
	for batch := range slices.Chunk(tasks, batchTasks) {
		out, err := e.calls.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: &cluster, Tasks: batch, Include: []types.TaskField{types.TaskFieldTags}})
		if err != nil {
			return found, missing, fmt.Errorf("describe tasks of %s: %w", cluster, err)
		}
		for i := range out.Tasks {
			found = append(found, taskOf(&out.Tasks[i]))
		}
		if missing, err = addMissing(missing, "describe tasks", cluster, out.Failures); err != nil {
			return found, missing, err
		}
	}
	return found, missing, nil
}

// DescribeTaskDefinition describes one revision with its tags, which ECS returns beside the definition.
func (e *ECS) DescribeTaskDefinition(ctx context.Context, arn string) (*inventory.TaskDefinition, error) {
	out, err := e.calls.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &arn, Include: []types.TaskDefinitionField{types.TaskDefinitionFieldTags}})
	if err != nil {
		return nil, fmt.Errorf("describe task definition %s: %w", arn, err)
	}
	if out.TaskDefinition == nil {
		return nil, fmt.Errorf("describe task definition %s: empty answer", arn)
	}
	return definitionOf(out.TaskDefinition, out.Tags), nil
}

// InstanceIDs returns the EC2 instance id of each container instance that has one.
func (e *ECS) InstanceIDs(ctx context.Context, cluster string, containerInstances []string) (map[string]string, error) {
	ids := map[string]string{}
	for batch := range slices.Chunk(containerInstances, batchInstances) {
		out, err := e.calls.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{Cluster: &cluster, ContainerInstances: batch})
		if err != nil {
			return nil, fmt.Errorf("describe container instances of %s: %w", cluster, err)
		}
		for _, ci := range out.ContainerInstances {
			if id := aws.ToString(ci.Ec2InstanceId); id != "" {
				ids[aws.ToString(ci.ContainerInstanceArn)] = id
			}
		}
	}
	return ids, nil
}

// Pages follows a list to its end. A partial list is never returned without an error.
func Pages(what string, next func(token *string) (items []string, token2 *string, err error)) ([]string, error) {
	var all []string
	var token *string
	for range maxPages {
		items, t, err := next(token)
		if err != nil {
			return all, fmt.Errorf("%s: %w", what, err)
		}
		all = append(all, items...)
		if aws.ToString(t) == "" {
			return all, nil
		}
		if token != nil && *token == *t {
			return all, fmt.Errorf("%s: the same page token came twice", what)
		}
		token = t
	}
	return all, fmt.Errorf("%s: more than %d pages", what, maxPages)
}

// addMissing adds what ECS does not know. Any other reason means that the answer is not the whole truth: an error.
func addMissing(missing []string, what, where string, failures []types.Failure) ([]string, error) {
	for _, f := range failures {
		if reason := aws.ToString(f.Reason); reason != failureMissing {
			return missing, fmt.Errorf(errUnknownFailure, what, where, reason, aws.ToString(f.Arn))
		}
		missing = append(missing, aws.ToString(f.Arn))
	}
	return missing, nil
}

package admin

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

func ecsTags(tags map[string]string) []types.Tag {
	out := make([]types.Tag, 0, len(tags))
	for k, v := range tags {
		out = append(out, types.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	return out
}

// CreateCluster creates an ECS cluster; one that exists is left as it is.
func (a *Client) CreateCluster(ctx context.Context, name string, tags map[string]string) error {
	if _, err := a.calls.createCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String(name), Tags: ecsTags(tags)}); err != nil {
		return fmt.Errorf("create ecs cluster %s: %w", name, err)
	}
	return nil
}

// DeleteCluster deletes an ECS cluster without services and tasks.
func (a *Client) DeleteCluster(ctx context.Context, name string) error {
	if _, err := a.calls.deleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: aws.String(name)}); err != nil {
		return fmt.Errorf("delete ecs cluster %s: %w", name, err)
	}
	return nil
}

// TagResource adds tags to an ECS resource.
func (a *Client) TagResource(ctx context.Context, arn string, tags map[string]string) error {
	if _, err := a.calls.tagResource(ctx, &ecs.TagResourceInput{ResourceArn: aws.String(arn), Tags: ecsTags(tags)}); err != nil {
		return fmt.Errorf("tag %s: %w", arn, err)
	}
	return nil
}

// ServiceSpec describes an ECS service to create: Fargate, awsvpc.
type ServiceSpec struct {
	Cluster, Name, TaskDefinition string
	Desired                       int
	Subnets, SecurityGroups       []string
	PublicIP                      bool
	Tags                          map[string]string
}

// CreateService creates an ECS service with ECS Exec enabled.
func (a *Client) CreateService(ctx context.Context, s ServiceSpec) error {
	public := types.AssignPublicIpDisabled
	if s.PublicIP {
		public = types.AssignPublicIpEnabled
	}
	_, err := a.calls.createService(ctx, &ecs.CreateServiceInput{
		Cluster: aws.String(s.Cluster), ServiceName: aws.String(s.Name), TaskDefinition: aws.String(s.TaskDefinition),
		DesiredCount: aws.Int32(int32(s.Desired)), LaunchType: types.LaunchTypeFargate, EnableExecuteCommand: true, //nolint:gosec // a small count
		NetworkConfiguration: &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{
			Subnets: s.Subnets, SecurityGroups: s.SecurityGroups, AssignPublicIp: public}},
		Tags: ecsTags(s.Tags),
	})
	if err != nil {
		return fmt.Errorf("create service %s in %s: %w", s.Name, s.Cluster, err)
	}
	return nil
}

// SetTaskDefinition rolls a service over to another revision.
func (a *Client) SetTaskDefinition(ctx context.Context, cluster, service, definition string) error {
	_, err := a.calls.updateService(ctx, &ecs.UpdateServiceInput{Cluster: aws.String(cluster), Service: aws.String(service), TaskDefinition: aws.String(definition)})
	if err != nil {
		return fmt.Errorf("update service %s in %s: %w", service, cluster, err)
	}
	return nil
}

// Scale sets the desired count of a service.
func (a *Client) Scale(ctx context.Context, cluster, service string, desired int) error {
	_, err := a.calls.updateService(ctx, &ecs.UpdateServiceInput{Cluster: aws.String(cluster), Service: aws.String(service), DesiredCount: aws.Int32(int32(desired))}) //nolint:gosec // a small count
	if err != nil {
		return fmt.Errorf("scale service %s in %s: %w", service, cluster, err)
	}
	return nil
}

// DeleteService deletes a service with its tasks.
func (a *Client) DeleteService(ctx context.Context, cluster, service string) error {
	_, err := a.calls.deleteService(ctx, &ecs.DeleteServiceInput{Cluster: aws.String(cluster), Service: aws.String(service), Force: aws.Bool(true)})
	if err != nil {
		return fmt.Errorf("delete service %s in %s: %w", service, cluster, err)
	}
	return nil
}

// TaskDefinitions returns the ARNs of the active revisions of a family.
func (a *Client) TaskDefinitions(ctx context.Context, family string) ([]string, error) {
	return awsapi.Pages("task definitions", func(token *string) ([]string, *string, error) {
		out, err := a.calls.listTaskDefinitions(ctx, &ecs.ListTaskDefinitionsInput{FamilyPrefix: aws.String(family), NextToken: token})
		if err != nil {
			return nil, nil, fmt.Errorf("list revisions of %s: %w", family, err)
		}
		return out.TaskDefinitionArns, out.NextToken, nil
	})
}

// DeregisterTaskDefinition makes a revision inactive.
func (a *Client) DeregisterTaskDefinition(ctx context.Context, arn string) error {
	if _, err := a.calls.deregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: aws.String(arn)}); err != nil {
		return fmt.Errorf("deregister %s: %w", arn, err)
	}
	return nil
}

// StopTask stops a task.
func (a *Client) StopTask(ctx context.Context, cluster, task, reason string) error {
	if _, err := a.calls.stopTask(ctx, &ecs.StopTaskInput{Cluster: aws.String(cluster), Task: aws.String(task), Reason: aws.String(reason)}); err != nil {
		return fmt.Errorf("stop task %s: %w", task, err)
	}
	return nil
}

// ExecSession is an open ECS Exec session; the token is a secret.
type ExecSession struct{ StreamURL, Token string }

// ExecuteCommand starts a command in a container of a task.
func (a *Client) ExecuteCommand(ctx context.Context, cluster, task, container, command string) (ExecSession, error) {
	out, err := a.calls.executeCommand(ctx, &ecs.ExecuteCommandInput{
		Cluster: aws.String(cluster), Task: aws.String(task), Container: aws.String(container), Command: aws.String(command), Interactive: true})
	if err != nil {
		return ExecSession{}, fmt.Errorf("execute a command in container %s of task %s: %w", container, task, err)
	}
	if out.Session == nil {
		return ExecSession{}, fmt.Errorf("execute a command in container %s of task %s: no session in the answer", container, task)
	}
	return ExecSession{StreamURL: aws.ToString(out.Session.StreamUrl), Token: aws.ToString(out.Session.TokenValue)}, nil
}

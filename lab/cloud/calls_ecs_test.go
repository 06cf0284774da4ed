package cloud_test

import (
	"errors"
	"slices"

	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

const walkCluster = "walk"

func (c *caller) network() *types.NetworkConfiguration {
	return &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{c.ids["subnet"]}, SecurityGroups: []string{c.ids["sg"]}}}
}

func fargate(family string, containers ...types.ContainerDefinition) *awsecs.RegisterTaskDefinitionInput {
	return &awsecs.RegisterTaskDefinitionInput{Family: of(family), NetworkMode: types.NetworkModeAwsvpc, Cpu: of("256"), Memory: of("512"),
		RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate}, ContainerDefinitions: containers}
}

func ecsCalls() (furnish, read, clear []call) {
	furnish = []call{
		{op: "ecs.CreateCluster", do: func(c *caller) error {
			out, err := c.ecs.CreateCluster(c.ctx, &awsecs.CreateClusterInput{ClusterName: of(walkCluster)})
			return want(err, func() bool { return *out.Cluster.ClusterArn == c.arn("ecs", "cluster/"+walkCluster) })
		}},
		{op: "ecs.TagResource", do: func(c *caller) error {
			_, err := c.ecs.TagResource(c.ctx, &awsecs.TagResourceInput{ResourceArn: of(c.arn("ecs", "cluster/"+walkCluster)), Tags: []types.Tag{{Key: of("k"), Value: of("v")}}})
			return err
		}},
		{op: "ecs.RegisterTaskDefinition", do: func(c *caller) error {
			out, err := c.ecs.RegisterTaskDefinition(c.ctx, fargate("walk", app("a")))
			return want(err, func() bool {
				return c.set("definition", out.TaskDefinition.TaskDefinitionArn) == nil && out.TaskDefinition.Revision == 1
			})
		}},
		{op: "ecs.CreateService", do: func(c *caller) error {
			out, err := c.ecs.CreateService(c.ctx, &awsecs.CreateServiceInput{Cluster: of(walkCluster), ServiceName: of("s"), TaskDefinition: of("walk"), DesiredCount: of(int32(1)),
				LaunchType: types.LaunchTypeFargate, NetworkConfiguration: c.network(), EnableExecuteCommand: true})
			return want(err, func() bool { return *out.Service.ServiceArn == c.arn("ecs", "service/"+walkCluster+"/s") })
		}},
		{op: "ecs.UpdateService", do: func(c *caller) error {
			out, err := c.ecs.UpdateService(c.ctx, &awsecs.UpdateServiceInput{Cluster: of(walkCluster), Service: of("s"), DesiredCount: of(int32(2))})
			return want(err, func() bool { return out.Service.DesiredCount == 2 })
		}},
		{op: "ecs.RunTask", do: func(c *caller) error {
			out, err := c.ecs.RunTask(c.ctx, &awsecs.RunTaskInput{Cluster: of(walkCluster), TaskDefinition: of("walk"), LaunchType: types.LaunchTypeFargate,
				NetworkConfiguration: c.network(), EnableExecuteCommand: true})
			return want(err, func() bool { return c.set("task", out.Tasks[0].TaskArn) == nil && len(out.Failures) == 0 })
		}},
		{op: "ecs.ExecuteCommand", do: func(c *caller) error {
			return c.again(func() error {
				out, err := c.ecs.ExecuteCommand(c.ctx, &awsecs.ExecuteCommandInput{Cluster: of(walkCluster), Task: c.get("task"), Command: of("true"), Interactive: true})
				return want(err, func() bool { return *out.ContainerName == "a" && *out.Session.TokenValue != "" })
			}, "TargetNotConnectedException", "InvalidParameterException")
		}},
	}
	furnish = append(furnish, call{op: "ecs.UpdateContainerInstancesState", do: func(c *caller) error {
		arn, err := c.containerInstance()
		if err != nil {
			return err
		}
		out, err := c.ecs.UpdateContainerInstancesState(c.ctx, &awsecs.UpdateContainerInstancesStateInput{Cluster: of(walkCluster), ContainerInstances: []string{arn}, Status: types.ContainerInstanceStatusDraining})
		return want(err, func() bool {
			return len(out.ContainerInstances) == 1 && *out.ContainerInstances[0].Status == "DRAINING"
		})
	}})
	return furnish, ecsReads(), ecsClear()
}

// containerInstance waits until the account's instance has joined the cluster.
func (c *caller) containerInstance() (string, error) {
	err := c.again(func() error {
		out, err := c.ecs.ListContainerInstances(c.ctx, &awsecs.ListContainerInstancesInput{Cluster: of(walkCluster)})
		if err == nil && len(out.ContainerInstanceArns) == 0 {
			return errors.New("no instance has joined the cluster")
		}
		if err == nil {
			c.ids["container instance"] = out.ContainerInstanceArns[0]
		}
		return err
	}, "")
	return c.ids["container instance"], err
}

func ecsReads() []call {
	return []call{
		{op: "ecs.DescribeClusters", do: func(c *caller) error {
			out, err := c.ecs.DescribeClusters(c.ctx, &awsecs.DescribeClustersInput{Clusters: []string{walkCluster, "none"}, Include: []types.ClusterField{types.ClusterFieldTags}})
			return want(err, func() bool {
				return len(out.Clusters) == 1 && len(out.Clusters[0].Tags) == 1 && *out.Failures[0].Reason == "MISSING"
			})
		}},
		{op: "ecs.ListClusters", do: func(c *caller) error {
			out, err := c.ecs.ListClusters(c.ctx, nil)
			return want(err, func() bool { return slices.Equal(out.ClusterArns, []string{c.arn("ecs", "cluster/"+walkCluster)}) })
		}},
		{op: "ecs.ListTagsForResource", do: func(c *caller) error {
			out, err := c.ecs.ListTagsForResource(c.ctx, &awsecs.ListTagsForResourceInput{ResourceArn: of(c.arn("ecs", "cluster/"+walkCluster))})
			return want(err, func() bool { return len(out.Tags) == 1 })
		}},
		{op: "ecs.DescribeTaskDefinition", do: func(c *caller) error {
			out, err := c.ecs.DescribeTaskDefinition(c.ctx, &awsecs.DescribeTaskDefinitionInput{TaskDefinition: of("walk:1")})
			return want(err, func() bool {
				return *out.TaskDefinition.TaskDefinitionArn == c.ids["definition"] && out.TaskDefinition.Status == "ACTIVE"
			})
		}},
		{op: "ecs.ListTaskDefinitions", do: func(c *caller) error {
			out, err := c.ecs.ListTaskDefinitions(c.ctx, nil)
			return want(err, func() bool { return slices.Equal(out.TaskDefinitionArns, []string{c.ids["definition"]}) })
		}},
		{op: "ecs.ListTaskDefinitionFamilies", do: func(c *caller) error {
			out, err := c.ecs.ListTaskDefinitionFamilies(c.ctx, &awsecs.ListTaskDefinitionFamiliesInput{Status: types.TaskDefinitionFamilyStatusActive})
			return want(err, func() bool { return slices.Equal(out.Families, []string{"walk"}) })
		}},
		{op: "ecs.DescribeServices", do: func(c *caller) error {
			out, err := c.ecs.DescribeServices(c.ctx, &awsecs.DescribeServicesInput{Cluster: of(walkCluster), Services: []string{"s"}})
			return want(err, func() bool { return len(out.Services) == 1 && out.Services[0].DesiredCount == 2 })
		}},
		{op: "ecs.ListServices", do: func(c *caller) error {
			out, err := c.ecs.ListServices(c.ctx, &awsecs.ListServicesInput{Cluster: of(walkCluster)})
			return want(err, func() bool { return len(out.ServiceArns) == 1 })
		}},
		{op: "ecs.ListTasks", do: func(c *caller) error {
			return c.again(func() error {
				out, err := c.ecs.ListTasks(c.ctx, &awsecs.ListTasksInput{Cluster: of(walkCluster)})
				if err == nil && len(out.TaskArns) != 3 {
					return errors.New("not three tasks")
				}
				return err
			}, "")
		}},
		{op: "ecs.DescribeTasks", do: func(c *caller) error {
			out, err := c.ecs.DescribeTasks(c.ctx, &awsecs.DescribeTasksInput{Cluster: of(walkCluster), Tasks: []string{c.ids["task"]}})
			return want(err, func() bool { return len(out.Tasks) == 1 && *out.Tasks[0].Group == "family:walk" })
		}},
		{op: "ecs.ListContainerInstances", do: func(c *caller) error {
			out, err := c.ecs.ListContainerInstances(c.ctx, &awsecs.ListContainerInstancesInput{Cluster: of(walkCluster)})
			return want(err, func() bool { return len(out.ContainerInstanceArns) == 1 })
		}},
		{op: "ecs.DescribeContainerInstances", do: func(c *caller) error {
			out, err := c.ecs.DescribeContainerInstances(c.ctx, &awsecs.DescribeContainerInstancesInput{Cluster: of(walkCluster), ContainerInstances: []string{"none", c.ids["container instance"]}})
			return want(err, func() bool {
				return len(out.Failures) == 1 && *out.ContainerInstances[0].Ec2InstanceId == c.ids["instance"]
			})
		}},
	}
}

func ecsClear() []call {
	return []call{
		{op: "ecs.UntagResource", do: func(c *caller) error {
			_, err := c.ecs.UntagResource(c.ctx, &awsecs.UntagResourceInput{ResourceArn: of(c.arn("ecs", "cluster/"+walkCluster)), TagKeys: []string{"k"}})
			return err
		}},
		{op: "ecs.StopTask", do: func(c *caller) error {
			out, err := c.ecs.StopTask(c.ctx, &awsecs.StopTaskInput{Cluster: of(walkCluster), Task: c.get("task")})
			return want(err, func() bool { return *out.Task.DesiredStatus == "STOPPED" })
		}},
		{op: "ecs.DeleteService", do: func(c *caller) error {
			out, err := c.ecs.DeleteService(c.ctx, &awsecs.DeleteServiceInput{Cluster: of(walkCluster), Service: of("s"), Force: of(true)})
			return want(err, func() bool { return *out.Service.Status == "DRAINING" })
		}},
		{op: "ecs.DeregisterTaskDefinition", do: func(c *caller) error {
			out, err := c.ecs.DeregisterTaskDefinition(c.ctx, &awsecs.DeregisterTaskDefinitionInput{TaskDefinition: of("walk:1")})
			return want(err, func() bool { return out.TaskDefinition.Status == "INACTIVE" })
		}},
		{op: "ecs.DeleteCluster", do: func(c *caller) error {
			return c.again(func() error {
				_, err := c.ecs.DeleteCluster(c.ctx, &awsecs.DeleteClusterInput{Cluster: of(walkCluster)})
				return err
			}, "ClusterContainsTasksException", "ClusterContainsServicesException", "ClusterContainsContainerInstancesException")
		}},
	}
}

package cloud_test

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
)

// instances starts EC2 instances that join a cluster, and returns their ids and addresses.
func (l *lab) instances(cluster string, n int32) map[string]string {
	l.t.Helper()
	data := base64.StdEncoding.EncodeToString([]byte("#!/bin/bash\necho \"ECS_CLUSTER=" + cluster + "\" >> /etc/ecs/ecs.config\n"))
	out := must(awsec2.NewFromConfig(l.admin()).RunInstances(l.t.Context(), &awsec2.RunInstancesInput{ImageId: of("ami-ecs"), MinCount: &n, MaxCount: &n,
		SubnetId: of(ec2.DefaultSubnets(region)[0].ID), UserData: &data}))(l.t)
	addrs := map[string]string{}
	for _, i := range out.Instances {
		addrs[*i.InstanceId] = *i.PrivateIpAddress
	}
	l.eventually("the instances have joined the cluster", func() bool { return len(l.containerInstances(cluster)) >= int(n) })
	return addrs
}

func (l *lab) containerInstances(cluster string) []types.ContainerInstance {
	l.t.Helper()
	list := must(l.ecs().ListContainerInstances(l.t.Context(), &awsecs.ListContainerInstancesInput{Cluster: &cluster}))(l.t)
	if len(list.ContainerInstanceArns) == 0 {
		return nil
	}
	return must(l.ecs().DescribeContainerInstances(l.t.Context(), &awsecs.DescribeContainerInstancesInput{Cluster: &cluster, ContainerInstances: list.ContainerInstanceArns}))(l.t).ContainerInstances
}

func (l *lab) onEC2(family string, mode types.NetworkMode, ports ...types.PortMapping) {
	l.t.Helper()
	c := app("web")
	c.PortMappings, c.Memory = ports, aws.Int32(64)
	must(l.ecs().RegisterTaskDefinition(l.t.Context(), &awsecs.RegisterTaskDefinitionInput{Family: &family, NetworkMode: mode, ContainerDefinitions: []types.ContainerDefinition{c},
		RequiresCompatibilities: []types.Compatibility{types.CompatibilityEc2}}))(l.t)
}

// TestContainerInstances takes a service in bridge mode through the life of its instances: there are none, one, one that drains
// beside another, and one whose machine is terminated.
func TestContainerInstances(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	url := l.queue("instances", "instances")
	l.rule("instances", `{"source":["aws.ecs"],"detail-type":["ECS Container Instance State Change"]}`, queueARN("instances"))
	l.cluster("c")
	l.onEC2("web", "", types.PortMapping{ContainerPort: aws.Int32(8080)})
	_, err := l.ecs().RunTask(ctx, &awsecs.RunTaskInput{Cluster: of("c"), TaskDefinition: of("web")})
	wantCode(t, "a task without an instance", err, "InvalidParameterException")
	_, err = l.ecs().RunTask(ctx, &awsecs.RunTaskInput{Cluster: of("c"), TaskDefinition: of("web"), LaunchType: types.LaunchTypeFargate})
	wantCode(t, "a task in bridge mode on Fargate", err, "InvalidParameterException")
	_, err = l.ecs().RunTask(ctx, &awsecs.RunTaskInput{Cluster: of("c"), TaskDefinition: of("web"), NetworkConfiguration: network()})
	wantCode(t, "a task in bridge mode with a network configuration", err, "InvalidParameterException")

	must(l.ecs().CreateService(ctx, &awsecs.CreateServiceInput{Cluster: of("c"), ServiceName: of("web"), TaskDefinition: of("web"), DesiredCount: aws.Int32(2), LaunchType: types.LaunchTypeEc2}))(t)
	l.eventually("the service says that it has no place", func() bool {
		return slices.ContainsFunc(l.describeService("c", "web").Events, func(e types.ServiceEvent) bool {
			return strings.HasSuffix(*e.Message, "Reason: No Container Instances were found in your cluster.")
		})
	})
	first := l.instances("c", 1)
	l.steady("c", "web")
	one := l.containerInstances("c")[0]
	if first[*one.Ec2InstanceId] == "" || *one.Status != "ACTIVE" || one.RunningTasksCount != 2 || !one.AgentConnected {
		t.Errorf("container instance = %+v, of %v", one, first)
	}
	ports := map[int32]bool{}
	for _, task := range l.tasks("c", "web") {
		c := task.Containers[0]
		if *task.ContainerInstanceArn != *one.ContainerInstanceArn || task.LaunchType != types.LaunchTypeEc2 || len(task.Attachments)+len(c.NetworkInterfaces) != 0 ||
			len(c.NetworkBindings) != 1 || *c.NetworkBindings[0].ContainerPort != 8080 || *c.NetworkBindings[0].HostPort < 32768 || *task.AvailabilityZone != region+"a" {
			t.Errorf("task = %+v, container %+v", task, c)
			continue
		}
		ports[*c.NetworkBindings[0].HostPort] = true
	}
	if len(ports) != 2 {
		t.Errorf("host ports = %v, want one for each task", ports)
	}
	byInstance := must(l.ecs().ListTasks(ctx, &awsecs.ListTasksInput{Cluster: of("c"), ContainerInstance: one.ContainerInstanceArn}))(t)
	if len(byInstance.TaskArns) != 2 {
		t.Errorf("ListTasks of the instance = %v", byInstance.TaskArns)
	}

	// A host port can be had once on each instance.
	l.onEC2("fixed", types.NetworkModeHost, types.PortMapping{ContainerPort: aws.Int32(9000)})
	run := func() *awsecs.RunTaskOutput {
		return must(l.ecs().RunTask(ctx, &awsecs.RunTaskInput{Cluster: of("c"), TaskDefinition: of("fixed"), LaunchType: types.LaunchTypeEc2}))(t)
	}
	host := run()
	if b := run(); len(b.Tasks) != 0 || len(b.Failures) != 1 || *b.Failures[0].Reason != "RESOURCE:PORTS" {
		t.Errorf("a second task with the port: %+v", b)
	}
	l.eventually("the task in host mode runs", func() bool {
		task := l.task("c", *host.Tasks[0].TaskArn)
		return *task.LastStatus == "RUNNING" && *task.Containers[0].NetworkBindings[0].HostPort == 9000
	})

	second := l.instances("c", 1)
	out := must(l.ecs().UpdateContainerInstancesState(ctx, &awsecs.UpdateContainerInstancesStateInput{Cluster: of("c"), ContainerInstances: []string{*one.ContainerInstanceArn, "none"},
		Status: types.ContainerInstanceStatusDraining}))(t)
	if len(out.ContainerInstances) != 1 || *out.ContainerInstances[0].Status != "DRAINING" || len(out.Failures) != 1 {
		t.Errorf("UpdateContainerInstancesState = %+v", out)
	}
	l.eventually("the service has moved to the other instance, the lone task has not", func() bool {
		for _, task := range l.tasks("c", "web") {
			if *task.ContainerInstanceArn == *one.ContainerInstanceArn {
				return false
			}
		}
		return len(l.tasks("c", "web")) == 2 && *l.task("c", *host.Tasks[0].TaskArn).LastStatus == "RUNNING"
	})
	l.steady("c", "web")

	for id := range second {
		must(awsec2.NewFromConfig(l.admin()).TerminateInstances(ctx, &awsec2.TerminateInstancesInput{InstanceIds: []string{id}}))(t)
	}
	l.eventually("the tasks of the terminated instance have ended", func() bool {
		stopped := must(l.ecs().ListTasks(ctx, &awsecs.ListTasksInput{Cluster: of("c"), ServiceName: of("web"), DesiredStatus: types.DesiredStatusStopped}))(t)
		gone := 0
		for _, arn := range stopped.TaskArns {
			if task := l.task("c", arn); strings.HasSuffix(*task.StoppedReason, "terminated.") && *task.LastStatus == "STOPPED" {
				gone++
			}
		}
		return gone == 2 && len(l.containerInstances("c")) == 1
	})
	var states []string
	for _, m := range l.receive(url) {
		var e struct{ Detail struct{ Status string } }
		if err := json.Unmarshal([]byte(*m.Body), &e); err != nil {
			t.Fatal(err)
		}
		if _, err := ecs.ParseEvent([]byte(*m.Body)); err != nil && e.Detail.Status != "ACTIVE" { // which is no news to it
			t.Errorf("the product cannot read %s: %v", *m.Body, err)
		}
		states = append(states, e.Detail.Status)
	}
	if want := []string{"ACTIVE", "ACTIVE", "DRAINING", "INACTIVE"}; !slices.Equal(states, want) {
		t.Errorf("events of container instances = %v, want %v", states, want)
	}
	_, err = l.ecs().DeleteCluster(ctx, &awsecs.DeleteClusterInput{Cluster: of("c")})
	wantCode(t, "a cluster with instances", err, "ClusterContainsServicesException")
}

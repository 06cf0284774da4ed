package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
)

// taskRoleARN is the role of the tasks of the guide.
const taskRoleARN = "arn:aws:iam::123456789012:role/ecs/ambient/eks-ecs-task-role"

// hostRights is what discovery needs beside its own rights to find the addresses of instances.
const hostRights = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecs:DescribeContainerInstances","ec2:DescribeInstances"],"Resource":"*"}]}`

// testInstances runs services on an EC2 instance: in bridge and host mode, where they are plain endpoints at the instance's
// address, and in awsvpc mode with a proxy that redirects, so that its application needs to know nothing of the mesh.
func testInstances(t *testing.T, w *world) {
	ctx := t.Context()
	discovery := aws.String("istiod-local")
	if _, err := w.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: discovery, PolicyName: aws.String("Hosts"), PolicyDocument: aws.String(hostRights)}); err != nil {
		t.Fatal(err)
	}
	host, end := w.startInstance(t, cluster1)
	defer end()
	defer func() {
		if _, err := w.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: discovery, PolicyName: aws.String("Hosts")}); err != nil {
			t.Error(err)
		}
	}()
	t.Run("Bridge", func(t *testing.T) { w.testPlainEndpoint(t, host, "on-bridge", types.NetworkModeBridge, 0) })
	t.Run("Host", func(t *testing.T) { w.testPlainEndpoint(t, host, "on-host", types.NetworkModeHost, 8081) })
	t.Run("Redirect", func(t *testing.T) { w.testRedirect(t) })
}

// startInstance starts an EC2 instance that joins a cluster, and returns its address.
func (w *world) startInstance(t *testing.T, cluster string) (netip.Addr, func()) {
	t.Helper()
	ctx := t.Context()
	data := base64.StdEncoding.EncodeToString([]byte("#!/bin/bash\necho ECS_CLUSTER=" + cluster + " >> /etc/ecs/ecs.config\n"))
	out, err := w.ec2.RunInstances(ctx, &ec2.RunInstancesInput{ImageId: aws.String("ami-ecs-optimized"), InstanceType: ec2types.InstanceTypeT3Medium,
		MinCount: aws.Int32(1), MaxCount: aws.Int32(1), UserData: &data})
	if err != nil {
		t.Fatal(err)
	}
	await(t, short, "the instance has joined the cluster", func() (bool, string) {
		list, err := w.ecs.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{Cluster: &cluster})
		return err == nil && len(list.ContainerInstanceArns) == 1, fmt.Sprint(err)
	})
	return netip.MustParseAddr(aws.ToString(out.Instances[0].PrivateIpAddress)), func() {
		if _, err := w.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{*out.Instances[0].InstanceId}}); err != nil {
			t.Error(err)
		}
		await(t, short, "the instance has left the cluster", func() (bool, string) {
			list, err := w.ecs.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{Cluster: &cluster})
			return err == nil && len(list.ContainerInstanceArns) == 0, fmt.Sprint(list, err)
		})
	}
}

// onInstance makes a service of one task on the cluster's instance, and sees to its end.
func (w *world) onInstance(t *testing.T, in ecs.RegisterTaskDefinitionInput, network *types.NetworkConfiguration) string {
	t.Helper()
	ctx := t.Context()
	in.RequiresCompatibilities = []types.Compatibility{types.CompatibilityEc2}
	in.Tags = []types.Tag{{Key: aws.String("ecs.solo.io/service-account"), Value: aws.String(serviceAccount)}}
	def, err := w.ecs.RegisterTaskDefinition(ctx, &in)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ecs.CreateService(ctx, &ecs.CreateServiceInput{Cluster: aws.String(cluster1), ServiceName: in.Family, TaskDefinition: def.TaskDefinition.TaskDefinitionArn,
		DesiredCount: aws.Int32(1), LaunchType: types.LaunchTypeEc2, EnableExecuteCommand: true, NetworkConfiguration: network}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := w.ecs.DeleteService(context.WithoutCancel(ctx), &ecs.DeleteServiceInput{Cluster: aws.String(cluster1), Service: in.Family, Force: aws.Bool(true)}); err != nil {
			t.Error(err)
		}
	})
	return *in.Family
}

// testPlainEndpoint calls a service that shares the instance's address from a task of the mesh.
func (w *world) testPlainEndpoint(t *testing.T, host netip.Addr, name string, mode types.NetworkMode, hostPort int32) {
	port := max(hostPort, 8080)
	w.onInstance(t, ecs.RegisterTaskDefinitionInput{Family: &name, NetworkMode: mode, ContainerDefinitions: []types.ContainerDefinition{{
		Name: aws.String("web"), Image: aws.String("ealen/echo-server"), Memory: aws.Int32(64), PortMappings: []types.PortMapping{{ContainerPort: &port, HostPort: &hostPort, Name: aws.String("http")}},
		Environment: []types.KeyValuePair{{Name: aws.String("PORT"), Value: aws.String(fmt.Sprint(port))}, {Name: aws.String("E2E_MODE"), Value: aws.String(string(mode))}},
	}}}, nil)
	task := w.task(t, cluster1, name)
	bound := task.Containers[0].NetworkBindings
	if len(bound) != 1 || aws.ToInt32(bound[0].ContainerPort) != port || aws.ToInt32(bound[0].HostPort) == 0 || len(task.Containers[0].NetworkInterfaces) != 0 {
		t.Fatalf("bindings = %+v, interfaces %+v", bound, task.Containers[0].NetworkInterfaces)
	}
	await(t, short, "the task is a plain endpoint at the instance", func() (bool, string) {
		found, err := w.entries(t.Context(), cluster1, name)
		if err != nil || len(found) != 1 {
			return false, fmt.Sprint(len(found), err)
		}
		spec := fmt.Sprint(found[0].Object["spec"])
		return strings.Contains(spec, host.String()) && found[0].GetAnnotations()["ambient.istio.io/redirection"] == "", spec
	})
	from := w.task(t, cluster2, shell)
	url := fmt.Sprintf("http://%s.%s.ecs.local:%d", name, cluster1, port)
	await(t, short, "a task of the mesh reaches "+url, func() (bool, string) {
		out, err := w.exec(t.Context(), from, "curl -sS --max-time 5 "+url)
		return err == nil && strings.Contains(out, `"E2E_MODE":"`+string(mode)+`"`), fmt.Sprint(out, err)
	})
	t.Logf("%s answers at %s:%d", url, host, aws.ToInt32(bound[0].HostPort))
}

// testRedirect enrols a task on the instance with --capture redirect: its application is told of no proxy, and yet its calls to a
// pod are the mesh's, with the identities of both ends in the access logs of both proxies.
func (w *world) testRedirect(t *testing.T) {
	name, begin := "on-redirect", time.Now().Add(-time.Second)
	near, _ := w.subnets(t, w.vars["AWS_REGION"]+"a")
	w.onInstance(t, ecs.RegisterTaskDefinitionInput{Family: &name, NetworkMode: types.NetworkModeAwsvpc,
		TaskRoleArn: aws.String(taskRoleARN), ExecutionRoleArn: aws.String(taskRoleARN), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("app"), Image: aws.String("curlimages/curl"), Command: []string{"sleep", "3600"}, Memory: aws.Int32(64),
			PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), Name: aws.String("http")}},
			LogConfiguration: &types.LogConfiguration{LogDriver: types.LogDriverAwslogs, Options: map[string]string{
				"awslogs-group": logGroup, "awslogs-region": w.vars["AWS_REGION"], "awslogs-stream-prefix": name}},
		}}}, &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{near}}})
	w.must(t, "isthmus", "ecs", "add-service", name, "--cluster", cluster1, "--capture", "redirect", "--wait")
	w.awaitEntries(t, cluster1, name, 1)
	task := w.task(t, cluster1, name)
	if task.LaunchType != types.LaunchTypeEc2 || aws.ToString(task.ContainerInstanceArn) == "" {
		t.Fatalf("the task runs on %s, %s", task.LaunchType, aws.ToString(task.ContainerInstanceArn))
	}
	if env := w.mustExec(t, task, "env | grep -i _proxy || true"); env != "" {
		t.Errorf("the application is told of a proxy: %s", env)
	}
	if out := w.mustExec(t, task, "grep CapEff /proc/self/status"); !strings.Contains(out, "00000000a00425fb") {
		t.Errorf("the application has capabilities beyond Docker's: %s", out)
	}
	await(t, short, "a call without a proxy reaches the pod", func() (bool, string) {
		out, err := w.exec(t.Context(), task, "curl -sS --max-time 5 http://eks-echo.default.svc.cluster.local:8080")
		return err == nil && strings.Contains(out, `"host"`), fmt.Sprint(out, err)
	})
	ends := []string{
		`src.identity="spiffe://cluster.local/ns/ecs-demo-1/sa/ecs-demo-sa-local"`, `dst.identity="spiffe://cluster.local/ns/default/sa/eks-echo"`, "connection complete",
	}
	await(t, short, "both proxies log both identities", func() (bool, string) {
		mine := w.proxyLog(t, taskID(task), begin)
		theirs := w.must(t, "kubectl", "logs", "-n", "istio-system", "-l", "app=ztunnel", "--tail=-1")
		return hasLine(mine, append(ends, `direction="outbound"`)) && hasLine(theirs, append(ends, `direction="inbound"`, "src.addr="+address(task)+":")), mine
	})
}

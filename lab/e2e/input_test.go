package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// badServices are services with a mistake in their task definitions, in cluster 1.
var badServices = []struct {
	name   string
	port   int32 // 0 means no port mapping
	image  string
	wanted int32
}{
	{name: "bad-ports", image: "ealen/echo-server"},
	{name: "bad-clash", port: 15008, image: "ealen/echo-server"},
	{name: "bad-image", port: 8080, image: "registry.example.com/no/such-image:1", wanted: 1},
}

const untagged = "e2e-untagged"

// testBadInput gives the command line what people get wrong, and expects the cause and the fix.
func testBadInput(t *testing.T, w *world) {
	makeBadThings(t, w)
	for _, c := range []struct {
		name string
		args string
		code string
		want []string // in cause and fix
	}{
		{"wrong cluster", "echo-service --cluster ecs-demo-9", "IST3108", []string{`no ACTIVE cluster "ecs-demo-9"`, "aws ecs list-clusters"}},
		{"wrong service", "echo --cluster ecs-demo-1", "IST3107", []string{`no ACTIVE service "echo"`, "aws ecs list-services"}},
		{"untagged cluster", "plain --cluster " + untagged, "IST3114", []string{untagged, "aws ecs tag-resource", "ecs.solo.io/discovery-enabled,value=true"}},
		{"missing namespace", "echo-service --cluster ecs-demo-1 --namespace nowhere", "IST1101", []string{`no namespace "nowhere"`, "isthmus ecs namespaces"}},
		{"missing service account", "echo-service --cluster ecs-demo-1 --service-account nobody", "IST2207", []string{"ecs-demo-1/nobody", "isthmus ecs namespaces"}},
		{"role not annotated", "echo-service --cluster ecs-demo-1 --service-account e2e-bare", "IST2208",
			[]string{"ecs-demo-1/e2e-bare", "kubectl annotate serviceaccount -n ecs-demo-1 e2e-bare ecs.solo.io/role-arn=arn:aws:iam::"}},
		{"service without ports", "bad-ports --cluster ecs-demo-1", "IST3111", []string{"port mapping", "--client-only"}},
		{"port clash", "bad-clash --cluster ecs-demo-1", "IST3101", []string{"15008", "HBONE", "another port"}},
		{"unknown image", "bad-image --cluster ecs-demo-1 --wait --timeout 8s", "IST3116",
			[]string{"CannotPullContainerError", "registry.example.com/no/such-image:1", "stoppedReason"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := w.run(t.Context(), "isthmus", append([]string{"ecs", "add-service"}, strings.Fields(c.args)...)...)
			if o.code != 1 {
				t.Errorf("add-service %s = exit code %d, want 1", c.args, o.code)
			}
			text := o.stderr
			for _, want := range append(c.want, "["+c.code+"]", "isthmus:   cause:", "isthmus:   fix:") {
				if !strings.Contains(text, want) {
					t.Errorf("the error of add-service %s lacks %q:\n%s", c.args, want, text)
				}
			}
		})
	}
	o := w.run(t.Context(), "isthmus", "ecs", "call", "--from", cluster1+"/bad-ports", echoHost1)
	if o.code != 1 || !strings.Contains(o.stderr, "[IST3115]") {
		t.Errorf("ecs call from a service without tasks = exit code %d, want 1 and IST3115:\n%s", o.code, o)
	}
}

// makeBadThings makes a cluster without the tag, a service account without the annotation and services with mistakes,
// and removes them afterwards.
func makeBadThings(t *testing.T, w *world) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // for the clean-up too
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	w.apply(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: e2e-bare, namespace: ecs-demo-1}}")
	t.Cleanup(func() { w.run(ctx, "kubectl", "delete", "serviceaccount", "-n", cluster1, "e2e-bare") })
	_, err := w.ecs.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String(untagged)})
	check(err)

	described, err := w.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: aws.String(cluster1), Services: []string{echo}})
	if err != nil {
		t.Fatal(err)
	}
	model := described.Services[0]
	definition, err := w.ecs.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: model.TaskDefinition})
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]string{} // service to cluster
	t.Cleanup(func() {
		for service, cluster := range made {
			_, err := w.ecs.DeleteService(ctx, &ecs.DeleteServiceInput{Cluster: &cluster, Service: &service, Force: aws.Bool(true)})
			check(err)
		}
		for service, cluster := range made {
			check(ecs.NewServicesInactiveWaiter(w.ecs, func(o *ecs.ServicesInactiveWaiterOptions) { o.MinDelay, o.MaxDelay = time.Second/5, time.Second }).
				Wait(ctx, &ecs.DescribeServicesInput{Cluster: &cluster, Services: []string{service}}, short))
		}
		_, err := w.ecs.DeleteCluster(ctx, &ecs.DeleteClusterInput{Cluster: aws.String(untagged)})
		check(err)
	})
	for _, s := range append(slices.Clone(badServices), badServices[0]) {
		cluster, name := cluster1, s.name
		if made[name] != "" {
			cluster, name = untagged, "plain"
		}
		container := types.ContainerDefinition{Name: aws.String("app"), Image: aws.String(s.image), Essential: aws.Bool(true)}
		if s.port != 0 {
			container.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(s.port), Protocol: types.TransportProtocolTcp}}
		}
		registered, err := w.ecs.RegisterTaskDefinition(ctx, &ecs.RegisterTaskDefinitionInput{
			Family: aws.String("e2e-" + name), NetworkMode: types.NetworkModeAwsvpc, Cpu: aws.String("256"), Memory: aws.String("512"),
			RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate}, ContainerDefinitions: []types.ContainerDefinition{container},
			TaskRoleArn: definition.TaskDefinition.TaskRoleArn, ExecutionRoleArn: definition.TaskDefinition.ExecutionRoleArn,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.ecs.CreateService(ctx, &ecs.CreateServiceInput{
			Cluster: &cluster, ServiceName: &name, TaskDefinition: registered.TaskDefinition.TaskDefinitionArn, DesiredCount: aws.Int32(s.wanted),
			LaunchType: types.LaunchTypeFargate, NetworkConfiguration: model.NetworkConfiguration, EnableExecuteCommand: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		made[name] = cluster
	}
}

package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// foreign is what has nothing to do with Isthmus and has to stand after the clean-up.
const foreign = "e2e-foreign"

const foreignObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: e2e-foreign}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e2e-foreign, namespace: e2e-foreign}
spec: {hosts: [e2e-foreign.example.com], location: MESH_EXTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.1}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: e2e-foreign}
spec: {}
`

// testCleanup removes the installation twice and looks at what is left.
func testCleanup(t *testing.T, w *world) {
	w.apply(t, foreignObjects)
	w.makeForeign(t)
	w.apply(t, strings.NewReplacer("e2e-deny", "deny-all").Replace(denyPolicy)) // one of the workshop's

	first := w.must(t, "isthmus", "ecs", "cleanup", "--yes")
	for _, want := range []string{"policy ecs-demo-1/deny-all", "service ecs-demo-1/echo-service", "cluster ecs-demo-2", "namespace ecs-demo-1", "log group /ecs/ecs-demo", "role istiod-local"} {
		if !strings.Contains(first, want+" removed") {
			t.Errorf("the first clean-up does not say that it removed %s:\n%s", want, first)
		}
	}
	if second := w.must(t, "isthmus", "ecs", "cleanup", "--yes"); strings.TrimSpace(second) != "" {
		t.Errorf("the second clean-up did something:\n%s", second)
	}
	checkKubernetes(t, w)
	checkAWS(t, w)
}

// makeForeign makes in AWS what is not ours.
func (w *world) makeForeign(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	_, err := w.ecs.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String(foreign)})
	_, err2 := w.iam.CreateRole(ctx, &iam.CreateRoleInput{RoleName: aws.String(foreign), AssumeRolePolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`)})
	_, err3 := w.logs.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: aws.String("/ecs/" + foreign)})
	for _, err := range []error{err, err2, err3} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func checkKubernetes(t *testing.T, w *world) {
	t.Helper()
	for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries} {
		list, err := w.kube.List(t.Context(), kind, "", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			if o.GetName() != foreign {
				t.Errorf("%s is left", kube.Ref(o))
			}
		}
	}
	namespaces, err := w.kube.List(t.Context(), kube.Namespaces, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range namespaces {
		if strings.HasPrefix(o.GetName(), "ecs-demo-") {
			t.Errorf("%s is left", kube.Ref(o))
		}
	}
	secrets, err := w.kube.TaskSecrets(t.Context())
	if err != nil || len(secrets) > 0 {
		t.Errorf("secrets of tasks left: %v, %v", secrets, err)
	}
	for _, want := range []struct {
		kind      kube.Kind
		namespace string
		name      string
	}{{kube.ServiceEntries, foreign, foreign}, {kube.AuthzPolicies, foreign, "deny-all"}, {kube.Deployments, "default", "eks-echo"}} {
		if o, err := w.kube.Get(t.Context(), want.kind, want.namespace, want.name); err != nil || o == nil {
			t.Errorf("%s/%s is gone: %v", want.namespace, want.name, err)
		}
	}
}

func checkAWS(t *testing.T, w *world) {
	t.Helper()
	ctx := t.Context()
	clusters, err := w.ecs.ListClusters(ctx, &ecs.ListClustersInput{})
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, arn := range clusters.ClusterArns {
		left = append(left, arn[strings.LastIndex(arn, "/")+1:])
	}
	if !slices.Equal(left, []string{foreign}) {
		t.Errorf("clusters left: %q, want only %s", left, foreign)
	}
	for _, family := range []string{"shell-task-definition", "echo-service-definition"} {
		list, err := w.ecs.ListTaskDefinitions(ctx, &ecs.ListTaskDefinitionsInput{FamilyPrefix: &family, Status: types.TaskDefinitionStatusActive})
		if err != nil || len(list.TaskDefinitionArns) > 0 {
			t.Errorf("active task definitions left: %v, %v", list, err)
		}
	}
	roles, err := w.iam.ListRoles(ctx, &iam.ListRolesInput{})
	if err != nil {
		t.Fatal(err)
	}
	left = nil
	for _, r := range roles.Roles {
		left = append(left, aws.ToString(r.RoleName))
	}
	slices.Sort(left)
	// The second came with the lab's EKS cluster.
	if want := []string{foreign, "istiod-eks-ecs-demo"}; !slices.Equal(left, want) {
		t.Errorf("roles left: %q, want %q", left, want)
	}
	policies, err := w.iam.ListRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: aws.String("istiod-eks-ecs-demo")})
	if err != nil || len(policies.PolicyNames) > 0 {
		t.Errorf("policies of the controller's role: %v, %v, want none of ours", policies, err)
	}
	groups, err := w.logs.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{})
	if err != nil {
		t.Fatal(err)
	}
	left = nil
	for _, g := range groups.LogGroups {
		left = append(left, aws.ToString(g.LogGroupName))
	}
	if want := []string{"/ecs/" + foreign}; !slices.Equal(left, want) {
		t.Errorf("log groups left: %q, want %q", left, want)
	}
	security, err := w.ec2.DescribeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{
		Filters: []ec2types.Filter{{Name: aws.String("group-name"), Values: []string{"ecs-demo-sg"}}}})
	if err != nil || len(security.SecurityGroups) > 0 {
		t.Errorf("security groups left: %v, %v", security, err)
	}
}

package cloud_test

import (
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
)

// drift is something that changed after apply, and what plan, check and apply say of it.
type drift struct {
	name  string
	spoil func(t *testing.T, l *lab)
	says  string // of plan and apply
	check string // id of the check that tells, "" for aws-infrastructure
}

const (
	controllerRoleName = "istiod-eks-ecs-demo"
	taskRoleName       = "eks-ecs-task-role"
	managedPolicy      = "arn:aws:iam::aws:policy/AmazonECS_FullAccess"
)

func drifts() []drift {
	ingress := func(rule ec2types.IpPermission) func(*testing.T, *lab) {
		return func(t *testing.T, l *lab) {
			must(awsec2.NewFromConfig(l.admin()).AuthorizeSecurityGroupIngress(t.Context(),
				&awsec2.AuthorizeSecurityGroupIngressInput{GroupId: aws.String(l.tasksGroup(t)), IpPermissions: []ec2types.IpPermission{rule}}))(t)
		}
	}
	attach := func(role string) func(*testing.T, *lab) {
		return func(t *testing.T, l *lab) {
			must(l.iam().AttachRolePolicy(t.Context(), &awsiam.AttachRolePolicyInput{RoleName: aws.String(role), PolicyArn: aws.String(managedPolicy)}))(t)
		}
	}
	everything := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`
	put := func(role, name string) func(*testing.T, *lab) {
		return func(t *testing.T, l *lab) {
			must(l.iam().PutRolePolicy(t.Context(), &awsiam.PutRolePolicyInput{RoleName: aws.String(role), PolicyName: aws.String(name), PolicyDocument: aws.String(everything)}))(t)
		}
	}
	trusts := func(role string) func(*testing.T, *lab) {
		return func(t *testing.T, l *lab) {
			must(l.iam().UpdateAssumeRolePolicy(t.Context(), &awsiam.UpdateAssumeRolePolicyInput{RoleName: aws.String(role), PolicyDocument: aws.String(trust(rootTrust, "sts:AssumeRole"))}))(t)
		}
	}
	tcp := func(low, high int32, cidr string) ec2types.IpPermission {
		return ec2types.IpPermission{IpProtocol: aws.String("tcp"), FromPort: &low, ToPort: &high, IpRanges: []ec2types.IpRange{{CidrIp: aws.String(cidr)}}}
	}
	return []drift{
		{"a port of an application", ingress(tcp(8080, 8080, "0.0.0.0/0")), "close security group ecs-demo-sg to tcp port 8080 from 0.0.0.0/0", "aws-security-group"},
		{"a range of ports", ingress(tcp(9000, 9100, "10.0.0.0/8")), "close security group ecs-demo-sg to tcp ports 9000 to 9100 from 10.0.0.0/8", "aws-security-group"},
		{"everything", ingress(ec2types.IpPermission{IpProtocol: aws.String("-1"), IpRanges: []ec2types.IpRange{{CidrIp: aws.String("0.0.0.0/0")}}}),
			"close security group ecs-demo-sg to all traffic from 0.0.0.0/0", "aws-security-group"},
		{"a policy attached to the task role", attach(taskRoleName), "detach policy " + managedPolicy + " from role " + taskRoleName, ""},
		{"a policy attached to the controller's role", attach(controllerRoleName), "detach policy " + managedPolicy + " from role " + controllerRoleName, ""},
		{"another inline policy", put("istiod-local", "More"), "delete policy More of role istiod-local", ""},
		{"the task role's policy changed", put(taskRoleName, "Task"), "put policy Task on role " + taskRoleName, ""},
		{"discovery's policy changed", put("istiod-local", "Discovery"), "put policy Discovery on role istiod-local", ""},
		{"the task role trusts others", trusts(taskRoleName), "update trust policy of role " + taskRoleName, ""},
		{"discovery's role trusts others", trusts("istiod-local"), "update trust policy of role istiod-local", ""},
		{"the controller's role trusts others", trusts(controllerRoleName), "update trust policy of role " + controllerRoleName, ""},
		{"the controller has another role", func(t *testing.T, l *lab) {
			c, cluster := awseks.NewFromConfig(l.admin()), aws.String("demo")
			as := must(c.ListPodIdentityAssociations(t.Context(), &awseks.ListPodIdentityAssociationsInput{ClusterName: cluster}))(t).Associations
			other := l.role("other-role", trust(`{"Service":"pods.eks.amazonaws.com"}`, "sts:AssumeRole", "sts:TagSession"))
			must(c.UpdatePodIdentityAssociation(t.Context(), &awseks.UpdatePodIdentityAssociationInput{ClusterName: cluster, AssociationId: as[0].AssociationId, RoleArn: &other}))(t)
		}, "associate service account istio-system/isthmus-controller with role arn:aws:iam::" + account + ":role/" + controllerRoleName + " instead of arn:aws:iam::" + account + ":role/other-role", ""},
	}
}

// tasksGroup is the id of the tasks' security group.
func (l *lab) tasksGroup(t *testing.T) string {
	t.Helper()
	out := must(awsec2.NewFromConfig(l.admin()).DescribeSecurityGroups(t.Context(), &awsec2.DescribeSecurityGroupsInput{
		Filters: []ec2types.Filter{{Name: aws.String("group-name"), Values: []string{"ecs-demo-sg"}}}}))(t)
	if len(out.SecurityGroups) != 1 {
		t.Fatalf("%d security groups, want 1", len(out.SecurityGroups))
	}
	return *out.SecurityGroups[0].GroupId
}

// TestInfrastructureDrift changes, one by one, what apply made: plan and check tell it and change nothing, apply corrects
// it and nothing else, and then everything is in place again.
func TestInfrastructureDrift(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	isthmus := l.commandLine("none")
	isthmus(0, "ecs", "infra", "apply")
	// Of a change of the controller's identity the command says what to do next.
	without := func(said string) string {
		return strings.TrimSuffix(said, "restart a controller that runs already: kubectl rollout restart -n istio-system deployment/isthmus-controller\n")
	}
	for _, d := range drifts() {
		t.Run(d.name, func(t *testing.T) {
			d.spoil(t, l)
			if planned := without(isthmus(0, "ecs", "infra", "plan")); planned != d.says+" (dry run)\n" {
				t.Errorf("plan says:\n%s\nwant %s", planned, d.says)
			}
			id := d.check
			if id == "" {
				id = "aws-infrastructure"
			}
			checked := isthmus(3, "check", "-o", "short") // there is no Kubernetes here, which fails too
			words := strings.TrimPrefix(d.says, "close security group ecs-demo-sg to ")
			if _, rest, ok := strings.Cut(checked, "["+id+"]"); !ok || !strings.Contains(rest, words) || !strings.Contains(rest, "isthmus ecs infra apply") {
				t.Errorf("check says:\n%s\nwant %s in %s", checked, words, id)
			}
			if applied := without(isthmus(0, "ecs", "infra", "apply")); applied != d.says+"\n" {
				t.Errorf("apply did:\n%s\nwant %s", applied, d.says)
			}
			if again := isthmus(0, "ecs", "infra", "plan"); !strings.HasSuffix(again, "everything is in place\n") || strings.Count(again, "\n") != 1 {
				t.Errorf("afterwards plan says:\n%s", again)
			}
		})
	}
}

// What the configuration keeps stays; and a role that was there before keeps what others gave it, which is told.
func TestInfrastructureKeeps(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	l.role(controllerRoleName, trust(`{"Service":"pods.eks.amazonaws.com"}`, "sts:AssumeRole", "sts:TagSession"))
	must(l.iam().AttachRolePolicy(t.Context(), &awsiam.AttachRolePolicyInput{RoleName: aws.String(controllerRoleName), PolicyArn: aws.String(managedPolicy)}))(t)
	isthmus := l.commandLine("none")
	if out := isthmus(0, "ecs", "infra", "apply"); !strings.Contains(out, "role "+controllerRoleName+", which isthmus did not make, has the policy "+managedPolicy) || strings.Contains(out, "detach") {
		t.Errorf("apply says:\n%s", out)
	}
	all := drifts()
	all[0].spoil(t, l)
	all[3].spoil(t, l)
	if err := os.WriteFile("isthmus.yaml", []byte("apiVersion: isthmus.dev/v1alpha1\nkind: Config\nkeep: [AmazonECS_FullAccess, tcp port 8080 from 0.0.0.0/0]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := isthmus(0, "ecs", "infra", "apply"); !strings.HasSuffix(out, "everything is in place\n") || strings.Count(out, "\n") != 1 {
		t.Errorf("apply did, with everything kept:\n%s", out)
	}
	if err := os.Remove("isthmus.yaml"); err != nil {
		t.Fatal(err)
	}
	if out := isthmus(3, "check", "-o", "short"); !strings.Contains(out, "more rights than the mesh needs") || !strings.Contains(out, "detach policy "+managedPolicy+" from role "+taskRoleName) {
		t.Errorf("check says:\n%s", out)
	}
	if out := isthmus(0, "ecs", "infra", "destroy", "--yes"); !strings.Contains(out, "role "+taskRoleName+" removed") || !strings.Contains(out, "policy AssumeIstiodLocal of role "+controllerRoleName+" removed") {
		t.Errorf("destroy did:\n%s", out)
	}
}

// TestDeployDryRun checks that a dry run of deploy makes nothing and says what deploy then makes.
func TestDeployDryRun(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	isthmus := l.commandLine("none")
	isthmus(0, "ecs", "infra", "apply")
	looked := isthmus(0, "ecs", "deploy", "--dry-run")
	if again := isthmus(0, "ecs", "deploy", "--dry-run"); again != looked {
		t.Errorf("a dry run changed something:\n%s\nbefore:\n%s", again, looked)
	}
	if out := must(l.ecs().ListClusters(t.Context(), nil))(t); len(out.ClusterArns) != 0 {
		t.Errorf("a dry run made %v", out.ClusterArns)
	}
	made := isthmus(0, "ecs", "deploy", "--wait=false")
	// Only AWS numbers revisions.
	plain := strings.NewReplacer(" (dry run)", "", ":1 registered", " registered")
	if plain.Replace(looked) != plain.Replace(made) || strings.Count(made, "created") != 6 || strings.Count(made, "registered") != 2 {
		t.Errorf("deploy made:\n%s\nand had said:\n%s", made, looked)
	}
	if again := isthmus(0, "ecs", "deploy", "--dry-run"); strings.Contains(again, "dry run") || strings.Count(again, "unchanged") != 8 {
		t.Errorf("afterwards a dry run says:\n%s", again)
	}
}

// TestHostsAreReadOnlyWhereWanted checks that discovery's rights to read EC2 hosts come and go with the configuration.
func TestHostsAreReadOnlyWhereWanted(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	isthmus := l.commandLine("none")
	rights := func() string {
		out := must(l.iam().GetRolePolicy(t.Context(), &awsiam.GetRolePolicyInput{RoleName: aws.String("istiod-local"), PolicyName: aws.String("Discovery")}))(t)
		return must(url.QueryUnescape(*out.PolicyDocument))(t)
	}
	isthmus(0, "ecs", "infra", "apply")
	if text := rights(); strings.Contains(text, "ec2:") || strings.Contains(text, "ContainerInstances") {
		t.Errorf("discovery may read hosts that nobody wants read: %s", text)
	}
	if err := os.WriteFile("isthmus.yaml", []byte("apiVersion: isthmus.dev/v1alpha1\nkind: Config\nec2Hosts: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := isthmus(0, "ecs", "infra", "apply"); out != "put policy Discovery on role istiod-local\n" {
		t.Errorf("apply did:\n%s", out)
	}
	for _, want := range []string{`"ecs:DescribeContainerInstances"`, `container-instance/ecs-demo-*/*`, `"ec2:DescribeInstances"`} {
		if !strings.Contains(rights(), want) {
			t.Errorf("discovery's policy lacks %s: %s", want, rights())
		}
	}
}

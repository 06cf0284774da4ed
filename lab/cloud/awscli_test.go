package cloud_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/test/clients"
)

// aws makes a command of the AWS CLI that signs as the first account's administrator.
func (l *lab) aws(ctx context.Context, cli string, args ...string) *exec.Cmd {
	l.t.Helper()
	home := l.t.TempDir()
	cmd := exec.CommandContext(ctx, cli, append([]string{"--endpoint-url", l.url, "--output", "text"}, args...)...) //nolint:gosec // the AWS CLI
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=AKIALABADMIN00000001", "AWS_SECRET_ACCESS_KEY=secret-one", "AWS_REGION="+region,
		"AWS_DEFAULT_REGION="+region, "AWS_CONFIG_FILE="+home+"/none", "AWS_SHARED_CREDENTIALS_FILE="+home+"/none", "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true")
	return cmd
}

// TestAWSCLI drives the guide's calls with the AWS command line. It takes half a minute, nearly all of it Python
// starting.
func TestAWSCLI(t *testing.T) {
	t.Parallel()
	cli := clients.AWSCLI(t)
	l := newLab(t)
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := l.aws(ctx, cli, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("aws %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	expect := func(want string, args ...string) {
		t.Helper()
		if got := run(args...); got != want {
			t.Errorf("aws %s = %q, want %q", strings.Join(args, " "), got, want)
		}
	}
	expect(account, "sts", "get-caller-identity", "--query", "Account")
	expect("2", "ec2", "describe-subnets", "--filters", "Name=vpc-id,Values="+ec2.DefaultVPCID, "Name=tag:Name,Values=*Public*", "--query", "length(Subnets)")
	expect(ec2.DefaultVPCID, "eks", "describe-cluster", "--name", "demo", "--query", "cluster.resourcesVpcConfig.vpcId")
	expect("arn:aws:iam::"+account+":role/ecs/ambient/eks-ecs-task-role", "iam", "create-role", "--role-name", "eks-ecs-task-role", "--path", "/ecs/ambient/",
		"--assume-role-policy-document", taskTrust, "--query", "Role.Arn")
	run("iam", "wait", "role-exists", "--role-name", "eks-ecs-task-role")
	expect("ACTIVE", "ecs", "create-cluster", "--cluster-name", "ecs-demo-1", "--tags", "key=ecs.solo.io/discovery-enabled,value=true", "--query", "cluster.status")
	expect("MISSING", "ecs", "describe-services", "--cluster", "ecs-demo-1", "--services", "shell-task", "--query", "failures[0].reason")
	l.register("shell-task-definition", app("shell"))
	expect("shell-task", "ecs", "create-service", "--cluster", "ecs-demo-1", "--service-name", "shell-task", "--task-definition", "shell-task-definition",
		"--desired-count", "1", "--launch-type", "FARGATE", "--enable-execute-command", "--network-configuration",
		"awsvpcConfiguration={subnets=["+ec2.DefaultSubnets(region)[0].ID+"],assignPublicIp=ENABLED}", "--query", "service.serviceName")
	l.steady("ecs-demo-1", "shell-task")
	run("ecs", "wait", "services-stable", "--cluster", "ecs-demo-1", "--services", "shell-task")
	expect("1", "ecs", "list-tasks", "--cluster", "ecs-demo-1", "--service-name", "shell-task", "--query", "length(taskArns)")
}

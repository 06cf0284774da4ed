package cloud_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
)

// TestAWSCLI drives the guide's calls with the AWS command line. It takes half a minute, nearly all of it Python
// starting, so it must be asked for.
func TestAWSCLI(t *testing.T) {
	t.Parallel()
	if os.Getenv("ISTHMUS_TEST_AWSCLI") == "" {
		t.Skip("SKIPPED: set ISTHMUS_TEST_AWSCLI=1 to test the endpoint with the AWS command line too (about 30 s)")
	}
	if _, err := exec.LookPath("aws"); err != nil {
		t.Skip("SKIPPED: the AWS command line is not in PATH, so the endpoint is tested with the Go SDK only")
	}
	l := newLab(t)
	l.rt.exec = func(_ *fakeContainer, spec ecs.ExecSpec) (int, error) {
		_, err := fmt.Fprintf(spec.Stdout, "output of %s\r\n", spec.Command)
		return 0, err
	}
	home := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "aws", append([]string{"--endpoint-url", l.url, "--output", "text"}, args...)...)
		cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=AKIALABADMIN00000001", "AWS_SECRET_ACCESS_KEY=secret-one", "AWS_REGION="+region,
			"AWS_DEFAULT_REGION="+region, "AWS_CONFIG_FILE="+home+"/none", "AWS_SHARED_CREDENTIALS_FILE="+home+"/none", "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true")
		out, err := cmd.CombinedOutput()
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
	arn := run("ecs", "list-tasks", "--cluster", "ecs-demo-1", "--service-name", "shell-task", "--query", "taskArns[0]")
	if _, err := exec.LookPath("session-manager-plugin"); err != nil {
		t.Log("SKIPPED: execute-command, because session-manager-plugin is not in PATH")
		return
	}
	if out := run("ecs", "execute-command", "--cluster", "ecs-demo-1", "--task", arn, "--container", "shell", "--interactive", "--command", "sh -c 'curl -s echo'"); !strings.Contains(out, "output of [sh -c curl -s echo]") {
		t.Errorf("execute-command = %s", out)
	}
}

package realtest

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/isthmus-mesh/isthmus/internal/ssmchannel"
	"github.com/isthmus-mesh/isthmus/lab/cloud"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/netns/netnstest"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

func TestMain(m *testing.M) {
	if handled, code := runtime.MaybeInit(os.Args); handled {
		os.Exit(code)
	}
	os.Exit(netnstest.Main(m))
}

const region = "us-east-2"

// start makes a VPC, a runtime and a cloud on them, and returns the configuration of its administrator.
func start(t *testing.T) aws.Config {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	vpc, err := netns.New(netns.Config{Log: log})
	check(t, err)
	t.Cleanup(func() { check(t, vpc.Close()) })
	images, err := runtime.NewCatalogue(runtime.CatalogueConfig{})
	check(t, err)
	rt, err := runtime.New(runtime.Config{Dir: t.TempDir(), VPC: vpc, Images: images, Log: log})
	check(t, err)
	t.Cleanup(func() { check(t, rt.Close()) })
	const url = "http://10.0.0.1:4566"
	c, err := cloud.New(cloud.Config{AccountID: "123456789012", Region: region, Admin: cloud.Credentials{AccessKeyID: "AKIALAB", SecretAccessKey: "s"},
		Runtime: cloud.Containers(rt), VPC: vpc, Dir: t.TempDir(), EndpointURL: url, Log: log})
	check(t, err)
	serve(t, "10.0.0.1:4566", c)
	serve(t, "169.254.170.2:80", c.TaskEndpoint())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, <-done)
	})
	return aws.Config{Region: region, BaseEndpoint: aws.String(url), Credentials: credentials.NewStaticCredentialsProvider("AKIALAB", "s", "")}
}

func serve(t *testing.T, addr string, h http.Handler) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	check(t, err)
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { check(t, s.Close()) })
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen within 20 s: %s", what)
		}
		<-tick.C
	}
}

// command runs a command in a container through ECS Exec.
func command(t *testing.T, c *ecs.Client, task types.Task, container, line string) string {
	t.Helper()
	out, err := c.ExecuteCommand(t.Context(), &ecs.ExecuteCommandInput{Cluster: aws.String("c"), Task: task.TaskArn, Container: aws.String(container), Interactive: true, Command: aws.String(line)})
	check(t, err)
	ch, err := ssmchannel.Dial(t.Context(), *out.Session.StreamUrl, *out.Session.TokenValue)
	check(t, err)
	var b bytes.Buffer
	check(t, ch.Run(t.Context(), nil, &b, nil))
	if code, known := ch.ExitCode(); code != 0 || !known {
		t.Fatalf("%s: exit code %d: %s", line, code, b.String())
	}
	return b.String()
}

// TestRealTasks runs a service whose application waits for a helper's health, and looks at it from inside.
func TestRealTasks(t *testing.T) {
	cfg := start(t)
	ctx := t.Context()
	c := ecs.NewFromConfig(cfg)
	_, err := cloudwatchlogs.NewFromConfig(cfg).CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: aws.String("/ecs/x")})
	check(t, err)
	role, err := iam.NewFromConfig(cfg).CreateRole(ctx, &iam.CreateRoleInput{RoleName: aws.String("task"), AssumeRolePolicyDocument: aws.String(
		`{"Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`)})
	check(t, err)
	_, err = c.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String("c")})
	check(t, err)
	logs := &types.LogConfiguration{LogDriver: types.LogDriverAwslogs, Options: map[string]string{"awslogs-group": "/ecs/x", "awslogs-region": region, "awslogs-stream-prefix": "p"}}
	td, err := c.RegisterTaskDefinition(ctx, &ecs.RegisterTaskDefinitionInput{Family: aws.String("f"), NetworkMode: types.NetworkModeAwsvpc, TaskRoleArn: role.Role.Arn,
		Cpu: aws.String("256"), Memory: aws.String("512"), RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate},
		ContainerDefinitions: []types.ContainerDefinition{
			{Name: aws.String("app"), Image: aws.String("alpine/curl"), EntryPoint: []string{"sh", "-c"}, Command: []string{"echo app is up; exec sleep 3600"},
				Environment: []types.KeyValuePair{{Name: aws.String("COLOUR"), Value: aws.String("blue")}}, LogConfiguration: logs,
				DependsOn:   []types.ContainerDependency{{ContainerName: aws.String("helper"), Condition: types.ContainerConditionHealthy}},
				StopTimeout: aws.Int32(2)},
			{Name: aws.String("helper"), Image: aws.String("busybox"), EntryPoint: []string{"sh", "-c"}, Command: []string{"touch /tmp/ready; exec sleep 3600"},
				HealthCheck: &types.HealthCheck{Command: []string{"CMD-SHELL", "test -e /tmp/ready"}, Interval: aws.Int32(5), Timeout: aws.Int32(2)}, StopTimeout: aws.Int32(2)},
		}})
	check(t, err)
	_, err = c.CreateService(ctx, &ecs.CreateServiceInput{Cluster: aws.String("c"), ServiceName: aws.String("s"), TaskDefinition: td.TaskDefinition.TaskDefinitionArn,
		DesiredCount: aws.Int32(2), EnableExecuteCommand: true, NetworkConfiguration: &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{
			Subnets: []string{ec2.DefaultSubnets(region)[0].ID, ec2.DefaultSubnets(region)[1].ID}}}})
	check(t, err)
	var tasks []types.Task
	eventually(t, "two tasks run", func() bool {
		list, err := c.ListTasks(ctx, &ecs.ListTasksInput{Cluster: aws.String("c")})
		check(t, err)
		if len(list.TaskArns) < 2 {
			return false
		}
		d, err := c.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: aws.String("c"), Tasks: list.TaskArns})
		check(t, err)
		tasks = d.Tasks
		for _, task := range tasks {
			if *task.LastStatus == "STOPPED" || *task.DesiredStatus == "STOPPED" {
				t.Fatalf("task stopped: %s", aws.ToString(task.StoppedReason))
			}
			if *task.LastStatus != "RUNNING" {
				return false
			}
		}
		return true
	})
	address := *tasks[0].Containers[0].NetworkInterfaces[0].PrivateIpv4Address

	if got := command(t, c, tasks[0], "app", "sh -c 'echo $COLOUR; hostname'"); !strings.HasPrefix(got, "blue\r\nip-"+strings.ReplaceAll(address, ".", "-")) {
		t.Errorf("environment and host name in the task = %q", got)
	}
	if got := command(t, c, tasks[0], "app", "sh -c 'cat /proc/net/fib_trie'"); !strings.Contains(got, address) {
		t.Errorf("the task does not have its address %s", address)
	}
	var creds struct{ AccessKeyID, SecretAccessKey, Token string }
	raw := command(t, c, tasks[0], "app", `sh -c 'curl -sS http://169.254.170.2$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI'`)
	if err := json.Unmarshal([]byte(raw), &creds); err != nil {
		t.Fatalf("credentials in the task: %v: %s", err, raw)
	}
	asTask := cfg.Copy()
	asTask.Credentials = credentials.NewStaticCredentialsProvider(creds.AccessKeyID, creds.SecretAccessKey, creds.Token)
	who, err := sts.NewFromConfig(asTask).GetCallerIdentity(ctx, nil)
	check(t, err)
	if id := (*tasks[0].TaskArn)[strings.LastIndex(*tasks[0].TaskArn, "/")+1:]; !strings.HasSuffix(*who.Arn, ":assumed-role/task/"+id) {
		t.Errorf("the task is %s", *who.Arn)
	}
	if got := command(t, c, tasks[1], "app", `sh -c 'curl -sS $ECS_CONTAINER_METADATA_URI_V4/task'`); !strings.Contains(got, *tasks[1].TaskArn) {
		t.Errorf("metadata in the task = %s", got)
	}
	if got := command(t, c, tasks[1], "app", `sh -c 'curl -sS -o /dev/null -w "%{http_code}" $AWS_ENDPOINT_URL'`); got != "404" {
		t.Errorf("the endpoint from inside the task = %s", got)
	}
	eventually(t, "both logs have their line", func() bool {
		out, err := cloudwatchlogs.NewFromConfig(cfg).FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: aws.String("/ecs/x")})
		check(t, err)
		return len(out.Events) == 2 && *out.Events[0].Message == "app is up"
	})
	_, err = c.DeleteService(ctx, &ecs.DeleteServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), Force: aws.Bool(true)})
	check(t, err)
	eventually(t, "the service is gone", func() bool {
		out, err := c.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: aws.String("c"), Services: []string{"s"}})
		check(t, err)
		return *out.Services[0].Status == "INACTIVE"
	})
}

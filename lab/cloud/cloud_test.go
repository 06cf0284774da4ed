package cloud_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/isthmus-mesh/isthmus/lab/cloud"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/lab/cloud/eks"
)

const (
	account  = "123456789012"
	account2 = "210987654321"
	region   = "us-east-2"
)

// clock is the time of the endpoint; tests move it.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// lab is an endpoint under test.
type lab struct {
	t     *testing.T
	cloud *cloud.Cloud
	rt    *fakeRuntime
	url   string
	clock *clock
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, rt: newFakeRuntime(), clock: &clock{}}
	c, err := cloud.New(cloud.Config{
		AccountID: account, Region: region, Admin: cloud.Credentials{AccessKeyID: "AKIALABADMIN00000001", SecretAccessKey: "secret-one"},
		Accounts: []cloud.Account{{ID: account2, Admin: cloud.Credentials{AccessKeyID: "AKIALABADMIN00000002", SecretAccessKey: "secret-two"}}},
		Runtime:  l.rt, VPC: l.rt, Dir: t.TempDir(), EndpointURL: "http://10.0.0.1:4566", Now: l.clock.now,
		EKS: func() eks.Cluster {
			return eks.Cluster{Name: "demo", Endpoint: "https://10.0.0.1:6443", CertificateAuthority: "PEM", Version: "1.36"}
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	l.cloud = c
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	l.url = srv.URL
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return l
}

// admin is the configuration of an SDK client that signs as the first account's administrator.
func (l *lab) admin() aws.Config {
	return l.config("AKIALABADMIN00000001", "secret-one", "")
}

func (l *lab) config(key, secret, token string) aws.Config {
	return aws.Config{Region: region, BaseEndpoint: aws.String(l.url), Credentials: credentials.NewStaticCredentialsProvider(key, secret, token),
		Retryer: func() aws.Retryer { return aws.NopRetryer{} }}
}

func (l *lab) ecs() *awsecs.Client { return awsecs.NewFromConfig(l.admin()) }

// eventually polls until ready returns true.
func (l *lab) eventually(what string, ready func() bool) {
	l.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		if time.Now().After(deadline) {
			l.t.Fatalf("did not happen within 15 s: %s", what)
		}
		<-tick.C
	}
}

// code returns the AWS error code of an error.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return ""
}

func wantCode(t *testing.T, what string, err error, want string) {
	t.Helper()
	if got := code(err); got != want {
		t.Errorf("%s: error code = %q (%v), want %q", what, got, err, want)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func network() *types.NetworkConfiguration {
	return &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{
		Subnets: []string{ec2.DefaultSubnets(region)[0].ID, ec2.DefaultSubnets(region)[1].ID}, AssignPublicIp: types.AssignPublicIpEnabled}}
}

func (l *lab) register(family string, containers ...types.ContainerDefinition) string {
	l.t.Helper()
	out := must(l.ecs().RegisterTaskDefinition(l.t.Context(), &awsecs.RegisterTaskDefinitionInput{Family: aws.String(family),
		NetworkMode: types.NetworkModeAwsvpc, RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate},
		Cpu: aws.String("256"), Memory: aws.String("512"), ContainerDefinitions: containers,
		Tags: []types.Tag{{Key: aws.String("ecs.solo.io/service-account"), Value: aws.String("sa")}}}))(l.t)
	return *out.TaskDefinition.TaskDefinitionArn
}

func (l *lab) cluster(name string) {
	l.t.Helper()
	must(l.ecs().CreateCluster(l.t.Context(), &awsecs.CreateClusterInput{ClusterName: aws.String(name),
		Tags: []types.Tag{{Key: aws.String("ecs.solo.io/discovery-enabled"), Value: aws.String("true")}}}))(l.t)
}

func (l *lab) service(cluster, name, def string, count int32) {
	l.t.Helper()
	must(l.ecs().CreateService(l.t.Context(), &awsecs.CreateServiceInput{Cluster: aws.String(cluster), ServiceName: aws.String(name),
		TaskDefinition: aws.String(def), DesiredCount: aws.Int32(count), LaunchType: types.LaunchTypeFargate, EnableExecuteCommand: true,
		NetworkConfiguration: network()}))(l.t)
}

// tasks describes the tasks of a service that are meant to run.
func (l *lab) tasks(cluster, service string) []types.Task {
	l.t.Helper()
	list := must(l.ecs().ListTasks(l.t.Context(), &awsecs.ListTasksInput{Cluster: aws.String(cluster), ServiceName: aws.String(service)}))(l.t)
	if len(list.TaskArns) == 0 {
		return nil
	}
	return must(l.ecs().DescribeTasks(l.t.Context(), &awsecs.DescribeTasksInput{Cluster: aws.String(cluster), Tasks: list.TaskArns,
		Include: []types.TaskField{types.TaskFieldTags}}))(l.t).Tasks
}

func (l *lab) describeService(cluster, name string) types.Service {
	l.t.Helper()
	out := must(l.ecs().DescribeServices(l.t.Context(), &awsecs.DescribeServicesInput{Cluster: aws.String(cluster), Services: []string{name}}))(l.t)
	if len(out.Services) != 1 {
		l.t.Fatalf("DescribeServices(%s) = %d services, failures %v", name, len(out.Services), out.Failures)
	}
	return out.Services[0]
}

func (l *lab) steady(cluster, name string) {
	l.t.Helper()
	l.eventually("service "+name+" is steady", func() bool {
		sv := l.describeService(cluster, name)
		return len(sv.Deployments) == 1 && sv.Deployments[0].RolloutState == types.DeploymentRolloutStateCompleted && sv.RunningCount == sv.DesiredCount
	})
}

func app(name string) types.ContainerDefinition {
	return types.ContainerDefinition{Name: aws.String(name), Image: aws.String("mendhak/http-https-echo:latest")}
}

func TestCallerIdentity(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	out := must(sts.NewFromConfig(l.admin()).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}))(t)
	if *out.Account != account || !strings.HasPrefix(*out.Arn, "arn:aws:iam::"+account+":user/") {
		t.Errorf("GetCallerIdentity() = %s %s, want the administrator of %s", *out.Account, *out.Arn, account)
	}
	out = must(sts.NewFromConfig(l.config("AKIALABADMIN00000002", "secret-two", "")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}))(t)
	if *out.Account != account2 {
		t.Errorf("GetCallerIdentity() with the other key = %s, want %s", *out.Account, account2)
	}
}

func TestServiceRunsTasks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("ecs-demo-1")
	def := l.register("echo", app("echo"))
	l.service("ecs-demo-1", "echo-service", def, 2)
	l.steady("ecs-demo-1", "echo-service")

	tasks := l.tasks("ecs-demo-1", "echo-service")
	if len(tasks) != 2 {
		t.Fatalf("tasks = %d, want 2", len(tasks))
	}
	zones := map[string]bool{}
	for _, task := range tasks {
		c := task.Containers[0]
		if *task.LastStatus != "RUNNING" || *c.LastStatus != "RUNNING" || *task.Group != "service:echo-service" {
			t.Errorf("task = %s, container %s, group %s", *task.LastStatus, *c.LastStatus, *task.Group)
		}
		if len(c.NetworkInterfaces) != 1 || !strings.HasPrefix(*c.NetworkInterfaces[0].PrivateIpv4Address, "10.0.1") {
			t.Errorf("network interfaces = %+v", c.NetworkInterfaces)
		}
		if len(task.Attachments) != 1 || *task.Attachments[0].Type != "ElasticNetworkInterface" || *task.Attachments[0].Status != "ATTACHED" {
			t.Errorf("attachments = %+v", task.Attachments)
		}
		if c.HealthStatus != types.HealthStatusUnknown || task.StartedAt == nil || task.StartedAt.Before(*task.CreatedAt) {
			t.Errorf("health %s, created %v, started %v", c.HealthStatus, task.CreatedAt, task.StartedAt)
		}
		zones[*task.AvailabilityZone] = true
	}
	if len(zones) != 2 {
		t.Errorf("zones = %v, want both", zones)
	}
	events := l.describeService("ecs-demo-1", "echo-service").Events
	if !slices.ContainsFunc(events, func(e types.ServiceEvent) bool { return strings.HasSuffix(*e.Message, "has reached a steady state.") }) {
		t.Errorf("no steady-state event among %d", len(events))
	}
}

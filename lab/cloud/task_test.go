package cloud_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/isthmus-mesh/isthmus/internal/ssmchannel"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
)

// get reads a JSON document from a handler.
func get(t *testing.T, h http.Handler, path string, header ...string) (int, map[string]any) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	out := map[string]any{}
	_ = json.Unmarshal(w.Body.Bytes(), &out) // refusals are plain text
	return w.Code, out
}

const taskTrust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole",
 "Condition":{"StringEquals":{"aws:SourceAccount":"` + account + `"},"ArnLike":{"aws:SourceArn":"arn:aws:ecs:` + region + `:` + account + `:*"}}}]}`

func (l *lab) registerWithRole(family, role string, containers ...types.ContainerDefinition) {
	l.t.Helper()
	must(l.ecs().RegisterTaskDefinition(l.t.Context(), &awsecs.RegisterTaskDefinitionInput{Family: aws.String(family), TaskRoleArn: aws.String(role),
		ExecutionRoleArn: aws.String(role), NetworkMode: types.NetworkModeAwsvpc, RequiresCompatibilities: []types.Compatibility{types.CompatibilityFargate},
		Cpu: aws.String("256"), Memory: aws.String("512"), ContainerDefinitions: containers}))(l.t)
}

func TestTaskCredentialsAndMetadata(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	role := l.role("eks-ecs-task-role", taskTrust)
	l.cluster("c")
	c := app("a")
	c.Environment = []types.KeyValuePair{{Name: aws.String("ALL_PROXY"), Value: aws.String("socks5h://127.0.0.1:15080")}}
	l.registerWithRole("f", role, c)
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	fc := l.rt.running("a")[0]
	for name, want := range map[string]string{"ALL_PROXY": "socks5h://127.0.0.1:15080", "AWS_REGION": region, "AWS_ENDPOINT_URL": "http://10.0.0.1:4566"} {
		if got := fc.env(name); got != want {
			t.Errorf("environment %s = %q, want %q", name, got, want)
		}
	}
	uri := fc.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
	code, creds := get(t, l.cloud.TaskEndpoint(), uri)
	if code != http.StatusOK || creds["RoleArn"] != role {
		t.Fatalf("GET %s = %d %v", uri, code, creds)
	}
	cfg := l.config(creds["AccessKeyId"].(string), creds["SecretAccessKey"].(string), creds["Token"].(string))
	who := must(sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), nil))(t)
	id := arn[strings.LastIndex(arn, "/")+1:]
	if want := "arn:aws:sts::" + account + ":assumed-role/eks-ecs-task-role/" + id; *who.Arn != want {
		t.Errorf("the task is %s, want %s", *who.Arn, want)
	}
	meta := strings.TrimPrefix(fc.env("ECS_CONTAINER_METADATA_URI_V4"), "http://169.254.170.2")
	if code, m := get(t, l.cloud.TaskEndpoint(), meta); code != http.StatusOK || m["Name"] != "a" {
		t.Errorf("container metadata = %d %v", code, m)
	}
	code, m := get(t, l.cloud.TaskEndpoint(), meta+"/taskWithTags")
	if code != http.StatusOK || m["TaskARN"] != arn || m["Family"] != "f" || m["TaskTags"].(map[string]any)["k"] != "v" {
		t.Errorf("task metadata = %d %v", code, m)
	}
	address := m["Containers"].([]any)[0].(map[string]any)["Networks"].([]any)[0].(map[string]any)["IPv4Addresses"].([]any)[0]
	if want := *l.containerOf("c", arn, "a").NetworkInterfaces[0].PrivateIpv4Address; address != want {
		t.Errorf("address in the metadata = %v, want %s", address, want)
	}
	if code, _ := get(t, l.cloud.TaskEndpoint(), "/v2/credentials/guess"); code != http.StatusBadRequest {
		t.Errorf("credentials of a guessed id = %d, want 400", code)
	}
	must(l.ecs().StopTask(t.Context(), &awsecs.StopTaskInput{Cluster: aws.String("c"), Task: aws.String(arn)}))(t)
	l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
	_, err := sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), nil)
	wantCode(t, "credentials of a stopped task", err, "InvalidClientTokenId")
	if code, _ := get(t, l.cloud.TaskEndpoint(), uri); code != http.StatusBadRequest {
		t.Errorf("credentials of a stopped task = %d, want 400", code)
	}
}

func TestTaskRoleThatCannotBeAssumed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	for name, role := range map[string]string{
		"missing":       "arn:aws:iam::" + account + ":role/none",
		"wrong-service": l.role("lambda", trust(`{"Service":"lambda.amazonaws.com"}`, "sts:AssumeRole")),
		"wrong-account": l.role("elsewhere", strings.ReplaceAll(taskTrust, `"`+account+`"`, `"`+account2+`"`)),
	} {
		l.registerWithRole(name, role, app("a"))
		arn := l.run("c", name)
		l.eventually("the task is stopped", func() bool { return *l.task("c", arn).LastStatus == "STOPPED" })
		if task := l.task("c", arn); !strings.Contains(*task.StoppedReason, "ECS was unable to assume the role '"+role+"'") {
			t.Errorf("%s: %s", name, *task.StoppedReason)
		}
	}
}

func TestRoleOverride(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	l.registerWithRole("f", l.role("one", taskTrust), app("a"))
	two := l.role("two", taskTrust)
	out := must(l.ecs().RunTask(t.Context(), &awsecs.RunTaskInput{Cluster: aws.String("c"), TaskDefinition: aws.String("f"), NetworkConfiguration: network(),
		Overrides: &types.TaskOverride{TaskRoleArn: aws.String(two), ContainerOverrides: []types.ContainerOverride{{Name: aws.String("a"),
			Command: []string{"other"}, Environment: []types.KeyValuePair{{Name: aws.String("X"), Value: aws.String("y")}}}}}}))(t)
	arn := *out.Tasks[0].TaskArn
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	if got := l.task("c", arn).Overrides; *got.TaskRoleArn != two || len(got.ContainerOverrides) != 1 || got.ContainerOverrides[0].Command[0] != "other" {
		t.Errorf("overrides = %+v", got)
	}
	fc := l.rt.running("a")[0]
	if _, creds := get(t, l.cloud.TaskEndpoint(), fc.env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")); creds["RoleArn"] != two {
		t.Errorf("role = %v, want %s", creds["RoleArn"], two)
	}
	if fc.env("X") != "y" || fc.spec.Command[0] != "other" {
		t.Errorf("command %q, X=%q", fc.spec.Command, fc.env("X"))
	}
}

func TestContainerLogs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	logs, ctx := cloudwatchlogs.NewFromConfig(l.admin()), t.Context()
	l.cluster("c")
	c := app("a")
	c.LogConfiguration = &types.LogConfiguration{LogDriver: types.LogDriverAwslogs, Options: map[string]string{"awslogs-group": "/ecs/ecs-demo",
		"awslogs-region": region, "awslogs-stream-prefix": "echo"}}
	l.register("f", c)
	failed := l.run("c", "f")
	l.eventually("the task is stopped", func() bool { return *l.task("c", failed).LastStatus == "STOPPED" })
	if r := *l.task("c", failed).StoppedReason; !strings.Contains(r, "The specified log group does not exist.") {
		t.Errorf("reason = %s", r)
	}
	must(logs.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: aws.String("/ecs/ecs-demo")}))(t)
	arn := l.run("c", "f")
	l.eventually("the log has a line", func() bool {
		out := must(logs.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: aws.String("/ecs/ecs-demo"), FilterPattern: aws.String("hello")}))(t)
		return len(out.Events) == 1 && *out.Events[0].Message == "hello from a" && *out.Events[0].LogStreamName == "echo/a/"+arn[strings.LastIndex(arn, "/")+1:]
	})
	must(l.ecs().StopTask(ctx, &awsecs.StopTaskInput{Cluster: aws.String("c"), Task: aws.String(arn)}))(t)
	l.eventually("the last line, without an end, is there", func() bool {
		out := must(logs.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: aws.String("/ecs/ecs-demo")}))(t)
		return len(out.Events) == 2 && *out.Events[1].Message == "without end"
	})
}

func TestVolumesAreShared(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	if _, err := l.call("RegisterTaskDefinition", `{"family":"f","networkMode":"awsvpc","requiresCompatibilities":["FARGATE"],"cpu":"256","memory":"512",
	 "volumes":[{"name":"v"}],"containerDefinitions":[{"name":"a","image":"x","mountPoints":[{"sourceVolume":"v","containerPath":"/data"}]},
	 {"name":"b","image":"x","mountPoints":[{"sourceVolume":"v","containerPath":"/in","readOnly":true}]}]}`); err != nil {
		t.Fatal(err)
	}
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	a, b := l.rt.running("a")[0].spec.Mounts, l.rt.running("b")[0].spec.Mounts
	if len(a) != 1 || len(b) != 1 || a[0].Source != b[0].Source || a[0].Target != "/data" || !b[0].ReadOnly {
		t.Errorf("mounts = %+v and %+v", a, b)
	}
}

func TestExecuteCommand(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.rt.exec = func(_ *fakeContainer, spec ecs.ExecSpec) (int, error) {
		if !spec.TTY || spec.Stdin == nil {
			return 0, errors.New("no terminal")
		}
		line := make([]byte, 100)
		n, err := spec.Stdin.Read(line)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		_, err = fmt.Fprintf(spec.Stdout, "%q got %s", spec.Command, bytes.TrimSuffix(line[:n], []byte{4})) // 4 is the end of input
		return 7, err
	}
	l.cluster("c")
	l.service("c", "s", l.register("f", app("a"), app("b")), 1)
	l.steady("c", "s")
	task := l.tasks("c", "s")[0]
	in := &awsecs.ExecuteCommandInput{Cluster: aws.String("c"), Task: task.TaskArn, Container: aws.String("a"), Interactive: true,
		Command: aws.String(`sh -c 'curl -s "http://echo:8080/a b"'`)}
	out := must(l.ecs().ExecuteCommand(t.Context(), in))(t)
	if *out.ContainerName != "a" || !strings.HasPrefix(*out.Session.StreamUrl, "ws"+strings.TrimPrefix(l.url, "http")+"/v1/data-channel/") {
		t.Errorf("session = %+v of container %s", out.Session, *out.ContainerName)
	}
	c, err := ssmchannel.Dial(t.Context(), *out.Session.StreamUrl, *out.Session.TokenValue)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := c.Run(t.Context(), strings.NewReader("typed"), &got, nil); err != nil {
		t.Fatal(err)
	}
	if want := `["sh" "-c" "curl -s \"http://echo:8080/a b\""] got typed`; got.String() != want {
		t.Errorf("output = %s, want %s", got.String(), want)
	}
	if code, known := c.ExitCode(); code != 7 || !known {
		t.Errorf("ExitCode() = %d, %v", code, known)
	}
	if _, err := ssmchannel.Dial(t.Context(), *out.Session.StreamUrl, *out.Session.TokenValue); err == nil {
		t.Error("a session could be used twice")
	}
	for _, c := range task.Containers {
		if len(c.ManagedAgents) != 1 || *c.ManagedAgents[0].LastStatus != "RUNNING" || *c.RuntimeId == "" {
			t.Errorf("container %s: managed agents %v, runtime id %v", *c.Name, c.ManagedAgents, c.RuntimeId)
		}
	}
}

func TestExecuteCommandRefusals(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	def := l.register("f", app("a"), app("b"))
	l.service("c", "s", def, 1)
	l.steady("c", "s")
	task := l.tasks("c", "s")[0].TaskArn
	out := must(l.ecs().RunTask(t.Context(), &awsecs.RunTaskInput{Cluster: aws.String("c"), TaskDefinition: aws.String(def), NetworkConfiguration: network()}))(t)
	without := out.Tasks[0].TaskArn
	for _, c := range []struct {
		name, want string
		in         awsecs.ExecuteCommandInput
	}{
		{"not interactive", "InvalidParameterException", awsecs.ExecuteCommandInput{Task: task, Container: aws.String("a"), Command: aws.String("ls")}},
		{"not enabled", "InvalidParameterException", awsecs.ExecuteCommandInput{Task: without, Container: aws.String("a"), Command: aws.String("ls"), Interactive: true}},
		{"which container", "InvalidParameterException", awsecs.ExecuteCommandInput{Task: task, Command: aws.String("ls"), Interactive: true}},
		{"open quote", "InvalidParameterException", awsecs.ExecuteCommandInput{Task: task, Container: aws.String("a"), Command: aws.String("sh -c 'ls"), Interactive: true}},
		{"no such task", "InvalidParameterException", awsecs.ExecuteCommandInput{Task: aws.String("none"), Container: aws.String("a"), Command: aws.String("ls"), Interactive: true}},
	} {
		c.in.Cluster = aws.String("c")
		_, err := l.ecs().ExecuteCommand(t.Context(), &c.in)
		wantCode(t, c.name, err, c.want)
	}
}

// TestExecEndsWithItsContainer checks that a session does not outlive the container it is in.
func TestExecEndsWithItsContainer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	began := make(chan struct{})
	l.rt.exec = func(c *fakeContainer, _ ecs.ExecSpec) (int, error) {
		close(began)
		<-c.done
		return 137, nil
	}
	l.cluster("c")
	l.register("f", app("a"))
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	out := must(l.ecs().ExecuteCommand(t.Context(), &awsecs.ExecuteCommandInput{Cluster: aws.String("c"), Task: aws.String(arn), Command: aws.String("sh"), Interactive: true}))(t)
	c, err := ssmchannel.Dial(t.Context(), *out.Session.StreamUrl, *out.Session.TokenValue)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Run(context.WithoutCancel(t.Context()), nil, io.Discard, nil) }()
	<-began
	l.rt.running("a")[0].exit(1)
	<-ended // however it ends, it ends
}

package cloud_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

func (l *lab) sqs() *sqs.Client            { return sqs.NewFromConfig(l.admin()) }
func (l *lab) bridge() *eventbridge.Client { return eventbridge.NewFromConfig(l.admin()) }

// queue makes a queue that takes events from the rule of a name, and returns its URL.
func (l *lab) queue(name, rule string) string {
	l.t.Helper()
	policy := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"events.amazonaws.com"},"Action":"sqs:SendMessage",`+
		`"Resource":"arn:aws:sqs:%s:%s:%s","Condition":{"ArnEquals":{"aws:SourceArn":"arn:aws:events:%[1]s:%[2]s:rule/%[4]s"}}}]}`, region, account, name, rule)
	return *must(l.sqs().CreateQueue(l.t.Context(), &sqs.CreateQueueInput{QueueName: aws.String(name), Attributes: map[string]string{"Policy": policy}}))(l.t).QueueUrl
}

// rule makes a rule that sends what matches to a queue.
func (l *lab) rule(name, pattern, queueARN string) {
	l.t.Helper()
	must(l.bridge().PutRule(l.t.Context(), &eventbridge.PutRuleInput{Name: aws.String(name), EventPattern: aws.String(pattern)}))(l.t)
	out := must(l.bridge().PutTargets(l.t.Context(), &eventbridge.PutTargetsInput{Rule: aws.String(name),
		Targets: []ebtypes.Target{{Id: aws.String("queue"), Arn: aws.String(queueARN)}}}))(l.t)
	if out.FailedEntryCount != 0 {
		l.t.Fatalf("PutTargets = %+v", out.FailedEntries)
	}
}

// receive takes messages off a queue until there are none, deleting them.
func (l *lab) receive(url string) []sqstypes.Message {
	l.t.Helper()
	var all []sqstypes.Message
	for {
		out := must(l.sqs().ReceiveMessage(l.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: 10,
			MessageSystemAttributeNames: []sqstypes.MessageSystemAttributeName{"All"}}))(l.t)
		if len(out.Messages) == 0 {
			return all
		}
		for _, m := range out.Messages {
			must(l.sqs().DeleteMessage(l.t.Context(), &sqs.DeleteMessageInput{QueueUrl: &url, ReceiptHandle: m.ReceiptHandle}))(l.t)
		}
		all = append(all, out.Messages...)
	}
}

const everyECS = `{"source":["aws.ecs"]}`

func queueARN(name string) string { return "arn:aws:sqs:" + region + ":" + account + ":" + name }

// TestTaskEvents checks what ECS publishes against facts that clients rely on: ISO times, "eni", a version that grows, no
// health and no tags; and the events of services and deployments.
func TestTaskEvents(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	url := l.queue("ecs-events", "ecs")
	l.rule("ecs", everyECS, queueARN("ecs-events"))
	l.cluster("c")
	a := app("a")
	a.HealthCheck = &types.HealthCheck{Command: []string{"CMD", "check"}, Interval: aws.Int32(5), Timeout: aws.Int32(2), Retries: aws.Int32(1)}
	l.service("c", "web", l.register("web", a), 1)
	l.steady("c", "web")
	task := l.tasks("c", "web")[0]
	must(l.ecs().StopTask(t.Context(), &awsecs.StopTaskInput{Cluster: aws.String("c"), Task: task.TaskArn}))(t)
	l.eventually("the task has stopped", func() bool {
		out := must(l.ecs().DescribeTasks(t.Context(), &awsecs.DescribeTasksInput{Cluster: aws.String("c"), Tasks: []string{*task.TaskArn}}))(t)
		return *out.Tasks[0].LastStatus == "STOPPED"
	})
	var states, others []string
	last := int64(0)
	for _, m := range l.receive(url) {
		var e struct {
			Version, ID, Source, Account, Region string
			DetailType                           string `json:"detail-type"`
			Time                                 time.Time
			Resources                            []string
			Detail                               map[string]any
		}
		if err := json.Unmarshal([]byte(*m.Body), &e); err != nil {
			t.Fatal(err)
		}
		if e.Version != "0" || e.Source != "aws.ecs" || e.Account != account || e.Region != region || len(e.Resources) != 1 || e.ID == "" {
			t.Errorf("envelope = %+v", e)
		}
		if _, err := ecs.ParseEvent([]byte(*m.Body)); err != nil {
			t.Errorf("the product cannot read it: %v", err)
		}
		if e.DetailType != "ECS Task State Change" {
			others = append(others, e.DetailType+" "+e.Detail["eventName"].(string))
			continue
		}
		if e.Detail["taskArn"] != *task.TaskArn {
			continue
		}
		for _, k := range []string{"healthStatus", "tags"} {
			if _, ok := e.Detail[k]; ok || strings.Contains(*m.Body, `"healthStatus"`) {
				t.Errorf("an event has %s", k)
			}
		}
		if _, err := time.Parse(time.RFC3339, e.Detail["createdAt"].(string)); err != nil {
			t.Errorf("createdAt: %v", err)
		}
		if at := e.Detail["attachments"].([]any); len(at) == 1 && at[0].(map[string]any)["type"] != "eni" {
			t.Errorf("attachment = %v", at[0])
		}
		if v := int64(e.Detail["version"].(float64)); v <= last {
			t.Errorf("version %d after %d", v, last)
		} else {
			last = v
		}
		states = append(states, e.Detail["lastStatus"].(string))
	}
	if got, want := slices.Compact(states), []string{"PROVISIONING", "PENDING", "ACTIVATING", "RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED"}; !slices.Equal(got, want) {
		t.Errorf("states = %v, want %v", got, want)
	}
	for _, want := range []string{"ECS Deployment State Change SERVICE_DEPLOYMENT_IN_PROGRESS", "ECS Deployment State Change SERVICE_DEPLOYMENT_COMPLETED", "ECS Service Action SERVICE_STEADY_STATE"} {
		if !slices.Contains(others, want) {
			t.Errorf("no %q among %q", want, others)
		}
	}
	if got := l.task("c", *task.TaskArn).Version; got != last {
		t.Errorf("DescribeTasks has version %d, the last event %d", got, last)
	}
}

// TestRules covers the calls about rules with AWS's errors and the patterns that ECS needs.
func TestRules(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, eb := t.Context(), l.bridge()
	l.queue("q", "r")
	l.rule("r", everyECS, queueARN("q"))
	if out := must(eb.DescribeRule(ctx, &eventbridge.DescribeRuleInput{Name: aws.String("r")}))(t); out.State != ebtypes.RuleStateEnabled || *out.EventPattern != everyECS {
		t.Errorf("DescribeRule = %+v", out)
	}
	must(eb.DisableRule(ctx, &eventbridge.DisableRuleInput{Name: aws.String("r")}))(t)
	if out := must(eb.ListRules(ctx, nil))(t); len(out.Rules) != 1 || out.Rules[0].State != ebtypes.RuleStateDisabled {
		t.Errorf("ListRules = %+v", out.Rules)
	}
	must(eb.EnableRule(ctx, &eventbridge.EnableRuleInput{Name: aws.String("r")}))(t)
	ruleARN := aws.String("arn:aws:events:" + region + ":" + account + ":rule/r")
	must(eb.TagResource(ctx, &eventbridge.TagResourceInput{ResourceARN: ruleARN, Tags: []ebtypes.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}))(t)
	if out := must(eb.ListTagsForResource(ctx, &eventbridge.ListTagsForResourceInput{ResourceARN: ruleARN}))(t); len(out.Tags) != 1 || *out.Tags[0].Value != "v" {
		t.Errorf("ListTagsForResource = %+v", out.Tags)
	}
	if out := must(eb.ListTargetsByRule(ctx, &eventbridge.ListTargetsByRuleInput{Rule: aws.String("r")}))(t); len(out.Targets) != 1 || *out.Targets[0].Arn != queueARN("q") {
		t.Errorf("ListTargetsByRule = %+v", out.Targets)
	}
	_, err := eb.DeleteRule(ctx, &eventbridge.DeleteRuleInput{Name: aws.String("r")})
	wantCode(t, "delete a rule with targets", err, "ValidationException")
	must(eb.RemoveTargets(ctx, &eventbridge.RemoveTargetsInput{Rule: aws.String("r"), Ids: []string{"queue"}}))(t)
	must(eb.DeleteRule(ctx, &eventbridge.DeleteRuleInput{Name: aws.String("r")}))(t)
	_, err = eb.DescribeRule(ctx, &eventbridge.DescribeRuleInput{Name: aws.String("r")})
	var none *ebtypes.ResourceNotFoundException
	if !errors.As(err, &none) {
		t.Errorf("DescribeRule of nothing = %v", err)
	}
	_, err = eb.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("bad"), EventPattern: aws.String(`{"source":"aws.ecs"}`)})
	wantCode(t, "a pattern without a list", err, "InvalidEventPatternException")
	_, err = eb.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("r"), EventPattern: aws.String(everyECS), EventBusName: aws.String("mine")})
	wantCode(t, "another bus", err, "ResourceNotFoundException")

	event := `{"version":"0","id":"1","source":"aws.ecs","detail-type":"ECS Task State Change","account":"1","region":"r","time":"2026-01-01T00:00:00Z","resources":["arn:a","arn:b"],` +
		`"detail":{"clusterArn":"arn:aws:ecs:r:1:cluster/demo","lastStatus":"RUNNING","desiredStatus":"RUNNING","containers":[{"name":"a","exitCode":1},{"name":"b"}],"version":3}}`
	for pattern, want := range map[string]bool{
		everyECS: true,
		`{"source":["aws.ec2","aws.ecs"],"detail-type":["ECS Task State Change"]}`: true,
		`{"source":["aws.ec2"]}`: false,
		`{"detail":{"clusterArn":[{"prefix":"arn:aws:ecs:r:1:cluster/de"}]}}`:                   true,
		`{"detail":{"clusterArn":[{"prefix":"arn:aws:ecs:r:1:cluster/x"}]}}`:                    false,
		`{"detail":{"clusterArn":[{"suffix":"/demo"}]}}`:                                        true,
		`{"detail":{"clusterArn":[{"wildcard":"*cluster/d*o"}]}}`:                               true,
		`{"detail":{"lastStatus":[{"anything-but":["PENDING","PROVISIONING"]}]}}`:               true,
		`{"detail":{"lastStatus":[{"anything-but":"RUNNING"}]}}`:                                false,
		`{"detail":{"lastStatus":[{"anything-but":{"prefix":"RUN"}}]}}`:                         false,
		`{"detail":{"stopCode":[{"exists":false}]}}`:                                            true,
		`{"detail":{"stopCode":[{"exists":true}]}}`:                                             false,
		`{"detail":{"lastStatus":[{"exists":true}],"version":[3]}}`:                             true,
		`{"detail":{"containers":{"name":["b"]}}}`:                                              true,
		`{"detail":{"containers":{"name":["b"],"exitCode":[1]}}}`:                               false,
		`{"resources":["arn:b"]}`:                                                               true,
		`{"detail":{"nothing":{"at":["all"]}}}`:                                                 false,
		`{"detail":{"lastStatus":["STOPPED",{"equals-ignore-case":"running"}]},"region":["r"]}`: true,
	} {
		out, err := eb.TestEventPattern(ctx, &eventbridge.TestEventPatternInput{Event: &event, EventPattern: &pattern})
		if err != nil || out.Result != want {
			t.Errorf("pattern %s = %v, %v, want %v", pattern, out != nil && out.Result, err, want)
		}
	}
}

// TestQueuePolicy checks that a queue takes events of the rule its policy names only, and of another account's rule with
// the role that facts ask for.
func TestQueuePolicy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	url := l.queue("q", "named")
	send := func(rule string) int {
		t.Helper()
		out := must(l.bridge().PutEvents(ctx, &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{
			{Source: aws.String("test"), DetailType: aws.String(rule), Detail: aws.String(`{"a":1}`)}, {Source: aws.String("aws.ecs"), DetailType: aws.String("x"), Detail: aws.String(`{}`)}}}))(t)
		if out.FailedEntryCount != 1 || *out.Entries[1].ErrorCode != "NotAuthorizedForSourceException" || out.Entries[0].EventId == nil {
			t.Errorf("PutEvents = %+v", out)
		}
		return len(l.receive(url))
	}
	l.rule("other", `{"detail-type":["other"]}`, queueARN("q"))
	l.rule("named", `{"detail-type":["named"]}`, queueARN("q"))
	if n := send("other"); n != 0 {
		t.Errorf("the queue took %d events of a rule its policy does not name", n)
	}
	if n := send("named"); n != 1 {
		t.Errorf("the queue took %d events of its rule, want 1", n)
	}

	second := l.config("AKIALABADMIN00000002", "secret-two", "")
	trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"events.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	role := must(awsiam.NewFromConfig(second).CreateRole(ctx, &awsiam.CreateRoleInput{RoleName: aws.String("to-queue"), AssumeRolePolicyDocument: &trust}))(t).Role.Arn
	eb := eventbridge.NewFromConfig(second)
	must(eb.PutRule(ctx, &eventbridge.PutRuleInput{Name: aws.String("far"), EventPattern: aws.String(`{"source":["test"]}`)}))(t)
	must(eb.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("far"), Targets: []ebtypes.Target{{Id: aws.String("1"), Arn: aws.String(queueARN("q")), RoleArn: role}}}))(t)
	far := func() int {
		must(eb.PutEvents(ctx, &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{{Source: aws.String("test"), DetailType: aws.String("x"), Detail: aws.String(`{}`)}}}))(t)
		return len(l.receive(url))
	}
	allow := func(who string) {
		policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + who + `"},"Action":"sqs:SendMessage","Resource":"` + queueARN("q") + `"}]}`
		must(l.sqs().SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: &url, Attributes: map[string]string{"Policy": policy}}))(t)
	}
	allow(*role)
	if n := far(); n != 0 {
		t.Errorf("the role of the rule has no right to send, and %d events came", n)
	}
	right := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:SendMessage","Resource":"*"}]}`
	must(awsiam.NewFromConfig(second).PutRolePolicy(ctx, &awsiam.PutRolePolicyInput{RoleName: aws.String("to-queue"), PolicyName: aws.String("p"), PolicyDocument: &right}))(t)
	if n := far(); n != 1 {
		t.Errorf("%d events of the other account came, want 1", n)
	}
	allow("arn:aws:iam::" + account + ":root")
	if n := far(); n != 0 {
		t.Errorf("the queue names its own account only, and %d events of the other came", n)
	}
}

// TestHintsOfTheEndpoint joins the product's reader of queues and its reflector to the endpoint: with a sweep a minute, a new
// task is known in less than a second, and one that stops is known as such.
func TestHintsOfTheEndpoint(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	url := l.queue("ecs-events", "ecs")
	l.rule("ecs", everyECS, queueARN("ecs-events"))
	l.cluster("c")
	def := l.register("web", app("a"))
	l.service("c", "web", def, 1)
	l.steady("c", "web")
	s, err := awsapi.Open(t.Context(), awsapi.Config{Region: region, Endpoint: l.url, AccessKeyID: "AKIALABADMIN00000001", SecretAccessKey: "secret-one", RateShare: 1})
	if err != nil {
		t.Fatal(err)
	}
	reader := must(awsapi.NewECS(s, awsapi.Target{}))(t)
	queue := must(awsapi.NewQueue(s, awsapi.Target{Account: account}, url))(t)
	r, err := ecs.New(ecs.Config{Account: account, Region: region, Source: reader, Interval: time.Minute, FullInterval: time.Minute, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{}, 2)
	defer func() { cancel(); <-ended; <-ended }()
	go func() { defer func() { ended <- struct{}{} }(); _ = r.Run(ctx) }()
	serving := func() (arns []string) {
		for _, c := range r.Snapshot().Clusters {
			for arn, v := range c.Tasks {
				if v.LastStatus == inventory.TaskRunning && v.DesiredStatus == inventory.TaskRunning {
					arns = append(arns, arn)
				}
			}
		}
		return arns
	}
	l.eventually("the first sweep", func() bool { return len(serving()) == 1 })
	go func() {
		defer func() { ended <- struct{}{} }()
		for ctx.Err() == nil {
			bodies, receipts, err := queue.Receive(ctx)
			if err != nil {
				continue
			}
			for _, b := range bodies {
				if h, err := ecs.ParseEvent([]byte(b)); err == nil {
					r.Hint(h)
				}
			}
			_ = queue.Delete(ctx, receipts) // what stays comes again
		}
	}()
	started := l.run("c", "web")
	begin := time.Now()
	l.eventually("the new task is known", func() bool { return slices.Contains(serving(), started) })
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a new task was known after %v, want less than a second", took)
	} else {
		t.Logf("a new task was known after %v", took)
	}
	begin = time.Now()
	must(l.ecs().StopTask(t.Context(), &awsecs.StopTaskInput{Cluster: aws.String("c"), Task: &started}))(t)
	l.eventually("its end is known", func() bool { return !slices.Contains(serving(), started) })
	if took := time.Since(begin); took > time.Second {
		t.Errorf("its end was known after %v, want less than a second", took)
	}
	// A queue that fails costs the hints and nothing else.
	for _, kind := range []awsserver.FaultKind{awsserver.FaultThrottle, awsserver.FaultDenied, awsserver.FaultError, awsserver.FaultDown} {
		l.fault(awsserver.Fault{Kind: kind, Call: "SQS.*"})
		if _, _, err := queue.Receive(ctx); err == nil {
			t.Errorf("%s does not apply to SQS", kind)
		}
		l.cloud.Faults().Clear(awsserver.Fault{Kind: kind})
	}
	if n := len(serving()); n != 1 {
		t.Errorf("%d tasks are known, want the one of the service", n)
	}
}

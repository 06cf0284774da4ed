package cloud_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	bustypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("n%d", i)
	}
	return out
}

// TestLimits goes one beyond each of AWS's limits, and as far as it goes where that differs.
func TestLimits(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, _ := l.callers()
	l.cluster("c")
	for _, row := range limits() {
		err := row.do(c, row.most)
		if row.partly {
			wantCode(t, fmt.Sprintf("%s with %d %s", row.op, row.most, row.what), err, "")
		}
		wantCode(t, fmt.Sprintf("%s with %d %s", row.op, row.most+1, row.what), row.do(c, row.most+1), row.code)
	}
}

// limit is how much of something a call takes.
type limit struct {
	op, what string
	most     int
	code     string
	partly   bool // the most succeeds by itself
	do       func(c *caller, n int) error
}

func limits() []limit {
	const parameter = "InvalidParameterException"
	many := func(n int) []types.Tag {
		var out []types.Tag
		for _, k := range names(n) {
			out = append(out, types.Tag{Key: of(k), Value: of("v")})
		}
		return out
	}
	return append([]limit{
		{"ecs.DescribeClusters", "clusters", 100, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.DescribeClusters(c.ctx, &awsecs.DescribeClustersInput{Clusters: names(n)})
			return err
		}},
		{"ecs.DescribeServices", "services", 10, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.DescribeServices(c.ctx, &awsecs.DescribeServicesInput{Cluster: of("c"), Services: names(n)})
			return err
		}},
		{"ecs.DescribeTasks", "tasks", 100, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.DescribeTasks(c.ctx, &awsecs.DescribeTasksInput{Cluster: of("c"), Tasks: names(n)})
			return err
		}},
		{"ecs.DescribeContainerInstances", "instances", 100, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.DescribeContainerInstances(c.ctx, &awsecs.DescribeContainerInstancesInput{Cluster: of("c"), ContainerInstances: names(n)})
			return err
		}},
		{"ecs.UpdateContainerInstancesState", "instances", 10, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.UpdateContainerInstancesState(c.ctx, &awsecs.UpdateContainerInstancesStateInput{Cluster: of("c"), ContainerInstances: names(n), Status: types.ContainerInstanceStatusDraining})
			return err
		}},
		{"ecs.CreateCluster", "tags", 50, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.CreateCluster(c.ctx, &awsecs.CreateClusterInput{ClusterName: of("tagged"), Tags: many(n)})
			return err
		}},
		{"ecs.RegisterTaskDefinition", "containers", 10, "ClientException", true, func(c *caller, n int) error {
			var cs []types.ContainerDefinition
			for _, name := range names(n) {
				cs = append(cs, app(name))
			}
			_, err := c.ecs.RegisterTaskDefinition(c.ctx, fargate("f", cs...))
			return err
		}},
		{"ecs.RegisterTaskDefinition", "bytes", 64 << 10, "ClientException", false, func(c *caller, n int) error {
			a := app("a")
			a.Environment = []types.KeyValuePair{{Name: of("k"), Value: of(strings.Repeat("v", n))}}
			_, err := c.ecs.RegisterTaskDefinition(c.ctx, fargate("f", a))
			return err
		}},
		{"ecs.RunTask", "tasks", 10, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.RunTask(c.ctx, &awsecs.RunTaskInput{Cluster: of("c"), TaskDefinition: of("f"), Count: of(int32(n)), NetworkConfiguration: network()})
			return err
		}},
		{"ecs.CreateCluster", "characters", 255, parameter, true, func(c *caller, n int) error {
			_, err := c.ecs.CreateCluster(c.ctx, &awsecs.CreateClusterInput{ClusterName: of(strings.Repeat("n", n))})
			return err
		}},
		{"ec2.CreateVpc", "VPCs", 19, "VpcLimitExceeded", true, func(c *caller, n int) error { // there is one from the start
			for i := range n {
				if c.ids[fmt.Sprint("vpc", i)] != "" {
					continue
				}
				out, err := c.ec2.CreateVpc(c.ctx, &awsec2.CreateVpcInput{CidrBlock: of(fmt.Sprintf("10.%d.0.0/16", 100+i))})
				if err != nil {
					return err
				}
				if err := c.set(fmt.Sprint("vpc", i), out.Vpc.VpcId); err != nil {
					return err
				}
			}
			return nil
		}},
	}, moreLimits()...)
}

func moreLimits() []limit {
	return []limit{
		{"iam.CreateRole", "characters", 64, "ValidationError", true, func(c *caller, n int) error {
			_, err := c.iam.CreateRole(c.ctx, &awsiam.CreateRoleInput{RoleName: of(strings.Repeat("r", n)), AssumeRolePolicyDocument: of(taskTrust)})
			return err
		}},
		{"iam.CreatePolicyVersion", "versions", 5, "LimitExceeded", true, func(c *caller, n int) error {
			arn := of("arn:aws:iam::" + c.id + ":policy/p")
			_, err := c.iam.CreatePolicy(c.ctx, &awsiam.CreatePolicyInput{PolicyName: of("p"), PolicyDocument: of(anything)})
			for range n - 1 {
				if code(err) == "EntityAlreadyExists" {
					_, err = c.iam.CreatePolicyVersion(c.ctx, &awsiam.CreatePolicyVersionInput{PolicyArn: arn, PolicyDocument: of(anything)})
					return err // the fifth is there from the call before
				}
				if err == nil {
					_, err = c.iam.CreatePolicyVersion(c.ctx, &awsiam.CreatePolicyVersionInput{PolicyArn: arn, PolicyDocument: of(anything)})
				}
			}
			return err
		}},
		{"sts.AssumeRole", "hours", 12, "ValidationError", false, func(c *caller, n int) error {
			_, err := c.sts.AssumeRole(c.ctx, &sts.AssumeRoleInput{RoleArn: of("arn:aws:iam::" + c.id + ":role/none"), RoleSessionName: of("session"), DurationSeconds: of(int32(n * 3600))})
			return err
		}},
		{"sqs.SendMessageBatch", "messages", 10, "AWS.SimpleQueueService.TooManyEntriesInBatchRequest", true, func(c *caller, n int) error {
			q, err := c.sqs.CreateQueue(c.ctx, &sqs.CreateQueueInput{QueueName: of("q")})
			if err != nil {
				return err
			}
			var entries []sqstypes.SendMessageBatchRequestEntry
			for _, id := range names(n) {
				entries = append(entries, sqstypes.SendMessageBatchRequestEntry{Id: of(id), MessageBody: of("b")})
			}
			_, err = c.sqs.SendMessageBatch(c.ctx, &sqs.SendMessageBatchInput{QueueUrl: q.QueueUrl, Entries: entries})
			return err
		}},
		{"sqs.ReceiveMessage", "messages", 10, "InvalidParameterValue", true, func(c *caller, n int) error {
			q, err := c.sqs.GetQueueUrl(c.ctx, &sqs.GetQueueUrlInput{QueueName: of("q")})
			if err != nil {
				return err
			}
			_, err = c.sqs.ReceiveMessage(c.ctx, &sqs.ReceiveMessageInput{QueueUrl: q.QueueUrl, MaxNumberOfMessages: int32(n)})
			return err
		}},
		{"events.PutEvents", "events", 10, "ValidationException", true, func(c *caller, n int) error {
			var entries []bustypes.PutEventsRequestEntry
			for range n {
				entries = append(entries, bustypes.PutEventsRequestEntry{Source: of("s"), DetailType: of("t"), Detail: of("{}")})
			}
			_, err := c.bus.PutEvents(c.ctx, &eventbridge.PutEventsInput{Entries: entries})
			return err
		}},
		{"events.PutTargets", "targets", 5, "LimitExceededException", true, func(c *caller, n int) error {
			_, err := c.bus.PutRule(c.ctx, &eventbridge.PutRuleInput{Name: of("r"), EventPattern: of(`{"source":["s"]}`)})
			if err != nil {
				return err
			}
			var targets []bustypes.Target
			for _, id := range names(n) {
				targets = append(targets, bustypes.Target{Id: of(id), Arn: of(c.arn("sqs", id))})
			}
			_, err = c.bus.PutTargets(c.ctx, &eventbridge.PutTargetsInput{Rule: of("r"), Targets: targets})
			return err
		}},
		{"logs.PutLogEvents", "events", 10000, "InvalidParameterException", false, func(c *caller, n int) error {
			group, stream := of("g"), of("s")
			_, err := c.logs.CreateLogGroup(c.ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: group})
			if err == nil {
				_, err = c.logs.CreateLogStream(c.ctx, &cloudwatchlogs.CreateLogStreamInput{LogGroupName: group, LogStreamName: stream})
			}
			if err != nil && code(err) != "ResourceAlreadyExistsException" {
				return err
			}
			events := make([]logtypes.InputLogEvent, n)
			for i := range events {
				events[i] = logtypes.InputLogEvent{Timestamp: of(int64(i)), Message: of("m")}
			}
			_, err = c.logs.PutLogEvents(c.ctx, &cloudwatchlogs.PutLogEventsInput{LogGroupName: group, LogStreamName: stream, LogEvents: events})
			return err
		}},
	}
}

package cloud_test

import (
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	bustypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

const notThere = "ResourceNotFoundException"

func eksCalls() (furnish, read, clear []call) {
	furnish = []call{{op: "eks.CreatePodIdentityAssociation", foreign: notThere, do: func(c *caller) error {
		out, err := c.eks.CreatePodIdentityAssociation(c.ctx, &awseks.CreatePodIdentityAssociationInput{ClusterName: of("demo"), Namespace: of("istio-system"),
			ServiceAccount: of("istiod"), RoleArn: of(c.ids["role"])})
		return want(err, func() bool { return c.set("association", out.Association.AssociationId) == nil })
	}}, {op: "eks.UpdatePodIdentityAssociation", foreign: notThere, do: func(c *caller) error {
		out, err := c.eks.UpdatePodIdentityAssociation(c.ctx, &awseks.UpdatePodIdentityAssociationInput{ClusterName: of("demo"), AssociationId: c.association(), DisableSessionTags: of(true)})
		return want(err, func() bool { return *out.Association.DisableSessionTags })
	}}}
	read = []call{{op: "eks.ListClusters", do: func(c *caller) error {
		out, err := c.eks.ListClusters(c.ctx, &awseks.ListClustersInput{})
		return want(err, func() bool { return len(out.Clusters) == 1 == c.first })
	}}, {op: "eks.DescribeCluster", foreign: notThere, do: func(c *caller) error {
		out, err := c.eks.DescribeCluster(c.ctx, &awseks.DescribeClusterInput{Name: of("demo")})
		return want(err, func() bool { return *out.Cluster.ResourcesVpcConfig.VpcId != "" })
	}}, {op: "eks.ListPodIdentityAssociations", foreign: notThere, do: func(c *caller) error {
		out, err := c.eks.ListPodIdentityAssociations(c.ctx, &awseks.ListPodIdentityAssociationsInput{ClusterName: of("demo")})
		return want(err, func() bool { return len(out.Associations) == 1 })
	}}, {op: "eks.DescribePodIdentityAssociation", foreign: notThere, do: func(c *caller) error {
		out, err := c.eks.DescribePodIdentityAssociation(c.ctx, &awseks.DescribePodIdentityAssociationInput{ClusterName: of("demo"), AssociationId: c.association()})
		return want(err, func() bool { return *out.Association.ServiceAccount == "istiod" })
	}}}
	clear = []call{{op: "eks.DeletePodIdentityAssociation", foreign: notThere, do: func(c *caller) error {
		_, err := c.eks.DeletePodIdentityAssociation(c.ctx, &awseks.DeletePodIdentityAssociationInput{ClusterName: of("demo"), AssociationId: c.association()})
		return err
	}}}
	return furnish, read, clear
}

// association is the id of the account's association; the second account has none, and asks for one all the same.
func (c *caller) association() *string {
	if c.ids["association"] == "" {
		return of("a-none")
	}
	return c.get("association")
}

func logsCalls() (furnish, read, clear []call) {
	group, stream := of("/ecs/walk"), of("stream")
	furnish = []call{{op: "logs.CreateLogGroup", do: func(c *caller) error {
		_, err := c.logs.CreateLogGroup(c.ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: group})
		return err
	}}, {op: "logs.PutRetentionPolicy", do: func(c *caller) error {
		_, err := c.logs.PutRetentionPolicy(c.ctx, &cloudwatchlogs.PutRetentionPolicyInput{LogGroupName: group, RetentionInDays: of(int32(1))})
		return err
	}}, {op: "logs.CreateLogStream", do: func(c *caller) error {
		_, err := c.logs.CreateLogStream(c.ctx, &cloudwatchlogs.CreateLogStreamInput{LogGroupName: group, LogStreamName: stream})
		return err
	}}, {op: "logs.PutLogEvents", do: func(c *caller) error {
		_, err := c.logs.PutLogEvents(c.ctx, &cloudwatchlogs.PutLogEventsInput{LogGroupName: group, LogStreamName: stream,
			LogEvents: []logtypes.InputLogEvent{{Timestamp: of(time.Now().UnixMilli()), Message: of("hello from " + c.id)}}})
		return err
	}}}
	read = []call{{op: "logs.DescribeLogGroups", do: func(c *caller) error {
		out, err := c.logs.DescribeLogGroups(c.ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: of("/ecs")})
		return want(err, func() bool { return len(out.LogGroups) == 1 && *out.LogGroups[0].RetentionInDays == 1 })
	}}, {op: "logs.DescribeLogStreams", do: func(c *caller) error {
		out, err := c.logs.DescribeLogStreams(c.ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupName: group})
		return want(err, func() bool { return len(out.LogStreams) == 1 })
	}}, {op: "logs.FilterLogEvents", do: func(c *caller) error {
		out, err := c.logs.FilterLogEvents(c.ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: group, FilterPattern: of("hello")})
		return want(err, func() bool { return len(out.Events) == 1 && strings.HasSuffix(*out.Events[0].Message, c.id) })
	}}, {op: "logs.GetLogEvents", do: func(c *caller) error {
		out, err := c.logs.GetLogEvents(c.ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: group, LogStreamName: stream})
		return want(err, func() bool { return len(out.Events) == 1 })
	}}}
	clear = []call{{op: "logs.DeleteLogStream", do: func(c *caller) error {
		_, err := c.logs.DeleteLogStream(c.ctx, &cloudwatchlogs.DeleteLogStreamInput{LogGroupName: group, LogStreamName: stream})
		return err
	}}, {op: "logs.DeleteLogGroup", do: func(c *caller) error {
		_, err := c.logs.DeleteLogGroup(c.ctx, &cloudwatchlogs.DeleteLogGroupInput{LogGroupName: group})
		return err
	}}}
	return furnish, read, clear
}

func queueCalls() (furnish, read, clear []call) {
	name := of("walk")
	url := func(c *caller) *string { return c.get("queue") }
	receive := call{op: "sqs.ReceiveMessage", do: func(c *caller) error {
		out, err := c.sqs.ReceiveMessage(c.ctx, &sqs.ReceiveMessageInput{QueueUrl: url(c)})
		return want(err, func() bool { return len(out.Messages) == 1 && c.set("receipt", out.Messages[0].ReceiptHandle) == nil })
	}}
	furnish = []call{{op: "sqs.CreateQueue", do: func(c *caller) error {
		out, err := c.sqs.CreateQueue(c.ctx, &sqs.CreateQueueInput{QueueName: name})
		return want(err, func() bool {
			return c.set("queue", out.QueueUrl) == nil && strings.HasSuffix(*out.QueueUrl, "/"+c.id+"/walk")
		})
	}}, {op: "sqs.SetQueueAttributes", do: func(c *caller) error {
		_, err := c.sqs.SetQueueAttributes(c.ctx, &sqs.SetQueueAttributesInput{QueueUrl: url(c), Attributes: map[string]string{"VisibilityTimeout": "600"}})
		return err
	}}, {op: "sqs.TagQueue", do: func(c *caller) error {
		_, err := c.sqs.TagQueue(c.ctx, &sqs.TagQueueInput{QueueUrl: url(c), Tags: map[string]string{"k": "v"}})
		return err
	}}, {op: "sqs.SendMessage", do: func(c *caller) error {
		_, err := c.sqs.SendMessage(c.ctx, &sqs.SendMessageInput{QueueUrl: url(c), MessageBody: of("one")})
		return err
	}}, receive, {op: "sqs.ChangeMessageVisibility", do: func(c *caller) error {
		_, err := c.sqs.ChangeMessageVisibility(c.ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: url(c), ReceiptHandle: c.get("receipt"), VisibilityTimeout: 500})
		return err
	}}, {op: "sqs.ChangeMessageVisibilityBatch", do: func(c *caller) error {
		out, err := c.sqs.ChangeMessageVisibilityBatch(c.ctx, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: url(c),
			Entries: []sqstypes.ChangeMessageVisibilityBatchRequestEntry{{Id: of("a"), ReceiptHandle: c.get("receipt"), VisibilityTimeout: 400}}})
		return want(err, func() bool { return len(out.Successful) == 1 })
	}}, {op: "sqs.DeleteMessage", do: func(c *caller) error {
		_, err := c.sqs.DeleteMessage(c.ctx, &sqs.DeleteMessageInput{QueueUrl: url(c), ReceiptHandle: c.get("receipt")})
		return err
	}}, {op: "sqs.SendMessageBatch", do: func(c *caller) error {
		out, err := c.sqs.SendMessageBatch(c.ctx, &sqs.SendMessageBatchInput{QueueUrl: url(c), Entries: []sqstypes.SendMessageBatchRequestEntry{{Id: of("a"), MessageBody: of("two")}}})
		return want(err, func() bool { return len(out.Successful) == 1 })
	}}, receive, {op: "sqs.DeleteMessageBatch", do: func(c *caller) error {
		out, err := c.sqs.DeleteMessageBatch(c.ctx, &sqs.DeleteMessageBatchInput{QueueUrl: url(c), Entries: []sqstypes.DeleteMessageBatchRequestEntry{{Id: of("a"), ReceiptHandle: c.get("receipt")}}})
		return want(err, func() bool { return len(out.Successful) == 1 })
	}}}
	read = []call{{op: "sqs.GetQueueUrl", do: func(c *caller) error {
		out, err := c.sqs.GetQueueUrl(c.ctx, &sqs.GetQueueUrlInput{QueueName: name})
		return want(err, func() bool { return *out.QueueUrl == c.ids["queue"] })
	}}, {op: "sqs.GetQueueAttributes", do: func(c *caller) error {
		out, err := c.sqs.GetQueueAttributes(c.ctx, &sqs.GetQueueAttributesInput{QueueUrl: url(c), AttributeNames: []sqstypes.QueueAttributeName{"All"}})
		return want(err, func() bool {
			return out.Attributes["QueueArn"] == c.arn("sqs", "walk") && out.Attributes["VisibilityTimeout"] == "600"
		})
	}}, {op: "sqs.ListQueueTags", do: func(c *caller) error {
		out, err := c.sqs.ListQueueTags(c.ctx, &sqs.ListQueueTagsInput{QueueUrl: url(c)})
		return want(err, func() bool { return out.Tags["k"] == "v" })
	}}, {op: "sqs.ListQueues", do: func(c *caller) error {
		out, err := c.sqs.ListQueues(c.ctx, &sqs.ListQueuesInput{})
		return want(err, func() bool { return len(out.QueueUrls) == 1 })
	}}}
	clear = []call{{op: "sqs.UntagQueue", do: func(c *caller) error {
		_, err := c.sqs.UntagQueue(c.ctx, &sqs.UntagQueueInput{QueueUrl: url(c), TagKeys: []string{"k"}})
		return err
	}}, {op: "sqs.PurgeQueue", do: func(c *caller) error {
		_, err := c.sqs.PurgeQueue(c.ctx, &sqs.PurgeQueueInput{QueueUrl: url(c)})
		return err
	}}, {op: "sqs.DeleteQueue", do: func(c *caller) error {
		_, err := c.sqs.DeleteQueue(c.ctx, &sqs.DeleteQueueInput{QueueUrl: url(c)})
		return err
	}}}
	return furnish, read, clear
}

func busCalls() (furnish, read, clear []call) {
	name := of("walk")
	furnish = []call{{op: "events.PutRule", do: func(c *caller) error {
		out, err := c.bus.PutRule(c.ctx, &eventbridge.PutRuleInput{Name: name, EventPattern: of(`{"source":["walk"]}`)})
		return want(err, func() bool { return *out.RuleArn == c.arn("events", "rule/walk") })
	}}, {op: "events.PutTargets", do: func(c *caller) error {
		out, err := c.bus.PutTargets(c.ctx, &eventbridge.PutTargetsInput{Rule: name, Targets: []bustypes.Target{{Id: of("q"), Arn: of(c.arn("sqs", "walk"))}}})
		return want(err, func() bool { return out.FailedEntryCount == 0 })
	}}, {op: "events.TagResource", do: func(c *caller) error {
		_, err := c.bus.TagResource(c.ctx, &eventbridge.TagResourceInput{ResourceARN: of(c.arn("events", "rule/walk")), Tags: []bustypes.Tag{{Key: of("k"), Value: of("v")}}})
		return err
	}}, {op: "events.DisableRule", do: func(c *caller) error {
		_, err := c.bus.DisableRule(c.ctx, &eventbridge.DisableRuleInput{Name: name})
		return err
	}}, {op: "events.EnableRule", do: func(c *caller) error {
		_, err := c.bus.EnableRule(c.ctx, &eventbridge.EnableRuleInput{Name: name})
		return err
	}}, {op: "events.PutEvents", do: func(c *caller) error {
		out, err := c.bus.PutEvents(c.ctx, &eventbridge.PutEventsInput{Entries: []bustypes.PutEventsRequestEntry{{Source: of("walk"), DetailType: of("t"), Detail: of("{}")}}})
		return want(err, func() bool { return out.FailedEntryCount == 0 })
	}}, {op: "events.TestEventPattern", do: func(c *caller) error {
		out, err := c.bus.TestEventPattern(c.ctx, &eventbridge.TestEventPatternInput{EventPattern: of(`{"source":["a"]}`), Event: of(`{"source":"a"}`)})
		return want(err, func() bool { return out.Result })
	}}}
	furnish = append(furnish, call{op: "events.PutPermission", do: func(c *caller) error {
		_, err := c.bus.PutPermission(c.ctx, &eventbridge.PutPermissionInput{Action: of("events:PutEvents"), Principal: of("111111111111"), StatementId: of("s")})
		return err
	}})
	read = []call{{op: "events.DescribeEventBus", do: func(c *caller) error {
		out, err := c.bus.DescribeEventBus(c.ctx, &eventbridge.DescribeEventBusInput{})
		return want(err, func() bool { return strings.Contains(aws.ToString(out.Policy), c.arn("events", "event-bus/default")) })
	}}, {op: "events.ListEventBuses", do: func(c *caller) error {
		out, err := c.bus.ListEventBuses(c.ctx, &eventbridge.ListEventBusesInput{})
		return want(err, func() bool { return len(out.EventBuses) == 1 })
	}}, {op: "events.DescribeRule", do: func(c *caller) error {
		out, err := c.bus.DescribeRule(c.ctx, &eventbridge.DescribeRuleInput{Name: name})
		return want(err, func() bool { return out.State == bustypes.RuleStateEnabled && *out.CreatedBy == c.id })
	}}, {op: "events.ListRules", do: func(c *caller) error {
		out, err := c.bus.ListRules(c.ctx, &eventbridge.ListRulesInput{})
		return want(err, func() bool { return len(out.Rules) == 1 })
	}}, {op: "events.ListTargetsByRule", do: func(c *caller) error {
		out, err := c.bus.ListTargetsByRule(c.ctx, &eventbridge.ListTargetsByRuleInput{Rule: name})
		return want(err, func() bool { return len(out.Targets) == 1 })
	}}, {op: "events.ListRuleNamesByTarget", do: func(c *caller) error {
		out, err := c.bus.ListRuleNamesByTarget(c.ctx, &eventbridge.ListRuleNamesByTargetInput{TargetArn: of(c.arn("sqs", "walk"))})
		return want(err, func() bool { return len(out.RuleNames) == 1 })
	}}, {op: "events.ListTagsForResource", do: func(c *caller) error {
		out, err := c.bus.ListTagsForResource(c.ctx, &eventbridge.ListTagsForResourceInput{ResourceARN: of(c.arn("events", "rule/walk"))})
		return want(err, func() bool { return len(out.Tags) == 1 })
	}}}
	clear = []call{{op: "events.RemovePermission", do: func(c *caller) error {
		_, err := c.bus.RemovePermission(c.ctx, &eventbridge.RemovePermissionInput{StatementId: of("s")})
		return err
	}}, {op: "events.UntagResource", do: func(c *caller) error {
		_, err := c.bus.UntagResource(c.ctx, &eventbridge.UntagResourceInput{ResourceARN: of(c.arn("events", "rule/walk")), TagKeys: []string{"k"}})
		return err
	}}, {op: "events.RemoveTargets", do: func(c *caller) error {
		out, err := c.bus.RemoveTargets(c.ctx, &eventbridge.RemoveTargetsInput{Rule: name, Ids: []string{"q"}})
		return want(err, func() bool { return out.FailedEntryCount == 0 })
	}}, {op: "events.DeleteRule", do: func(c *caller) error {
		_, err := c.bus.DeleteRule(c.ctx, &eventbridge.DeleteRuleInput{Name: name})
		return err
	}}}
	return furnish, read, clear
}

// stackCalls are those of the clean-up, which find nothing.
func stackCalls() (furnish, read, clear []call) {
	raw := func(service, version, op string, form url.Values, refusal string) func(*caller) error {
		return func(c *caller) error {
			err := c.query(service, version, op, form)
			if refusal != "" && code(err) == refusal {
				return nil
			}
			return err
		}
	}
	const cfn, elb, classic, current = "cloudformation", "elasticloadbalancing", "2012-06-01", "2015-12-01"
	stack := url.Values{"StackName": {"none"}, "LogicalResourceId": {"x"}}
	for _, op := range []string{"DescribeStacks", "DescribeStackResource", "DescribeStackResources"} {
		read = append(read, call{op: cfn + "." + op, do: raw(cfn, "2010-05-15", op, stack, "ValidationError")})
	}
	read = append(read, call{op: cfn + ".ListStacks", do: raw(cfn, "2010-05-15", "ListStacks", nil, "")},
		call{op: elb + "/" + classic + ".DescribeLoadBalancers", do: raw(elb, classic, "DescribeLoadBalancers", nil, "")},
		call{op: elb + "/" + current + ".DescribeLoadBalancers", do: raw(elb, current, "DescribeLoadBalancers", nil, "")})
	clear = []call{{op: cfn + ".DeleteStack", do: raw(cfn, "2010-05-15", "DeleteStack", stack, "")},
		{op: elb + "/" + classic + ".DeleteLoadBalancer", do: raw(elb, classic, "DeleteLoadBalancer", url.Values{"LoadBalancerName": {"none"}}, "")},
		{op: elb + "/" + current + ".DeleteLoadBalancer", do: raw(elb, current, "DeleteLoadBalancer", url.Values{"LoadBalancerArn": {"arn:none"}}, "")}}
	return nil, read, clear
}

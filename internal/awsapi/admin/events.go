package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// Events is the way of an account's ECS events to the controller: a rule of the default bus, a queue, and a queue for
// messages that nobody could read. All three have one name; the last one ends in -dlq.
type Events struct {
	Name, QueueARN, RuleARN string
	Pattern                 map[string]any
	Tags                    map[string]string
	// Readers are ARNs of roles that the queue itself lets read it, whatever their own policies say. They need not exist yet.
	Readers []string
}

// EventsOf is the way of the events of ECS clusters, which are named by ARN. A change of a task's health makes no event, so
// that sweeps go on whatever events do.
func EventsOf(name string, arn func(service, rest string) string, clusters []string) Events {
	var only []any
	for _, c := range clusters {
		only = append(only, c)
	}
	return Events{Name: name, QueueARN: arn("sqs", name), RuleARN: arn("events", "rule/"+name),
		Pattern: map[string]any{"source": []any{"aws.ecs"}, "detail-type": []any{"ECS Task State Change", "ECS Container Instance State Change", "ECS Service Action"},
			"detail": map[string]any{"clusterArn": only}}}
}

// queuePolicy lets the rule send, and the readers read.
func (e Events) queuePolicy() map[string]any {
	statements := []any{map[string]any{
		"Sid": "Events", "Effect": "Allow", "Principal": map[string]any{"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": e.QueueARN,
		"Condition": map[string]any{"ArnEquals": map[string]any{"aws:SourceArn": e.RuleARN}}}}
	if len(e.Readers) > 0 {
		statements = append(statements, map[string]any{
			"Sid": "Readers", "Effect": "Allow", "Principal": "*", "Resource": e.QueueARN,
			"Action":    []string{"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"},
			"Condition": map[string]any{"ArnEquals": map[string]any{"aws:PrincipalArn": e.Readers}}})
	}
	return map[string]any{"Version": "2012-10-17", "Statement": statements}
}

// What the queues keep and for how long. An event is a hint: an hour later a sweep has long seen the truth.
const (
	eventVisibility  = "60"
	eventRetention   = "3600"
	deadRetention    = "1209600" // 14 days, the most there is
	eventPoll        = "20"
	eventMaxReceives = 5
	eventTarget      = "isthmus"
)

// eventCalls holds the SDK's methods about events one by one; see awsapi for why.
type eventCalls struct {
	createQueue   func(context.Context, *sqs.CreateQueueInput, ...func(*sqs.Options)) (*sqs.CreateQueueOutput, error)
	queueURL      func(context.Context, *sqs.GetQueueUrlInput, ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error)
	attributes    func(context.Context, *sqs.GetQueueAttributesInput, ...func(*sqs.Options)) (*sqs.GetQueueAttributesOutput, error)
	setAttributes func(context.Context, *sqs.SetQueueAttributesInput, ...func(*sqs.Options)) (*sqs.SetQueueAttributesOutput, error)
	deleteQueue   func(context.Context, *sqs.DeleteQueueInput, ...func(*sqs.Options)) (*sqs.DeleteQueueOutput, error)
	putRule       func(context.Context, *eventbridge.PutRuleInput, ...func(*eventbridge.Options)) (*eventbridge.PutRuleOutput, error)
	describeRule  func(context.Context, *eventbridge.DescribeRuleInput, ...func(*eventbridge.Options)) (*eventbridge.DescribeRuleOutput, error)
	deleteRule    func(context.Context, *eventbridge.DeleteRuleInput, ...func(*eventbridge.Options)) (*eventbridge.DeleteRuleOutput, error)
	putTargets    func(context.Context, *eventbridge.PutTargetsInput, ...func(*eventbridge.Options)) (*eventbridge.PutTargetsOutput, error)
	listTargets   func(context.Context, *eventbridge.ListTargetsByRuleInput, ...func(*eventbridge.Options)) (*eventbridge.ListTargetsByRuleOutput, error)
	removeTargets func(context.Context, *eventbridge.RemoveTargetsInput, ...func(*eventbridge.Options)) (*eventbridge.RemoveTargetsOutput, error)
}

func newEventCalls(cfg aws.Config) eventCalls {
	q, b := sqs.NewFromConfig(cfg), eventbridge.NewFromConfig(cfg)
	return eventCalls{
		createQueue: q.CreateQueue, queueURL: q.GetQueueUrl, attributes: q.GetQueueAttributes, setAttributes: q.SetQueueAttributes, deleteQueue: q.DeleteQueue,
		putRule: b.PutRule, describeRule: b.DescribeRule, deleteRule: b.DeleteRule, putTargets: b.PutTargets, listTargets: b.ListTargetsByRule, removeTargets: b.RemoveTargets,
	}
}

// EnsureEvents makes what is missing of the way, and corrects what differs, in the order in which one needs the other. It
// returns what it changed, one line each; with dryRun it only tells.
func (a *Client) EnsureEvents(ctx context.Context, e Events, dryRun bool) (changes []string, err error) {
	return newEventCalls(a.cfg).ensure(ctx, e, dryRun)
}

func (c eventCalls) ensure(ctx context.Context, e Events, dryRun bool) (changes []string, err error) {
	dead := map[string]string{"MessageRetentionPeriod": deadRetention, "SqsManagedSseEnabled": "true"}
	policy, err := json.Marshal(e.queuePolicy())
	if err != nil {
		return nil, fmt.Errorf("encode the policy of queue %s: %w", e.Name, err)
	}
	redrive, err := json.Marshal(map[string]any{"deadLetterTargetArn": e.QueueARN + deadSuffix, "maxReceiveCount": eventMaxReceives})
	if err != nil {
		return nil, fmt.Errorf("encode the redrive policy of queue %s: %w", e.Name, err)
	}
	live := map[string]string{"VisibilityTimeout": eventVisibility, "MessageRetentionPeriod": eventRetention, "ReceiveMessageWaitTimeSeconds": eventPoll,
		"SqsManagedSseEnabled": "true", "Policy": string(policy), "RedrivePolicy": string(redrive)}
	for _, q := range []struct {
		name string
		want map[string]string
	}{{e.Name + deadSuffix, dead}, {e.Name, live}} {
		change, err := c.queue(ctx, q.name, q.want, e.Tags, dryRun)
		if change != "" {
			changes = append(changes, change)
		}
		if err != nil {
			return changes, err
		}
	}
	more, err := c.rule(ctx, e, dryRun)
	return append(changes, more...), err
}

const deadSuffix = "-dlq"

func (c eventCalls) queue(ctx context.Context, name string, want, tags map[string]string, dryRun bool) (change string, err error) {
	url, err := c.queueURL(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if awsapi.IsNotFound(err) {
		change = "create queue " + name
		if dryRun {
			return change, nil
		}
		if _, err := c.createQueue(ctx, &sqs.CreateQueueInput{QueueName: &name, Attributes: want, Tags: tags}); err != nil {
			return "", fmt.Errorf("create queue %s: %w", name, err)
		}
		return change, nil
	}
	if err != nil {
		return "", fmt.Errorf("find queue %s: %w", name, err)
	}
	have, err := c.attributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url.QueueUrl, AttributeNames: []sqstypes.QueueAttributeName{sqstypes.QueueAttributeNameAll}})
	if err != nil {
		return "", fmt.Errorf("read queue %s: %w", name, err)
	}
	differ := map[string]string{}
	for k, v := range want {
		if !sameValue(have.Attributes[k], v) {
			differ[k] = v
		}
	}
	if len(differ) == 0 {
		return "", nil
	}
	names := make([]string, 0, len(differ))
	for k := range differ {
		names = append(names, k)
	}
	slices.Sort(names)
	change = fmt.Sprintf("set %s of queue %s", strings.Join(names, ", "), name)
	if dryRun {
		return change, nil
	}
	if _, err := c.setAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: url.QueueUrl, Attributes: differ}); err != nil {
		return "", fmt.Errorf("set %s of queue %s: %w", strings.Join(names, ", "), name, err)
	}
	return change, nil
}

// sameValue compares attributes, which may be JSON, by meaning.
func sameValue(have, want string) bool {
	if have == want {
		return true
	}
	var h, w any
	if json.Unmarshal([]byte(have), &h) != nil || json.Unmarshal([]byte(want), &w) != nil {
		return false
	}
	return reflect.DeepEqual(h, w)
}

func (c eventCalls) rule(ctx context.Context, e Events, dryRun bool) (changes []string, err error) {
	pattern, err := json.Marshal(e.Pattern)
	if err != nil {
		return nil, fmt.Errorf("encode the pattern of rule %s: %w", e.Name, err)
	}
	have, err := c.describeRule(ctx, &eventbridge.DescribeRuleInput{Name: &e.Name})
	found := err == nil
	if err != nil && !awsapi.IsNotFound(err) {
		return nil, fmt.Errorf("find rule %s: %w", e.Name, err)
	}
	if !found || !sameValue(aws.ToString(have.EventPattern), string(pattern)) || have.State != ebtypes.RuleStateEnabled {
		change := "create rule " + e.Name
		in := &eventbridge.PutRuleInput{Name: &e.Name, EventPattern: aws.String(string(pattern)), State: ebtypes.RuleStateEnabled,
			Description: aws.String("ECS events for discovery of the mesh")}
		if found {
			change = "update rule " + e.Name
		} else {
			for k, v := range e.Tags { // PutRule takes tags of new rules only
				in.Tags = append(in.Tags, ebtypes.Tag{Key: aws.String(k), Value: aws.String(v)})
			}
		}
		changes = append(changes, change)
		if !dryRun {
			if _, err := c.putRule(ctx, in); err != nil {
				return nil, fmt.Errorf("put rule %s: %w", e.Name, err)
			}
		}
	}
	if found {
		targets, err := c.listTargets(ctx, &eventbridge.ListTargetsByRuleInput{Rule: &e.Name})
		if err != nil {
			return changes, fmt.Errorf("list the targets of rule %s: %w", e.Name, err)
		}
		if slices.ContainsFunc(targets.Targets, func(t ebtypes.Target) bool { return aws.ToString(t.Arn) == e.QueueARN }) {
			return changes, nil
		}
	}
	changes = append(changes, "send the events of rule "+e.Name+" to queue "+e.Name)
	if dryRun {
		return changes, nil
	}
	out, err := c.putTargets(ctx, &eventbridge.PutTargetsInput{Rule: &e.Name, Targets: []ebtypes.Target{{Id: aws.String(eventTarget), Arn: &e.QueueARN}}})
	if err != nil {
		return changes, fmt.Errorf("put the target of rule %s: %w", e.Name, err)
	}
	if len(out.FailedEntries) > 0 {
		return changes, fmt.Errorf("put the target of rule %s: %s", e.Name, aws.ToString(out.FailedEntries[0].ErrorMessage))
	}
	return changes, nil
}

// DeleteEvents removes the rule before the queue it sends to. It returns what it removed, one name each; with dryRun it
// only tells.
func (a *Client) DeleteEvents(ctx context.Context, name string, dryRun bool) (removed []string, err error) {
	return newEventCalls(a.cfg).remove(ctx, name, dryRun)
}

func (c eventCalls) remove(ctx context.Context, name string, dryRun bool) (removed []string, err error) {
	_, err = c.describeRule(ctx, &eventbridge.DescribeRuleInput{Name: &name})
	if err != nil && !awsapi.IsNotFound(err) {
		return nil, fmt.Errorf("find rule %s: %w", name, err)
	}
	if err == nil {
		if !dryRun {
			if err := c.removeRule(ctx, name); err != nil {
				return nil, err
			}
		}
		removed = append(removed, "rule "+name)
	}
	for _, q := range []string{name, name + deadSuffix} {
		url, err := c.queueURL(ctx, &sqs.GetQueueUrlInput{QueueName: &q})
		if awsapi.IsNotFound(err) {
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("find queue %s: %w", q, err)
		}
		if !dryRun {
			if _, err := c.deleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: url.QueueUrl}); err != nil && !awsapi.IsNotFound(err) {
				return removed, fmt.Errorf("delete queue %s: %w", q, err)
			}
		}
		removed = append(removed, "queue "+q)
	}
	return removed, nil
}

// removeRule removes a rule, which must have no targets to be removed.
func (c eventCalls) removeRule(ctx context.Context, name string) error {
	targets, err := c.listTargets(ctx, &eventbridge.ListTargetsByRuleInput{Rule: &name})
	if err != nil {
		return fmt.Errorf("list the targets of rule %s: %w", name, err)
	}
	var ids []string
	for _, t := range targets.Targets {
		ids = append(ids, aws.ToString(t.Id))
	}
	if len(ids) > 0 {
		if _, err := c.removeTargets(ctx, &eventbridge.RemoveTargetsInput{Rule: &name, Ids: ids}); err != nil {
			return fmt.Errorf("remove the targets of rule %s: %w", name, err)
		}
	}
	if _, err := c.deleteRule(ctx, &eventbridge.DeleteRuleInput{Name: &name}); err != nil && !awsapi.IsNotFound(err) {
		return fmt.Errorf("delete rule %s: %w", name, err)
	}
	return nil
}

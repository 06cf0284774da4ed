package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	sqstypes "github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/google/go-cmp/cmp"
)

// fakeEvents is an account's queues and rules, with AWS's rules about their order.
type fakeEvents struct {
	queues  map[string]map[string]string
	rules   map[string]*eventbridge.PutRuleInput
	targets map[string][]ebtypes.Target
	writes  []string
}

func (f *fakeEvents) wrote(format string, args ...any) {
	f.writes = append(f.writes, fmt.Sprintf(format, args...))
}

func name(url *string) string { return (*url)[strings.LastIndex(*url, "/")+1:] }

func (f *fakeEvents) calls() eventCalls {
	return eventCalls{
		queueURL: func(_ context.Context, in *sqs.GetQueueUrlInput, _ ...func(*sqs.Options)) (*sqs.GetQueueUrlOutput, error) {
			if f.queues[*in.QueueName] == nil {
				return nil, &sqstypes.QueueDoesNotExist{}
			}
			return &sqs.GetQueueUrlOutput{QueueUrl: aws.String("https://sqs/1/" + *in.QueueName)}, nil
		},
		createQueue: func(_ context.Context, in *sqs.CreateQueueInput, _ ...func(*sqs.Options)) (*sqs.CreateQueueOutput, error) {
			if in.Tags["by"] != "isthmus" {
				return nil, errors.New("untagged")
			}
			if r := in.Attributes["RedrivePolicy"]; r != "" && f.queues[*in.QueueName+"-dlq"] == nil {
				return nil, errors.New("Dead letter target does not exist")
			}
			f.queues[*in.QueueName] = in.Attributes
			f.wrote("create %s", *in.QueueName)
			return &sqs.CreateQueueOutput{}, nil
		},
		attributes: func(_ context.Context, in *sqs.GetQueueAttributesInput, _ ...func(*sqs.Options)) (*sqs.GetQueueAttributesOutput, error) {
			return &sqs.GetQueueAttributesOutput{Attributes: f.queues[name(in.QueueUrl)]}, nil
		},
		setAttributes: func(_ context.Context, in *sqs.SetQueueAttributesInput, _ ...func(*sqs.Options)) (*sqs.SetQueueAttributesOutput, error) {
			for k, v := range in.Attributes {
				f.queues[name(in.QueueUrl)][k] = v
				f.wrote("set %s", k)
			}
			return &sqs.SetQueueAttributesOutput{}, nil
		},
		deleteQueue: func(_ context.Context, in *sqs.DeleteQueueInput, _ ...func(*sqs.Options)) (*sqs.DeleteQueueOutput, error) {
			if len(f.rules) > 0 {
				return nil, errors.New("a rule would send into nothing")
			}
			delete(f.queues, name(in.QueueUrl))
			return &sqs.DeleteQueueOutput{}, nil
		},
		putRule: func(_ context.Context, in *eventbridge.PutRuleInput, _ ...func(*eventbridge.Options)) (*eventbridge.PutRuleOutput, error) {
			if f.rules[*in.Name] != nil && in.Tags != nil {
				return nil, errors.New("tags of a rule that exists")
			}
			f.rules[*in.Name] = in
			f.wrote("rule %s", *in.Name)
			return &eventbridge.PutRuleOutput{}, nil
		},
		describeRule: func(_ context.Context, in *eventbridge.DescribeRuleInput, _ ...func(*eventbridge.Options)) (*eventbridge.DescribeRuleOutput, error) {
			r := f.rules[*in.Name]
			if r == nil {
				return nil, &ebtypes.ResourceNotFoundException{}
			}
			return &eventbridge.DescribeRuleOutput{Name: r.Name, EventPattern: r.EventPattern, State: r.State}, nil
		},
		deleteRule: func(_ context.Context, in *eventbridge.DeleteRuleInput, _ ...func(*eventbridge.Options)) (*eventbridge.DeleteRuleOutput, error) {
			if len(f.targets[*in.Name]) > 0 {
				return nil, errors.New("Rule can't be deleted since it has targets")
			}
			delete(f.rules, *in.Name)
			return &eventbridge.DeleteRuleOutput{}, nil
		},
		putTargets: func(_ context.Context, in *eventbridge.PutTargetsInput, _ ...func(*eventbridge.Options)) (*eventbridge.PutTargetsOutput, error) {
			f.targets[*in.Rule] = in.Targets
			f.wrote("target %s", *in.Targets[0].Arn)
			return &eventbridge.PutTargetsOutput{}, nil
		},
		listTargets: func(_ context.Context, in *eventbridge.ListTargetsByRuleInput, _ ...func(*eventbridge.Options)) (*eventbridge.ListTargetsByRuleOutput, error) {
			return &eventbridge.ListTargetsByRuleOutput{Targets: f.targets[*in.Rule]}, nil
		},
		removeTargets: func(_ context.Context, in *eventbridge.RemoveTargetsInput, _ ...func(*eventbridge.Options)) (*eventbridge.RemoveTargetsOutput, error) {
			delete(f.targets, *in.Rule)
			return &eventbridge.RemoveTargetsOutput{}, nil
		},
	}
}

// TestEvents: plan tells what apply does, apply makes it in an order that AWS accepts, again there is nothing to do, what
// differs is corrected, and destroy takes it all away.
func TestEvents(t *testing.T) {
	f := &fakeEvents{queues: map[string]map[string]string{}, rules: map[string]*eventbridge.PutRuleInput{}, targets: map[string][]ebtypes.Target{}}
	c := f.calls()
	e := Events{Name: "q", QueueARN: "arn:aws:sqs:r:1:q", RuleARN: "arn:aws:events:r:1:rule/q", Pattern: map[string]any{"source": []any{"aws.ecs"}}, Tags: map[string]string{"by": "isthmus"}}
	planned, err := c.ensure(t.Context(), e, true)
	if err != nil || len(f.writes) > 0 {
		t.Fatalf("plan = %v, and wrote %v", err, f.writes)
	}
	applied, err := c.ensure(t.Context(), e, false)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"create queue q-dlq", "create queue q", "create rule q", "send the events of rule q to queue q"}
	if diff := cmp.Diff(want, planned); diff != "" || !cmp.Equal(planned, applied) {
		t.Errorf("apply did %v; plan (-want +got):\n%s", applied, diff)
	}
	if p := f.queues["q"]["Policy"]; !strings.Contains(p, `"aws:SourceArn":"arn:aws:events:r:1:rule/q"`) || !strings.Contains(p, "events.amazonaws.com") {
		t.Errorf("the queue takes messages by %s", p)
	}
	// AWS writes JSON in its own way.
	f.queues["q"]["RedrivePolicy"] = `{ "maxReceiveCount": 5, "deadLetterTargetArn": "arn:aws:sqs:r:1:q-dlq" }`
	if again, err := c.ensure(t.Context(), e, false); err != nil || len(again) > 0 {
		t.Errorf("the second apply did %v, %v", again, err)
	}
	f.queues["q"]["Policy"], f.queues["q"]["VisibilityTimeout"] = "", "30"
	f.rules["q"].State, f.targets["q"] = ebtypes.RuleStateDisabled, nil
	corrected, err := c.ensure(t.Context(), e, false)
	want = []string{"set Policy, VisibilityTimeout of queue q", "update rule q", "send the events of rule q to queue q"}
	if diff := cmp.Diff(want, corrected); diff != "" || err != nil {
		t.Errorf("corrected, %v (-want +got):\n%s", err, diff)
	}
	want = []string{"rule q", "queue q", "queue q-dlq"}
	for _, dryRun := range []bool{true, false} {
		if gone, err := c.remove(t.Context(), "q", dryRun); err != nil || !cmp.Equal(want, gone) {
			t.Errorf("remove (dry run %v) = %v, %v; want %v", dryRun, gone, err, want)
		}
	}
	if gone, err := c.remove(t.Context(), "q", false); err != nil || len(gone) > 0 || len(f.queues)+len(f.rules) > 0 {
		t.Errorf("the second remove = %v, %v", gone, err)
	}
}

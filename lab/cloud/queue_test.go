package cloud_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// TestQueueCalls covers the life of a queue with SQS's own client, which verifies the digests of messages.
func TestQueueCalls(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, c := t.Context(), l.sqs()
	url := must(c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q"), Attributes: map[string]string{"VisibilityTimeout": "60"}, Tags: map[string]string{"a": "b"}}))(t).QueueUrl
	if again := must(c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q")}))(t).QueueUrl; *again != *url || !strings.HasSuffix(*url, "/"+account+"/q") {
		t.Errorf("QueueUrl = %s, again %s", *url, *again)
	}
	_, err := c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q"), Attributes: map[string]string{"VisibilityTimeout": "61"}})
	wantCode(t, "create with other attributes", err, "QueueAlreadyExists")
	_, err = c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q"), Attributes: map[string]string{"Nonsense": "1"}})
	if err == nil {
		t.Error("an unknown attribute was taken")
	}
	_, err = c.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("none")})
	var none *types.QueueDoesNotExist
	if !errors.As(err, &none) || none.ErrorCode() != "AWS.SimpleQueueService.NonExistentQueue" {
		t.Errorf("GetQueueUrl of nothing = %v", err)
	}
	must(c.TagQueue(ctx, &sqs.TagQueueInput{QueueUrl: url, Tags: map[string]string{"c": "d"}}))(t)
	if tags := must(c.ListQueueTags(ctx, &sqs.ListQueueTagsInput{QueueUrl: url}))(t).Tags; tags["a"] != "b" || tags["c"] != "d" {
		t.Errorf("ListQueueTags = %v", tags)
	}
	for i := range 3 {
		must(c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String(fmt.Sprintf("more-%d", i))}))(t)
	}
	pages, seen := 0, 0
	for p := sqs.NewListQueuesPaginator(c, &sqs.ListQueuesInput{MaxResults: aws.Int32(3)}); p.HasMorePages(); pages++ {
		seen += len(must(p.NextPage(ctx))(t).QueueUrls)
	}
	if pages != 2 || seen != 4 {
		t.Errorf("%d queues in %d pages, want 4 in 2", seen, pages)
	}
	sent := must(c.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("one"),
		MessageAttributes: map[string]types.MessageAttributeValue{"k": {DataType: aws.String("String"), StringValue: aws.String("v")}}}))(t)
	if *sent.MD5OfMessageBody != "f97c5d29941bfb1b2fdab0874906ab82" || sent.MD5OfMessageAttributes == nil {
		t.Errorf("SendMessage = %+v", sent)
	}
	batch := must(c.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: url, Entries: []types.SendMessageBatchRequestEntry{
		{Id: aws.String("a"), MessageBody: aws.String("two")}, {Id: aws.String("b"), MessageBody: aws.String("late"), DelaySeconds: 30},
		{Id: aws.String("c"), MessageBody: aws.String("never"), DelaySeconds: 901}}}))(t)
	if len(batch.Successful) != 2 || len(batch.Failed) != 1 || *batch.Failed[0].Code != "InvalidParameterValue" {
		t.Errorf("SendMessageBatch = %+v", batch)
	}
	count := func() string {
		a := must(c.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{"All"}}))(t).Attributes
		return a["ApproximateNumberOfMessages"] + "/" + a["ApproximateNumberOfMessagesNotVisible"] + "/" + a["ApproximateNumberOfMessagesDelayed"]
	}
	if got := count(); got != "2/0/1" {
		t.Errorf("messages = %s, want 2/0/1", got)
	}
	got := must(c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url, MaxNumberOfMessages: 10, MessageAttributeNames: []string{"All"}, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}}))(t).Messages
	if len(got) != 2 || *got[0].Body != "one" || *got[0].MessageAttributes["k"].StringValue != "v" || got[0].Attributes["ApproximateReceiveCount"] != "1" || count() != "0/2/1" {
		t.Fatalf("ReceiveMessage = %+v, then %s", got, count())
	}
	must(c.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: url, ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 0}))(t)
	again := must(c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url}))(t).Messages
	if len(again) != 1 || *again[0].Body != "one" || *again[0].ReceiptHandle == *got[0].ReceiptHandle {
		t.Fatalf("after visibility 0: %+v", again)
	}
	del := must(c.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: url, Entries: []types.DeleteMessageBatchRequestEntry{
		{Id: aws.String("1"), ReceiptHandle: again[0].ReceiptHandle}, {Id: aws.String("2"), ReceiptHandle: got[1].ReceiptHandle}, {Id: aws.String("3"), ReceiptHandle: aws.String("junk")}}}))(t)
	if len(del.Successful) != 2 || len(del.Failed) != 1 || *del.Failed[0].Code != "ReceiptHandleIsInvalid" || count() != "0/0/1" {
		t.Errorf("DeleteMessageBatch = %+v, then %s", del, count())
	}
	l.clock.advance(31 * time.Second)
	if got := count(); got != "1/0/0" {
		t.Errorf("after the delay: %s, want 1/0/0", got)
	}
	must(c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: url}))(t)
	_, err = c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: url})
	wantCode(t, "purge twice", err, "AWS.SimpleQueueService.PurgeQueueInProgress")
	must(c.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: url}))(t)
	_, err = c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q")})
	wantCode(t, "create too soon after deletion", err, "AWS.SimpleQueueService.QueueDeletedRecently")
	_, err = c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url})
	wantCode(t, "receive from nothing", err, "AWS.SimpleQueueService.NonExistentQueue")
	other := sqs.NewFromConfig(l.config("AKIALABADMIN00000002", "secret-two", ""))
	_, err = other.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: aws.String(strings.TrimSuffix(*url, "q") + "more-0"), MessageBody: aws.String("x")})
	wantCode(t, "send from another account", err, "AccessDeniedException")
}

// TestLongPoll checks that a receiver that waits gets a message when it comes, and not before its time is up otherwise.
func TestLongPoll(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, c := t.Context(), l.sqs()
	url := must(c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q")}))(t).QueueUrl
	begin := time.Now()
	if out := must(c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 1}))(t); len(out.Messages) != 0 || time.Since(begin) < time.Second {
		t.Errorf("%d messages after %v, want none after a second", len(out.Messages), time.Since(begin))
	}
	got := make(chan int, 1)
	go func() {
		out, err := c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url, WaitTimeSeconds: 20})
		if err != nil {
			t.Error(err)
			got <- 0
			return
		}
		got <- len(out.Messages)
	}()
	begin = time.Now()
	must(c.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("x")}))(t)
	if n := <-got; n != 1 || time.Since(begin) > 5*time.Second {
		t.Errorf("%d messages after %v", n, time.Since(begin))
	}
}

// TestDeadLetters checks that a message nobody deletes goes to the dead-letter queue after as many receives as were asked.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, c := t.Context(), l.sqs()
	dead := must(c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("dead")}))(t).QueueUrl
	_, err := c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q"), Attributes: map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"` + queueARN("none") + `","maxReceiveCount":2}`}})
	wantCode(t, "a dead-letter queue that is not there", err, "InvalidAttributeValue")
	url := must(c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("q"), Attributes: map[string]string{
		"RedrivePolicy": `{"deadLetterTargetArn":"` + queueARN("dead") + `","maxReceiveCount":"2"}`, "VisibilityTimeout": "5"}}))(t).QueueUrl
	must(c.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("x")}))(t)
	for i := range 3 {
		out := must(c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url}))(t)
		if want := map[int]int{0: 1, 1: 1, 2: 0}[i]; len(out.Messages) != want {
			t.Errorf("receive %d = %d messages, want %d", i+1, len(out.Messages), want)
		}
		l.clock.advance(6 * time.Second)
	}
	out := must(c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: dead, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}}))(t)
	if len(out.Messages) != 1 || out.Messages[0].Attributes["DeadLetterQueueSourceArn"] != queueARN("q") {
		t.Errorf("the dead-letter queue has %+v", out.Messages)
	}
}

// TestQueueFaults checks the names under which SQS's client sees the faults.
func TestQueueFaults(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for kind, want := range map[awsserver.FaultKind]string{awsserver.FaultThrottle: "RequestThrottled", awsserver.FaultError: "ServerException", awsserver.FaultDenied: "AccessDeniedException"} {
		l.fault(awsserver.Fault{Kind: kind, Call: "SQS.*"})
		_, err := l.sqs().ListQueues(t.Context(), nil)
		wantCode(t, string(kind), err, want)
		l.cloud.Faults().Clear(awsserver.Fault{Kind: kind})
	}
}

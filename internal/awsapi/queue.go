package awsapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// Limits of a queue.
const (
	queueBatch    = 10 // the most that SQS gives or takes at once
	queueWait     = 10 // seconds that SQS waits for a message; shorter than CallTimeout, which bounds the call
	maxQueueBatch = 256 << 10
)

// Queue reads an SQS queue. It needs sqs:ReceiveMessage and sqs:DeleteMessage on it.
type Queue struct {
	url     string
	receive func(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error)
	remove  func(context.Context, *sqs.DeleteMessageBatchInput, ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error)
}

// NewQueue returns the reader of a queue with the credentials of a target. It makes no network call.
func NewQueue(s *Session, t Target, url string) (*Queue, error) {
	if url == "" {
		return nil, errors.New("awsapi: the queue's URL is required")
	}
	cfg, err := s.SDKConfig(t)
	if err != nil {
		return nil, err
	}
	c := sqs.NewFromConfig(cfg)
	return &Queue{url: url, receive: c.ReceiveMessage, remove: c.DeleteMessageBatch}, nil
}

// Receive waits for some seconds until there are messages, and returns their bodies and the receipts with which they are
// deleted. A message that is not deleted comes again.
func (q *Queue) Receive(ctx context.Context) (bodies, receipts []string, err error) {
	out, err := q.receive(ctx, &sqs.ReceiveMessageInput{QueueUrl: &q.url, MaxNumberOfMessages: queueBatch, WaitTimeSeconds: queueWait})
	if err != nil {
		return nil, nil, fmt.Errorf("receive from %s: %w", q.url, err)
	}
	for _, m := range out.Messages {
		if body := aws.ToString(m.Body); len(body) <= maxQueueBatch {
			bodies = append(bodies, body)
		}
		receipts = append(receipts, aws.ToString(m.ReceiptHandle))
	}
	return bodies, receipts, nil
}

// Delete takes messages off the queue. One that could not be taken off comes again, which does no harm.
func (q *Queue) Delete(ctx context.Context, receipts []string) error {
	for batch := range slices.Chunk(receipts, queueBatch) {
		in := &sqs.DeleteMessageBatchInput{QueueUrl: &q.url}
		for i, r := range batch {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: aws.String(r)})
		}
		if _, err := q.remove(ctx, in); err != nil {
			return fmt.Errorf("delete from %s: %w", q.url, err)
		}
	}
	return nil
}

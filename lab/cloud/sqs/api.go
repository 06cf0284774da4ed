package sqs

import (
	"context"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type doc = map[string]any

// input is the union of the members of all requests but those about messages.
type input struct {
	QueueURL        string            `json:"QueueUrl"`
	QueueName       string            `json:"QueueName"`
	Owner           string            `json:"QueueOwnerAWSAccountId"`
	Attributes      map[string]string `json:"Attributes"`
	AttributeNames  []string          `json:"AttributeNames"`
	Tags            map[string]string `json:"tags"`
	CapitalTags     map[string]string `json:"Tags"` // TagQueue's; encoding/json would give them to Tags too, but prefers the exact name
	TagKeys         []string          `json:"TagKeys"`
	QueueNamePrefix string            `json:"QueueNamePrefix"`
	MaxResults      int               `json:"MaxResults"`
	NextToken       string            `json:"NextToken"`
}

// API returns SQS for registration with the front.
func (s *Service) API() awsserver.Service {
	svc := awsserver.Service{Name: "sqs", Protocol: awsserver.JSON10, Target: "AmazonSQS", Operations: map[string]awsserver.Operation{
		"CreateQueue": s.createQueue, "GetQueueUrl": s.getQueueURL, "ListQueues": s.listQueues, "ReceiveMessage": s.receive,
	}}
	for name, op := range map[string]func(*queue, input) (any, error){
		"GetQueueAttributes": func(q *queue, in input) (any, error) {
			out, err := s.describeLocked(q, in.AttributeNames)
			return doc{"Attributes": out}, err
		},
		"SetQueueAttributes": func(q *queue, in input) (any, error) { return nil, s.setLocked(q, in.Attributes) },
		"DeleteQueue":        s.deleteQueueLocked, "PurgeQueue": s.purgeLocked, "TagQueue": tagQueueLocked, "UntagQueue": untagQueueLocked,
		"ListQueueTags": func(q *queue, _ input) (any, error) { return doc{"Tags": q.tags}, nil },
	} {
		svc.Operations[name] = onQueue(s, name, func(q *queue, _ *awsserver.Request, in input) (any, error) { return op(q, in) })
	}
	for name, op := range map[string]func(*queue, *awsserver.Request, messageInput) (any, error){
		"SendMessage": s.sendLocked, "SendMessageBatch": s.sendBatchLocked, "DeleteMessage": s.deleteLocked, "DeleteMessageBatch": s.deleteBatchLocked,
		"ChangeMessageVisibility": s.changeVisibilityLocked, "ChangeMessageVisibilityBatch": s.changeVisibilityBatchLocked,
	} {
		svc.Operations[name] = onQueue(s, name, op)
	}
	return svc
}

// queueRef is implemented by the inputs that name a queue.
type queueRef interface{ url() string }

func (in input) url() string { return in.QueueURL }

// onQueue makes an operation on one queue, which runs with the mutex held once the caller has been found to be allowed.
func onQueue[I queueRef](s *Service, name string, op func(*queue, *awsserver.Request, I) (any, error)) awsserver.Operation {
	return func(_ context.Context, r *awsserver.Request) (any, error) {
		var in I
		if err := r.Decode(&in); err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		q, err := s.findLocked(r, in.url(), name)
		if err != nil {
			return nil, err
		}
		return op(q, r, in)
	}
}

// findLocked finds the queue of a URL and checks that the caller may do the action with it. The batch calls have no action
// of their own.
func (s *Service) findLocked(r *awsserver.Request, queueURL, op string) (*queue, error) {
	u, err := url.Parse(queueURL)
	parts := []string(nil)
	if err == nil {
		parts = strings.Split(strings.Trim(u.Path, "/"), "/")
	}
	if len(parts) != 2 {
		return nil, &awsserver.Error{Code: "InvalidAddress", QueryCode: "InvalidAddress", Message: "The address " + queueURL + " is not valid for this endpoint."}
	}
	return s.allowedLocked(r, queueKey{parts[0], r.Region, parts[1]}, strings.TrimSuffix(op, "Batch"))
}

func (s *Service) allowedLocked(r *awsserver.Request, k queueKey, action string) (*queue, error) {
	a := r.Access("sqs:"+action, k.arn(), nil)
	own, q := r.Decide(a), s.queues[k]
	if q == nil {
		if own == awsserver.Allowed && k.account == r.Caller.AccountID {
			return nil, errNoQueue
		}
		return nil, awsserver.AccessDenied(r.Caller.ARN, a.Action, a.Resource, own)
	}
	if !q.allows(r.Caller, own, a) {
		return nil, awsserver.AccessDenied(r.Caller.ARN, a.Action, a.Resource, own)
	}
	return q, nil
}

func queueURL(r *awsserver.Request, k queueKey) string {
	scheme := "http"
	if r.HTTP.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.HTTP.Host + "/" + k.account + "/" + k.name
}

// queueName is AWS's rule for names; FIFO queues end in .fifo.
func queueName(s string) bool { return regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`).MatchString(s) }

func (s *Service) createQueue(_ context.Context, r *awsserver.Request) (any, error) {
	var in input
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if strings.HasSuffix(in.QueueName, ".fifo") || in.Attributes["FifoQueue"] != "" {
		return nil, &awsserver.Error{Code: "UnsupportedOperation", QueryCode: "AWS.SimpleQueueService.UnsupportedOperation", Message: "The lab has no FIFO queues, and EventBridge needs none."}
	}
	if !queueName(in.QueueName) {
		return nil, invalid("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	k := queueKey{r.Caller.AccountID, r.Region, in.QueueName}
	if err := r.Authorize("sqs:CreateQueue", k.arn(), nil); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[k]; q != nil {
		for name, v := range in.Attributes {
			if got, err := s.describeLocked(q, []string{name}); err != nil || got[name] != v {
				return nil, &awsserver.Error{Code: "QueueNameExists", QueryCode: "QueueAlreadyExists",
					Message: "A queue already exists with the same name and a different value for attribute " + name}
			}
		}
		return doc{"QueueUrl": queueURL(r, k)}, nil
	}
	if s.now().Sub(s.deleted[k]) < lockedFor {
		return nil, &awsserver.Error{Code: "QueueDeletedRecently", QueryCode: "AWS.SimpleQueueService.QueueDeletedRecently",
			Message: "You must wait 60 seconds after deleting a queue before you can create another with the same name."}
	}
	if len(s.queues) >= maxQueues {
		return nil, &awsserver.Error{Code: "OverLimit", QueryCode: "OverLimit", Message: "The lab holds as many queues as it can."}
	}
	q := &queue{key: k, created: s.now(), tags: map[string]string{}, changed: make(chan struct{})}
	if err := s.setLocked(q, in.Attributes); err != nil {
		return nil, err
	}
	maps.Copy(q.tags, in.Tags)
	s.queues[k] = q
	delete(s.deleted, k)
	return doc{"QueueUrl": queueURL(r, k)}, nil
}

func (s *Service) getQueueURL(_ context.Context, r *awsserver.Request) (any, error) {
	var in input
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	k := queueKey{r.Caller.AccountID, r.Region, in.QueueName}
	if in.Owner != "" {
		k.account = in.Owner
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.allowedLocked(r, k, "GetQueueUrl"); err != nil {
		return nil, err
	}
	return doc{"QueueUrl": queueURL(r, k)}, nil
}

// maxList is how many queues a page has; without MaxResults there is no second one, as at AWS.
const maxList = 1000

func (s *Service) listQueues(_ context.Context, r *awsserver.Request) (any, error) {
	var in input
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("sqs:ListQueues", "*", nil); err != nil {
		return nil, err
	}
	if in.MaxResults < 0 || in.MaxResults > maxList {
		return nil, invalid("Value for parameter MaxResults is invalid. Reason: Must be an integer from 1 to 1000")
	}
	after, ok := r.ReadPageToken(in.NextToken)
	if !ok {
		return nil, invalid("Invalid or expired next token.")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for k := range s.queues {
		if k.account == r.Caller.AccountID && k.region == r.Region && strings.HasPrefix(k.name, in.QueueNamePrefix) && k.name > after {
			names = append(names, k.name)
		}
	}
	slices.Sort(names)
	out := doc{}
	if limit := in.MaxResults; limit > 0 && len(names) > limit {
		names = names[:limit]
		out["NextToken"] = r.PageToken(names[limit-1])
	}
	urls := []string{}
	for _, n := range names[:min(len(names), maxList)] {
		urls = append(urls, queueURL(r, queueKey{r.Caller.AccountID, r.Region, n}))
	}
	out["QueueUrls"] = urls
	return out, nil
}

func (s *Service) deleteQueueLocked(q *queue, _ input) (any, error) {
	delete(s.queues, q.key)
	now := s.now()
	maps.DeleteFunc(s.deleted, func(_ queueKey, at time.Time) bool { return now.Sub(at) >= lockedFor })
	s.deleted[q.key] = now
	q.wake()
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) purgeLocked(q *queue, _ input) (any, error) {
	if s.now().Sub(q.purged) < lockedFor {
		return nil, &awsserver.Error{Code: "PurgeQueueInProgress", QueryCode: "AWS.SimpleQueueService.PurgeQueueInProgress",
			Message: "Only one PurgeQueue operation on " + q.key.name + " is allowed every 60 seconds."}
	}
	q.messages, q.purged = nil, s.now()
	return nil, nil //nolint:nilnil // an empty answer
}

func tagQueueLocked(q *queue, in input) (any, error) {
	if len(q.tags)+len(in.CapitalTags) > 50 {
		return nil, invalid("Too many tags: the maximum is 50.")
	}
	maps.Copy(q.tags, in.CapitalTags)
	return nil, nil //nolint:nilnil // an empty answer
}

func untagQueueLocked(q *queue, in input) (any, error) {
	for _, k := range in.TagKeys {
		delete(q.tags, k)
	}
	return nil, nil //nolint:nilnil // an empty answer
}

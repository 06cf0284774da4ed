// Package sqs is the lab's Simple Queue Service: standard queues in memory, in the JSON protocol, with long polls,
// visibility timeouts, dead-letter queues and queue policies. Messages are delivered at least once and, as long as nobody
// lets them become visible again, in the order of their arrival, which no client may rely on. FIFO queues are refused.
package sqs

import (
	"crypto/md5" //nolint:gosec // the checksum that SQS's clients verify
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// Bounds of the lab; those of AWS beside them are kept too.
const (
	maxQueues    = 1000
	maxMessages  = 200000           // in a queue
	maxInFlight  = 120000           // AWS's own
	maxBatch     = 10               // AWS's own
	maxBatchSize = 1 << 20          // AWS's own, of all messages of a batch together
	lockedFor    = 60 * time.Second // AWS's own: a deleted queue's name, and a second purge
)

// Config is what a Service needs.
type Config struct {
	Now func() time.Time // nil means time.Now
}

// Service is SQS. It is safe for concurrent use.
type Service struct {
	now func() time.Time

	mu      sync.Mutex
	queues  map[queueKey]*queue    // guarded by mu
	deleted map[queueKey]time.Time // guarded by mu; names that are not free yet
}

type queueKey struct{ account, region, name string }

func (k queueKey) arn() string { return "arn:aws:sqs:" + k.region + ":" + k.account + ":" + k.name }

func keyOfARN(arn string) (queueKey, bool) {
	p := strings.Split(arn, ":")
	if len(p) != 6 || p[0] != "arn" || p[2] != "sqs" || p[5] == "" {
		return queueKey{}, false
	}
	return queueKey{account: p[4], region: p[3], name: p[5]}, true
}

// queue is guarded by Service.mu.
type queue struct {
	key               queueKey
	created, modified time.Time
	purged            time.Time
	attributes        attributes
	policy            *iam.ResourcePolicy // nil when there is none
	tags              map[string]string
	messages          []*message    // in the order of arrival
	changed           chan struct{} // closed and replaced when messages may have come within reach
}

// message is one message; visible tells when it can be received.
type message struct {
	id, body, sender string
	attributes       map[string]messageAttribute
	system           map[string]messageAttribute
	sent, visible    time.Time
	firstReceived    time.Time
	received         int
	receipt          string // the newest; "" while never received
	source           string // ARN of the queue from which it was moved here
}

// inFlight reports whether somebody holds the message.
func (m *message) inFlight(now time.Time) bool { return m.received > 0 && m.visible.After(now) }

// New returns a Service without queues.
func New(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{now: cfg.Now, queues: map[queueKey]*queue{}, deleted: map[queueKey]time.Time{}}, nil
}

// Failures as SQS words them.
var ( //nolint:gochecknoglobals // constant errors
	errNoQueue = &awsserver.Error{Code: "QueueDoesNotExist", QueryCode: "AWS.SimpleQueueService.NonExistentQueue", Message: "The specified queue does not exist."}
	errFull    = &awsserver.Error{Code: "OverLimit", QueryCode: "OverLimit", Message: "The lab's queue holds as many messages as it can."}
	errReceipt = &awsserver.Error{Code: "ReceiptHandleIsInvalid", QueryCode: "ReceiptHandleIsInvalid", Message: "The input receipt handle is invalid."}
)

func invalid(format string, args ...any) *awsserver.Error {
	e := awsserver.Errorf("InvalidParameterValue", format, args...)
	e.QueryCode = "InvalidParameterValue"
	return e
}

// SendForService puts a message into a queue on behalf of an AWS service, when the queue's policy allows it to the service
// under the ARN of what made it send.
func (s *Service) SendForService(queueARN, service, sourceARN, body string) error {
	return s.sendARN(queueARN, service, body, func(q *queue) bool {
		p := strings.Split(sourceARN, ":")
		ctx := map[string][]string{"aws:sourcearn": {sourceARN}}
		if len(p) > 4 {
			ctx["aws:sourceaccount"] = []string{p[4]}
		}
		return q.policy.ForService(service, awsserver.Access{Action: "sqs:SendMessage", Resource: queueARN, Context: ctx}) == awsserver.Allowed
	})
}

// SendAs puts a message into a queue with the rights of a role's session: those of the session are own, and a queue of
// another account must allow it too.
func (s *Service) SendAs(queueARN string, who awsserver.Identity, own func(awsserver.Access) awsserver.Decision, body string) error {
	return s.sendARN(queueARN, who.UserID, body, func(q *queue) bool {
		a := awsserver.Access{Action: "sqs:SendMessage", Resource: queueARN, Context: map[string][]string{"aws:principalarn": {who.RoleARN}, "aws:principalaccount": {who.AccountID}}}
		return q.allows(who, own(a), a)
	})
}

func (s *Service) sendARN(queueARN, sender, body string, allowed func(*queue) bool) error {
	k, ok := keyOfARN(queueARN)
	if !ok {
		return errors.New("not the ARN of a queue: " + queueARN)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[k]
	if q == nil {
		return errNoQueue
	}
	if !allowed(q) {
		return errors.New("the policy of the queue " + queueARN + " does not allow it")
	}
	_, err := s.putLocked(q, &message{body: body, sender: sender}, 0)
	return err
}

// allows joins the caller's own policies with the queue's: within an account either is enough, across accounts both are
// needed, and what one of them denies is denied.
func (q *queue) allows(who awsserver.Identity, own awsserver.Decision, a awsserver.Access) bool {
	its := q.policy.ForIdentity(who, a)
	if own == awsserver.DeniedExplicitly || its == awsserver.DeniedExplicitly {
		return false
	}
	if who.AccountID == q.key.account {
		return own == awsserver.Allowed || its == awsserver.Allowed
	}
	return own == awsserver.Allowed && its == awsserver.Allowed
}

// putLocked adds a message, which becomes visible after a delay.
func (s *Service) putLocked(q *queue, m *message, delay time.Duration) (*message, error) {
	s.expireLocked(q)
	if len(q.messages) >= maxMessages {
		return nil, errFull
	}
	m.id, m.sent = awsserver.UUID(), s.now()
	m.visible = m.sent.Add(delay)
	q.messages = append(q.messages, m)
	q.wake()
	return m, nil
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// expireLocked drops the messages that are older than the queue keeps them.
func (s *Service) expireLocked(q *queue) {
	limit := s.now().Add(-q.attributes.retention())
	q.messages = slices.DeleteFunc(q.messages, func(m *message) bool { return m.sent.Before(limit) })
}

// takeLocked receives up to n messages. Those that have been received too often go to the dead-letter queue instead. Without a
// message it returns when one may become visible, the zero time for never.
func (s *Service) takeLocked(q *queue, n int, visibility time.Duration) (out []*message, next time.Time, err error) {
	s.expireLocked(q)
	now, flying := s.now(), 0
	dead, limit := s.deadLettersLocked(q)
	var moved []*message
	for _, m := range q.messages {
		if m.visible.After(now) {
			if m.inFlight(now) {
				flying++
			}
			if next.IsZero() || m.visible.Before(next) {
				next = m.visible
			}
			continue
		}
		if dead != nil && m.received >= limit {
			moved = append(moved, m)
			continue
		}
		if len(out) >= n {
			continue
		}
		if flying+len(out) >= maxInFlight {
			return nil, next, &awsserver.Error{Code: "OverLimit", QueryCode: "OverLimit", Message: "Too many messages in flight."}
		}
		out = append(out, m)
	}
	for _, m := range out {
		m.received++
		if m.firstReceived.IsZero() {
			m.firstReceived = now
		}
		m.visible, m.receipt = now.Add(visibility), newReceipt(m.id)
	}
	if len(moved) > 0 {
		q.messages = slices.DeleteFunc(q.messages, func(m *message) bool { return slices.Contains(moved, m) })
		for _, m := range moved {
			m.received, m.receipt, m.firstReceived, m.source = 0, "", time.Time{}, q.key.arn()
		}
		dead.messages = append(dead.messages, moved...)
		dead.wake()
	}
	return out, next, nil
}

// deadLettersLocked returns the queue for messages that were received too often, and how often that is.
func (s *Service) deadLettersLocked(q *queue) (*queue, int) {
	r, ok := q.attributes.redrive()
	if !ok {
		return nil, 0
	}
	k, _ := keyOfARN(r.DeadLetterTargetARN)
	return s.queues[k], r.MaxReceiveCount
}

// byReceipt finds the message of a receipt; nil with a good receipt means that it is gone or that a newer receipt counts.
func (q *queue) byReceipt(receipt string) (*message, error) {
	raw, err := base64.StdEncoding.DecodeString(receipt)
	if err != nil || !strings.HasPrefix(string(raw), receiptPrefix) {
		return nil, errReceipt
	}
	for _, m := range q.messages {
		if m.receipt == receipt {
			return m, nil
		}
	}
	return nil, nil //nolint:nilnil // see above
}

// receiptPrefix marks what this package gave out.
const receiptPrefix = "lab "

func newReceipt(id string) string {
	return base64.StdEncoding.EncodeToString([]byte(receiptPrefix + id + " " + awsserver.UUID()))
}

func md5Hex(s string) string {
	sum := md5.Sum([]byte(s)) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

package sqs

import (
	"context"
	"crypto/md5" //nolint:gosec // the checksum that SQS's clients verify
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// messageAttribute is an attribute that a sender gave.
type messageAttribute struct {
	DataType    string  `json:"DataType"`
	StringValue *string `json:"StringValue,omitempty"`
	BinaryValue []byte  `json:"BinaryValue,omitempty"`
}

// messageInput is the union of the members of the requests about messages.
type messageInput struct {
	QueueURL string         `json:"QueueUrl"`
	Entries  []messageEntry `json:"Entries"`
	messageEntry
}

func (in messageInput) url() string { return in.QueueURL }

// messageEntry is one message of a request, alone or in a batch.
type messageEntry struct {
	ID                string                      `json:"Id"`
	Body              string                      `json:"MessageBody"`
	DelaySeconds      *int                        `json:"DelaySeconds"`
	Attributes        map[string]messageAttribute `json:"MessageAttributes"`
	System            map[string]messageAttribute `json:"MessageSystemAttributes"`
	ReceiptHandle     string                      `json:"ReceiptHandle"`
	VisibilityTimeout *int                        `json:"VisibilityTimeout"`
}

// receiveInput is ReceiveMessage's.
type receiveInput struct {
	QueueURL          string   `json:"QueueUrl"`
	Max               *int     `json:"MaxNumberOfMessages"`
	Visibility        *int     `json:"VisibilityTimeout"`
	Wait              *int     `json:"WaitTimeSeconds"`
	AttributeNames    []string `json:"AttributeNames"`
	SystemNames       []string `json:"MessageSystemAttributeNames"`
	MessageAttributes []string `json:"MessageAttributeNames"`
}

func (e messageEntry) size() int {
	n := len(e.Body)
	for name, a := range e.Attributes {
		n += len(name) + len(a.DataType) + len(a.BinaryValue)
		if a.StringValue != nil {
			n += len(*a.StringValue)
		}
	}
	return n
}

func (s *Service) sendLocked(q *queue, r *awsserver.Request, in messageInput) (any, error) {
	return s.sendOneLocked(q, r, in.messageEntry)
}

func (s *Service) sendOneLocked(q *queue, r *awsserver.Request, e messageEntry) (doc, error) {
	delay := q.attributes.number("DelaySeconds")
	if e.DelaySeconds != nil {
		delay = *e.DelaySeconds
	}
	switch {
	case e.Body == "":
		return nil, &awsserver.Error{Code: "MissingParameter", QueryCode: "MissingParameter", Message: "The request must contain the parameter MessageBody."}
	case e.size() > q.attributes.number("MaximumMessageSize"):
		return nil, invalid("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", q.attributes.number("MaximumMessageSize"))
	case delay < 0 || delay > 900:
		return nil, invalid("Value %d for parameter DelaySeconds is invalid. Reason: DelaySeconds must be >= 0 and <= 900.", delay)
	case len(e.Attributes) > 10:
		return nil, invalid("Number of message attributes [%d] exceeds the allowed maximum [10].", len(e.Attributes))
	}
	m, err := s.putLocked(q, &message{body: e.Body, sender: r.Caller.UserID, attributes: e.Attributes, system: e.System}, time.Duration(delay)*time.Second)
	if err != nil {
		return nil, err
	}
	out := doc{"MessageId": m.id, "MD5OfMessageBody": md5Hex(m.body)}
	if len(m.attributes) > 0 {
		out["MD5OfMessageAttributes"] = attributesMD5(m.attributes)
	}
	return out, nil
}

// attributesMD5 is SQS's digest: name, type and value of each in the order of names, every part after its length.
func attributesMD5(all map[string]messageAttribute) string {
	var b []byte
	part := func(s string) { b = append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...) } //nolint:gosec // sizes are bounded
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a := all[name]
		part(name)
		part(a.DataType)
		if a.StringValue != nil {
			b = append(b, 1)
			part(*a.StringValue)
		} else {
			b = append(b, 2)
			part(string(a.BinaryValue))
		}
	}
	sum := md5.Sum(b) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}

// batch runs an operation for each entry; those that fail do not disturb the others.
func batch(in messageInput, op func(messageEntry) (doc, error)) (any, error) {
	seen := map[string]bool{}
	total := 0
	switch n := len(in.Entries); {
	case n == 0:
		return nil, batchError("EmptyBatchRequest", "There should be at least one entry in the request.")
	case n > maxBatch:
		return nil, batchError("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10. You have sent "+strconv.Itoa(n)+".")
	}
	for _, e := range in.Entries {
		if seen[e.ID] {
			return nil, batchError("BatchEntryIdsNotDistinct", "Id "+e.ID+" repeated.")
		}
		seen[e.ID] = true
		total += e.size()
	}
	if total > maxBatchSize {
		return nil, batchError("BatchRequestTooLong", "Batch requests cannot be longer than "+strconv.Itoa(maxBatchSize)+" bytes. You have sent "+strconv.Itoa(total)+" bytes.")
	}
	good, bad := []doc{}, []doc{}
	for _, e := range in.Entries {
		out, err := op(e)
		if err != nil {
			f := doc{"Id": e.ID, "SenderFault": true, "Code": "InternalError", "Message": err.Error()}
			if ae, ok := err.(*awsserver.Error); ok { //nolint:errorlint // made here and never wrapped
				f["Code"], f["Message"] = ae.QueryCode, ae.Message
			}
			bad = append(bad, f)
			continue
		}
		if out == nil {
			out = doc{}
		}
		out["Id"] = e.ID
		good = append(good, out)
	}
	return doc{"Successful": good, "Failed": bad}, nil
}

func batchError(code, message string) error {
	return &awsserver.Error{Code: code, QueryCode: "AWS.SimpleQueueService." + code, Message: message}
}

func (s *Service) sendBatchLocked(q *queue, r *awsserver.Request, in messageInput) (any, error) {
	return batch(in, func(e messageEntry) (doc, error) { return s.sendOneLocked(q, r, e) })
}

func (s *Service) deleteLocked(q *queue, _ *awsserver.Request, in messageInput) (any, error) {
	return nil, q.remove(in.ReceiptHandle)
}

func (s *Service) deleteBatchLocked(q *queue, _ *awsserver.Request, in messageInput) (any, error) {
	return batch(in, func(e messageEntry) (doc, error) { return nil, q.remove(e.ReceiptHandle) })
}

// remove deletes the message of a receipt. One that is gone already, or that somebody else has received since, is no
// error.
func (q *queue) remove(receipt string) error {
	m, err := q.byReceipt(receipt)
	if err != nil {
		return err
	}
	q.messages = slices.DeleteFunc(q.messages, func(o *message) bool { return o == m })
	return nil
}

func (s *Service) changeVisibilityLocked(q *queue, _ *awsserver.Request, in messageInput) (any, error) {
	return nil, s.hideLocked(q, in.messageEntry)
}

func (s *Service) changeVisibilityBatchLocked(q *queue, _ *awsserver.Request, in messageInput) (any, error) {
	return batch(in, func(e messageEntry) (doc, error) { return nil, s.hideLocked(q, e) })
}

func (s *Service) hideLocked(q *queue, e messageEntry) error {
	if e.VisibilityTimeout == nil || *e.VisibilityTimeout < 0 || *e.VisibilityTimeout > 43200 {
		return invalid("Value for parameter VisibilityTimeout is invalid. Reason: VisibilityTimeout must be an integer between 0 and 43200.")
	}
	m, err := q.byReceipt(e.ReceiptHandle)
	if err != nil {
		return err
	}
	if m == nil || !m.inFlight(s.now()) {
		return &awsserver.Error{Code: "MessageNotInflight", QueryCode: "AWS.SimpleQueueService.MessageNotInflight", Message: "The message referred to isn't in flight."}
	}
	m.visible = s.now().Add(time.Duration(*e.VisibilityTimeout) * time.Second)
	q.wake()
	return nil
}

// receive is the one call that may wait, so it holds the mutex only while it looks.
func (s *Service) receive(ctx context.Context, r *awsserver.Request) (any, error) {
	var in receiveInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	most := 1
	if in.Max != nil {
		most = *in.Max
	}
	if most < 1 || most > maxBatch {
		return nil, invalid("Value %d for parameter MaxNumberOfMessages is invalid. Reason: Must be between 1 and 10, if provided.", most)
	}
	if in.Wait != nil && (*in.Wait < 0 || *in.Wait > 20) {
		return nil, invalid("Value %d for parameter WaitTimeSeconds is invalid. Reason: Must be >= 0 and <= 20, if provided.", *in.Wait)
	}
	if in.Visibility != nil && (*in.Visibility < 0 || *in.Visibility > 43200) {
		return nil, invalid("Value %d for parameter VisibilityTimeout is invalid. Reason: Must be between 0 and 43200, if provided.", *in.Visibility)
	}
	var deadline time.Time
	for first := true; ; first = false {
		found, wait, changed, err := s.look(r, in, most)
		if err != nil {
			return nil, err
		}
		if first {
			deadline = time.Now().Add(wait.whole)
		}
		left := time.Until(deadline)
		if len(found) > 0 || left <= 0 {
			return doc{"Messages": found}, nil
		}
		t := time.NewTimer(min(left, wait.next))
		select {
		case <-ctx.Done():
			t.Stop()
			return doc{"Messages": found}, nil
		case <-changed:
			t.Stop()
		case <-t.C:
		}
	}
}

// maxNap is how long a long poll waits at most before it looks at the clock, which tests may move.
const maxNap = time.Second

// patience is how long a long poll lasts as a whole, and until when nothing can happen by itself.
type patience struct{ whole, next time.Duration }

// look receives what is there, and tells how to wait when there is nothing.
func (s *Service) look(r *awsserver.Request, in receiveInput, most int) ([]doc, patience, chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.findLocked(r, in.QueueURL, "ReceiveMessage")
	if err != nil {
		return nil, patience{}, nil, err
	}
	visibility := q.attributes.seconds("VisibilityTimeout")
	if in.Visibility != nil {
		visibility = time.Duration(*in.Visibility) * time.Second
	}
	p := patience{q.attributes.seconds("ReceiveMessageWaitTimeSeconds"), maxNap}
	if in.Wait != nil {
		p.whole = time.Duration(*in.Wait) * time.Second
	}
	found, next, err := s.takeLocked(q, most, visibility)
	if err != nil {
		return nil, patience{}, nil, err
	}
	if !next.IsZero() {
		p.next = min(p.next, max(next.Sub(s.now()), time.Millisecond))
	}
	out := []doc{}
	for _, m := range found {
		out = append(out, m.describe(in))
	}
	return out, p, q.changed, nil
}

func (m *message) describe(in receiveInput) doc {
	d := doc{"MessageId": m.id, "ReceiptHandle": m.receipt, "Body": m.body, "MD5OfBody": md5Hex(m.body)}
	all := map[string]string{"SenderId": m.sender, "SentTimestamp": millis(m.sent), "ApproximateReceiveCount": strconv.Itoa(m.received),
		"ApproximateFirstReceiveTimestamp": millis(m.firstReceived)}
	if m.source != "" {
		all["DeadLetterQueueSourceArn"] = m.source
	}
	if h := m.system["AWSTraceHeader"]; h.StringValue != nil {
		all["AWSTraceHeader"] = *h.StringValue
	}
	wanted := append(slices.Clone(in.AttributeNames), in.SystemNames...)
	maps.DeleteFunc(all, func(k, _ string) bool { return !slices.Contains(wanted, k) && !slices.Contains(wanted, "All") })
	if len(all) > 0 {
		d["Attributes"] = all
	}
	picked := map[string]messageAttribute{}
	for name, a := range m.attributes {
		if slices.ContainsFunc(in.MessageAttributes, func(w string) bool {
			prefix, many := strings.CutSuffix(w, ".*")
			return w == "All" || w == name || many && strings.HasPrefix(name, prefix)
		}) {
			picked[name] = a
		}
	}
	if len(picked) > 0 {
		d["MessageAttributes"], d["MD5OfMessageAttributes"] = picked, attributesMD5(picked)
	}
	return d
}

func millis(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

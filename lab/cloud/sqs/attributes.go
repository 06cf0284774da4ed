package sqs

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// attributes are those of a queue that can be set, by AWS's name.
type attributes map[string]string

// number is an attribute with a range.
type number struct{ least, most, normal int }

// numbers returns the attributes that are numbers.
func numbers() map[string]number {
	return map[string]number{
		"VisibilityTimeout": {0, 43200, 30}, "DelaySeconds": {0, 900, 0}, "MaximumMessageSize": {1024, 1 << 20, 1 << 20},
		"MessageRetentionPeriod": {60, 1209600, 345600}, "ReceiveMessageWaitTimeSeconds": {0, 20, 0}, "KmsDataKeyReusePeriodSeconds": {60, 86400, 300},
	}
}

// texts are the attributes that are kept as they are.
func texts() []string {
	return []string{"Policy", "RedrivePolicy", "RedriveAllowPolicy", "KmsMasterKeyId", "SqsManagedSseEnabled"}
}

func (a attributes) number(name string) int {
	if n, err := strconv.Atoi(a[name]); err == nil {
		return n
	}
	return numbers()[name].normal
}

func (a attributes) seconds(name string) time.Duration {
	return time.Duration(a.number(name)) * time.Second
}
func (a attributes) retention() time.Duration { return a.seconds("MessageRetentionPeriod") }

// redrivePolicy says when messages go to the dead-letter queue.
type redrivePolicy struct {
	DeadLetterTargetARN string
	MaxReceiveCount     int
}

// redrive returns the redrive policy if there is one. Its count may be written as a number or as a string.
func (a attributes) redrive() (redrivePolicy, bool) {
	var in struct {
		Target string `json:"deadLetterTargetArn"`
		Count  any    `json:"maxReceiveCount"`
	}
	if a["RedrivePolicy"] == "" || json.Unmarshal([]byte(a["RedrivePolicy"]), &in) != nil {
		return redrivePolicy{}, false
	}
	var n int
	switch c := in.Count.(type) {
	case float64:
		n = int(c)
	case string:
		n, _ = strconv.Atoi(c) // 0 is refused
	}
	return redrivePolicy{in.Target, n}, n >= 1 && n <= 1000
}

// setLocked checks new attributes and gives them to the queue, all or none. An empty text removes its attribute.
func (s *Service) setLocked(q *queue, in map[string]string) error {
	next := maps.Clone(q.attributes)
	if next == nil {
		next = attributes{}
	}
	for name, v := range in {
		if r, ok := numbers()[name]; ok {
			if n, err := strconv.Atoi(v); err != nil || n < r.least || n > r.most {
				return badValue("Invalid value for the parameter %s.", name)
			}
			next[name] = v
			continue
		}
		if !slices.Contains(texts(), name) {
			return &awsserver.Error{Code: "InvalidAttributeName", QueryCode: "InvalidAttributeName", Message: "Unknown Attribute " + name + "."}
		}
		if next[name] = v; v == "" {
			delete(next, name)
		}
	}
	var policy *iam.ResourcePolicy
	if text := next["Policy"]; text != "" {
		var err error
		if policy, err = iam.ParseResourcePolicy(text); err != nil {
			return badValue("Invalid value for the parameter Policy. (%s)", err)
		}
	}
	if next["RedrivePolicy"] != "" {
		r, ok := next.redrive()
		k, isARN := keyOfARN(r.DeadLetterTargetARN)
		switch {
		case !ok, !isARN:
			return badValue("Value %s for parameter RedrivePolicy is invalid. Reason: Invalid value for maxReceiveCount or deadLetterTargetArn.", next["RedrivePolicy"])
		case k.account != q.key.account || k.region != q.key.region || s.queues[k] == nil:
			return badValue("Value %s for parameter RedrivePolicy is invalid. Reason: Dead letter target does not exist.", next["RedrivePolicy"])
		}
	}
	q.attributes, q.policy, q.modified = next, policy, s.now()
	return nil
}

func badValue(format string, args ...any) *awsserver.Error {
	e := awsserver.Errorf("InvalidAttributeValue", format, args...)
	e.QueryCode = "InvalidAttributeValue"
	return e
}

// describeLocked returns the attributes that were asked for.
func (s *Service) describeLocked(q *queue, names []string) (map[string]string, error) {
	s.expireLocked(q)
	now := s.now()
	visible, flying, delayed := 0, 0, 0
	for _, m := range q.messages {
		switch {
		case !m.visible.After(now):
			visible++
		case m.inFlight(now):
			flying++
		default:
			delayed++
		}
	}
	all := map[string]string{"QueueArn": q.key.arn(), "CreatedTimestamp": strconv.FormatInt(q.created.Unix(), 10),
		"LastModifiedTimestamp": strconv.FormatInt(q.modified.Unix(), 10), "ApproximateNumberOfMessages": strconv.Itoa(visible),
		"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(flying), "ApproximateNumberOfMessagesDelayed": strconv.Itoa(delayed),
		"SqsManagedSseEnabled": "true"}
	for name, n := range numbers() {
		if !strings.HasPrefix(name, "Kms") {
			all[name] = strconv.Itoa(n.normal)
		}
	}
	maps.Copy(all, q.attributes)
	if slices.Contains(names, "All") {
		return all, nil
	}
	out := map[string]string{}
	for _, n := range names {
		_, isNumber := numbers()[n]
		v, ok := all[n]
		if !ok && !isNumber && !slices.Contains(texts(), n) {
			return nil, &awsserver.Error{Code: "InvalidAttributeName", QueryCode: "InvalidAttributeName", Message: "Unknown Attribute " + n + "."}
		}
		if ok {
			out[n] = v
		}
	}
	return out, nil
}

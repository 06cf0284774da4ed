// Package events is the lab's EventBridge: the default event bus of each account and region, with rules that send what
// matches their pattern to SQS queues, of the same account or of another, and to the buses of other accounts and regions.
// Services of the lab publish on it as those of AWS do. A rule's target gets its event at once and at least once; one that
// refuses it loses it, where EventBridge would try again for a day.
//
// There are no other buses, no schedules, no input transformers and no other targets; whoever asks for them is told so.
package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// Bounds, which are AWS's own.
const (
	maxRules   = 300 // of a bus
	maxTargets = 5   // of a rule
	maxEntries = 10  // of PutEvents
	maxEntry   = 1 << 20
	maxPattern = 4096
	maxPolicy  = 10240
)

// principal is the service that sends to targets.
const principal = "events.amazonaws.com"

// Queues takes events; *sqs.Service does.
type Queues interface {
	SendForService(queueARN, service, sourceARN, body string) error
	SendAs(queueARN string, who awsserver.Identity, own func(awsserver.Access) awsserver.Decision, body string) error
}

// Roles gives rules their roles; *iam.Service does.
type Roles interface {
	AssumeForService(in iam.ServiceSession) (iam.Session, error)
	Authorize(who awsserver.Identity, a awsserver.Access) awsserver.Decision
	Revoke(accessKeyID string)
}

// Config is what a Service needs.
type Config struct {
	Queues Queues           // required
	Roles  Roles            // required
	Now    func() time.Time // nil means time.Now
	Log    *slog.Logger     // required
}

// Service is EventBridge. It is safe for concurrent use.
type Service struct {
	cfg Config
	now func() time.Time

	mu       sync.Mutex
	buses    map[busKey]map[string]*rule // the rules by name; guarded by mu
	policies map[busKey]*busPolicy       // guarded by mu
}

type busKey struct{ account, region string }

func (k busKey) arn(kind, name string) string {
	return "arn:aws:events:" + k.region + ":" + k.account + ":" + kind + "/" + name
}

// rule is guarded by Service.mu; its pattern and its targets are replaced, never changed.
type rule struct {
	bus                        busKey
	name, description, roleARN string
	patternText                string
	pattern                    pattern
	enabled                    bool
	tags                       map[string]string
	targets                    []target
}

func (r *rule) arn() string { return r.bus.arn("rule", r.name) }

// target is where a rule sends events.
type target struct {
	ID         string          `json:"Id"`
	ARN        string          `json:"Arn"`
	RoleARN    string          `json:"RoleArn,omitempty"`
	Input      string          `json:"Input,omitempty"`
	InputPath  string          `json:"InputPath,omitempty"`
	DeadLetter *deadLetter     `json:"DeadLetterConfig,omitempty"`
	Retry      json.RawMessage `json:"RetryPolicy,omitempty"`
	SQS        json.RawMessage `json:"SqsParameters,omitempty"`
	Transform  json.RawMessage `json:"InputTransformer,omitempty"`
}

type deadLetter struct {
	ARN string `json:"Arn"`
}

// New returns a Service without rules.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Queues == nil:
		return nil, errors.New("events: Config.Queues is required")
	case cfg.Roles == nil:
		return nil, errors.New("events: Config.Roles is required")
	case cfg.Log == nil:
		return nil, errors.New("events: Config.Log is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, now: cfg.Now, buses: map[busKey]map[string]*rule{}, policies: map[busKey]*busPolicy{}}, nil
}

// Event is something that happened.
type Event struct {
	Source, DetailType string
	Resources          []string
	Detail             any // encodes to a JSON object
	Time               time.Time
}

// envelope is an event as rules and targets see it.
type envelope struct {
	Version    string          `json:"version"`
	ID         string          `json:"id"`
	DetailType string          `json:"detail-type"`
	Source     string          `json:"source"`
	Account    string          `json:"account"`
	Time       string          `json:"time"`
	Region     string          `json:"region"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`
}

// Listening reports whether an account has a rule in a region, so that nobody need put together events for no one.
func (s *Service) Listening(account, region string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.buses[busKey{account, region}]) > 0
}

// Publish puts an event on the default bus of an account. It does not wait for anything but memory.
func (s *Service) Publish(account, region string, e Event) {
	if _, err := s.put(busKey{account, region}, e); err != nil {
		s.cfg.Log.Error("event not published", slog.String("detail_type", e.DetailType), slog.String("error", err.Error()))
	}
}

// put sends an event to the targets of the rules that match it, and returns its id.
func (s *Service) put(k busKey, e Event) (string, error) {
	detail, err := json.Marshal(e.Detail)
	if err != nil {
		return "", fmt.Errorf("encode detail: %w", err)
	}
	if e.Time.IsZero() {
		e.Time = s.now()
	}
	if e.Resources == nil {
		e.Resources = []string{}
	}
	env := envelope{Version: "0", ID: awsserver.UUID(), DetailType: e.DetailType, Source: e.Source, Account: k.account,
		Time: e.Time.UTC().Format("2006-01-02T15:04:05Z"), Region: k.region, Resources: e.Resources, Detail: detail}
	body, err := json.Marshal(env)
	if err != nil {
		return "", fmt.Errorf("encode event: %w", err)
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", fmt.Errorf("event is not an object: %w", err)
	}
	s.route(k, event{body: body, doc: doc})
	return env.ID, nil
}

// event is an event on its way.
type event struct {
	body      []byte
	doc       map[string]any
	forwarded bool // it came from another bus
}

// route sends an event to the targets of the rules of a bus that match it.
func (s *Service) route(k busKey, e event) {
	for _, d := range s.matching(k, e.doc) {
		s.deliver(d, e)
	}
}

// delivery is one target of one rule.
type delivery struct {
	rule   string // ARN
	role   string
	target target
}

func (s *Service) matching(k busKey, doc map[string]any) []delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []delivery
	for _, r := range s.buses[k] {
		if !r.enabled || !r.pattern.matches(doc) {
			continue
		}
		for _, t := range r.targets {
			out = append(out, delivery{rule: r.arn(), role: t.RoleARN, target: t})
		}
	}
	return out
}

// deliver sends an event to a target, and to the target's dead-letter queue when it does not take it.
func (s *Service) deliver(d delivery, e event) {
	text := d.target.text(e.body, e.doc)
	var err error
	if strings.Contains(d.target.ARN, ":event-bus/") {
		err = s.forward(d, e)
	} else {
		err = s.send(d, d.target.ARN, text)
	}
	if err == nil {
		return
	}
	s.lost(d, err)
	if dl := d.target.DeadLetter; dl != nil && dl.ARN != "" {
		if err := s.cfg.Queues.SendForService(dl.ARN, principal, d.rule, text); err != nil {
			s.cfg.Log.Info("event lost", slog.String("rule", d.rule), slog.String("queue", dl.ARN), slog.String("error", err.Error()))
		}
	}
}

// send uses the target's role where it has one, which a queue of another account needs, else the right the queue gives to
// EventBridge itself.
func (s *Service) send(d delivery, queue, text string) error {
	if d.role == "" {
		return s.cfg.Queues.SendForService(queue, principal, d.rule, text)
	}
	session, err := s.cfg.Roles.AssumeForService(iam.ServiceSession{RoleARN: d.role, Service: principal, SessionName: "events", SourceARN: d.rule})
	if err != nil {
		return err
	}
	defer s.cfg.Roles.Revoke(session.Identity.AccessKeyID)
	own := func(a awsserver.Access) awsserver.Decision { return s.cfg.Roles.Authorize(session.Identity, a) }
	return s.cfg.Queues.SendAs(queue, session.Identity, own, text)
}

// text is what a target gets: the event, a part of it, or what the rule says instead.
func (t target) text(body []byte, doc map[string]any) string {
	if t.Input != "" {
		return t.Input
	}
	if t.InputPath == "" || t.InputPath == "$" {
		return string(body)
	}
	var v any = doc
	for part := range strings.SplitSeq(strings.TrimPrefix(t.InputPath, "$."), ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return "{}"
		}
		v = m[part]
	}
	out, err := json.Marshal(v)
	if err != nil {
		return "{}"
	}
	return string(out)
}

package events

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// actionPut is what a bus lets others do.
const actionPut = "events:PutEvents"

// busPolicy is what the policy of a bus says. It is replaced, never changed.
type busPolicy struct {
	statements map[string]doc // by their ids
	parsed     *iam.ResourcePolicy
}

// busOfARN reads the ARN of a default bus.
func busOfARN(arn string) (k busKey, ok bool) {
	p := strings.Split(arn, ":")
	if len(p) != 6 || p[0] != "arn" || p[2] != "events" || p[5] != "event-bus/default" {
		return k, false
	}
	return busKey{account: p[4], region: p[3]}, true
}

// checkBus returns why a bus cannot be the target of a rule. Buses of other accounts and regions are reached with a role.
func (t target) checkBus(own busKey) (code, message string) {
	to, ok := busOfARN(t.ARN)
	switch {
	case !ok:
		return notFoundCode, "Event bus " + t.ARN + " does not exist. (The lab has the default bus of each account only.)"
	case to == own:
		return validationCode, "Parameter " + t.ARN + " is not valid. Reason: A rule cannot send to the event bus that it is on."
	case t.RoleARN == "":
		return validationCode, "RoleArn is required for target " + t.ARN + "."
	}
	return "", ""
}

// forward puts an event on the bus of another account or region with the rights of the target's role: the role must be let send,
// and a bus of another account must let it too. An event that came over another bus goes no further, as at AWS.
func (s *Service) forward(d delivery, e event) error {
	to, ok := busOfARN(d.target.ARN)
	switch {
	case !ok:
		return fmt.Errorf("not the ARN of a default event bus: %s", d.target.ARN)
	case e.forwarded:
		return fmt.Errorf("an event that came from another bus is not sent to a third")
	}
	session, err := s.cfg.Roles.AssumeForService(iam.ServiceSession{RoleARN: d.role, Service: principal, SessionName: "events", SourceARN: d.rule})
	if err != nil {
		return err
	}
	who := session.Identity
	defer s.cfg.Roles.Revoke(who.AccessKeyID)
	a := awsserver.Access{Action: actionPut, Resource: d.target.ARN, Context: map[string][]string{
		"aws:principalarn": {who.RoleARN}, "aws:principalaccount": {who.AccountID}, "aws:sourcearn": {d.rule},
	}}
	if s.cfg.Roles.Authorize(who, a) != awsserver.Allowed {
		return fmt.Errorf("role %s may not put events on %s", d.role, d.target.ARN)
	}
	s.mu.Lock()
	policy := s.policies[to]
	s.mu.Unlock()
	if to.account != who.AccountID && (policy == nil || policy.parsed.ForIdentity(who, a) != awsserver.Allowed) {
		return fmt.Errorf("the policy of %s does not allow it", d.target.ARN)
	}
	e.forwarded = true
	s.route(to, e)
	return nil
}

// permission is what PutPermission and RemovePermission ask for.
type permission struct {
	Action      string `json:"Action"`
	Principal   string `json:"Principal"`
	StatementID string `json:"StatementId"`
	Policy      string `json:"Policy"`
	RemoveAll   bool   `json:"RemoveAllPermissions"`
	Condition   *struct {
		Type, Key, Value string
	} `json:"Condition"`
}

// statement is the policy statement of a permission.
func (p permission) statement(k busKey) (doc, error) {
	switch {
	case !regexp.MustCompile(`^[a-zA-Z0-9-_]{1,64}$`).MatchString(p.StatementID):
		return nil, invalid("Parameter StatementId is not valid.")
	case p.Action != actionPut:
		return nil, invalid("Provided value in parameter 'action' is not supported.")
	case p.Principal != "*" && !regexp.MustCompile(`^\d{12}$`).MatchString(p.Principal):
		return nil, invalid("Provided principal is not valid. Principal: %s must be an account id or *", p.Principal)
	}
	st := doc{"Sid": p.StatementID, "Effect": "Allow", "Action": actionPut, "Resource": k.arn("event-bus", "default"), "Principal": "*"}
	if p.Principal != "*" {
		st["Principal"] = doc{"AWS": "arn:aws:iam::" + p.Principal + ":root"}
	}
	if c := p.Condition; c != nil {
		st["Condition"] = doc{c.Type: doc{c.Key: c.Value}}
	}
	return st, nil
}

// putPermission adds a statement to the policy of the bus, or replaces the policy.
func (s *Service) putPermission(_ *awsserver.Request, k busKey, in input) (any, error) {
	next := map[string]doc{}
	if in.Policy == "" {
		if old := s.policies[k]; old != nil {
			maps.Copy(next, old.statements)
		}
		st, err := in.statement(k)
		if err != nil {
			return nil, err
		}
		next[in.StatementID] = st
		return nil, s.setPolicy(k, next)
	}
	var d struct {
		Statement []doc
	}
	if err := json.Unmarshal([]byte(in.Policy), &d); err != nil {
		return nil, invalid("The policy is not valid JSON: %s", err)
	}
	for i, st := range d.Statement {
		id, _ := st["Sid"].(string)
		if id == "" || next[id] != nil {
			id = fmt.Sprintf("%s#%d", id, i)
		}
		next[id] = st
	}
	return nil, s.setPolicy(k, next)
}

func (s *Service) removePermission(_ *awsserver.Request, k busKey, in input) (any, error) {
	old := s.policies[k]
	if in.RemoveAll {
		delete(s.policies, k)
		return nil, nil //nolint:nilnil // an empty answer
	}
	if old == nil || old.statements[in.StatementID] == nil {
		return nil, notFound("Statement with the provided id does not exist.")
	}
	next := maps.Clone(old.statements)
	delete(next, in.StatementID)
	return nil, s.setPolicy(k, next)
}

func (s *Service) setPolicy(k busKey, statements map[string]doc) error {
	if len(statements) == 0 {
		delete(s.policies, k)
		return nil
	}
	text, err := policyText(statements)
	if err != nil {
		return err
	}
	if len(text) > maxPolicy {
		return awsserver.Errorf("PolicyLengthExceededException", "The event bus policy is too long.")
	}
	parsed, err := iam.ParseResourcePolicy(text)
	if err != nil {
		return invalid("The policy is not valid: %s", err)
	}
	s.policies[k] = &busPolicy{statements: statements, parsed: parsed}
	return nil
}

func policyText(statements map[string]doc) (string, error) {
	var list []doc
	for _, id := range slices.Sorted(maps.Keys(statements)) {
		list = append(list, statements[id])
	}
	text, err := json.Marshal(doc{"Version": "2012-10-17", "Statement": list})
	if err != nil {
		return "", fmt.Errorf("encode the policy of a bus: %w", err)
	}
	return string(text), nil
}

func (s *Service) describeBus(_ *awsserver.Request, k busKey, in input) (any, error) {
	if in.Name != "" && in.Name != "default" && in.Name != k.arn("event-bus", "default") {
		return nil, notFound("Event bus %s does not exist.", in.Name)
	}
	d := doc{"Name": "default", "Arn": k.arn("event-bus", "default")}
	if p := s.policies[k]; p != nil {
		text, err := policyText(p.statements)
		if err != nil {
			return nil, err
		}
		d["Policy"] = text
	}
	return d, nil
}

func (s *Service) listBuses(req *awsserver.Request, k busKey, in input) (any, error) {
	names, next, err := page(req, []string{"default"}, in)
	if err != nil {
		return nil, err
	}
	buses := []any{}
	for range names {
		bus, err := s.describeBus(req, k, input{})
		if err != nil {
			return nil, err
		}
		buses = append(buses, bus)
	}
	return answer("EventBuses", buses, next), nil
}

// lost tells of an event that a target did not take.
func (s *Service) lost(d delivery, err error) {
	s.cfg.Log.Info("event not delivered", slog.String("rule", d.rule), slog.String("target", d.target.ARN), slog.String("error", err.Error()))
}

package events

import (
	"context"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type doc = map[string]any

type tag struct{ Key, Value string }

// input is the union of the members of all requests.
type input struct {
	Name               string   `json:"Name"`
	Rule               string   `json:"Rule"`
	EventBusName       string   `json:"EventBusName"`
	EventPattern       string   `json:"EventPattern"`
	ScheduleExpression string   `json:"ScheduleExpression"`
	State              string   `json:"State"`
	Description        string   `json:"Description"`
	RoleARN            string   `json:"RoleArn"`
	Tags               []tag    `json:"Tags"`
	TagKeys            []string `json:"TagKeys"`
	ResourceARN        string   `json:"ResourceARN"`
	NamePrefix         string   `json:"NamePrefix"`
	Targets            []target `json:"Targets"`
	TargetARN          string   `json:"TargetArn"`
	IDs                []string `json:"Ids"`
	Limit              int      `json:"Limit"`
	NextToken          string   `json:"NextToken"`
	Entries            []struct {
		Time         *float64 `json:"Time"`
		Source       string   `json:"Source"`
		Resources    []string `json:"Resources"`
		DetailType   string   `json:"DetailType"`
		Detail       string   `json:"Detail"`
		EventBusName string   `json:"EventBusName"`
	} `json:"Entries"`
	Event string `json:"Event"`
	permission
}

// name is the rule's, which calls give by different members.
func (in input) name() string {
	switch {
	case in.Rule != "":
		return in.Rule
	case in.ResourceARN != "":
		return in.ResourceARN[strings.LastIndex(in.ResourceARN, "/")+1:]
	}
	return in.Name
}

// API returns EventBridge for registration with the front.
func (s *Service) API() awsserver.Service {
	svc := awsserver.Service{Name: "events", Protocol: awsserver.JSON11, Target: "AWSEvents", Operations: map[string]awsserver.Operation{}}
	for name, op := range map[string]func(*awsserver.Request, busKey, input) (any, error){
		"PutRule": s.putRule, "DescribeRule": s.describeRule, "DeleteRule": s.deleteRule, "ListRules": s.listRules,
		"EnableRule": s.switchRule(true), "DisableRule": s.switchRule(false), "PutTargets": s.putTargets,
		"ListTargetsByRule": s.listTargets, "RemoveTargets": s.removeTargets, "ListRuleNamesByTarget": s.listRuleNames,
		"TagResource": s.tagResource, "UntagResource": s.untagResource, "ListTagsForResource": s.listTags, "PutEvents": s.putEvents,
		"TestEventPattern": testPattern, "PutPermission": s.putPermission, "RemovePermission": s.removePermission,
		"DescribeEventBus": s.describeBus, "ListEventBuses": s.listBuses,
	} {
		svc.Operations[name] = func(_ context.Context, r *awsserver.Request) (any, error) {
			var in input
			if err := r.Decode(&in); err != nil {
				return nil, err
			}
			k := busKey{r.Caller.AccountID, r.Region}
			resource := "*"
			switch {
			case name == "PutEvents", strings.HasSuffix(name, "Permission"), name == "DescribeEventBus":
				resource = k.arn("event-bus", "default")
			case in.name() != "":
				resource = k.arn("rule", in.name())
			}
			if err := r.Authorize("events:"+name, resource, nil); err != nil {
				return nil, err
			}
			if in.EventBusName != "" && in.EventBusName != "default" && in.EventBusName != k.arn("event-bus", "default") {
				return nil, notFound("Event bus %s does not exist. (The lab has the default bus of each account only.)", in.EventBusName)
			}
			if name != "PutEvents" { // which looks for matching rules by itself
				s.mu.Lock()
				defer s.mu.Unlock()
			}
			return op(r, k, in)
		}
	}
	return svc
}

// Codes of EventBridge's refusals.
const (
	notFoundCode   = "ResourceNotFoundException"
	validationCode = "ValidationException"
)

func notFound(format string, args ...any) error {
	return awsserver.Errorf(notFoundCode, format, args...)
}

func invalid(format string, args ...any) error {
	return awsserver.Errorf(validationCode, format, args...)
}

func (s *Service) find(k busKey, name string) (*rule, error) {
	if r := s.buses[k][name]; r != nil {
		return r, nil
	}
	return nil, notFound("Rule %s does not exist on EventBus default.", name)
}

func (s *Service) putRule(r *awsserver.Request, k busKey, in input) (any, error) {
	if !regexp.MustCompile(`^[.\-_A-Za-z0-9]{1,64}$`).MatchString(in.Name) {
		return nil, invalid("1 validation error detected: Value '%s' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\.\\-_A-Za-z0-9]+", in.Name)
	}
	switch {
	case in.ScheduleExpression != "":
		return nil, invalid("The lab's EventBridge has no schedules.")
	case in.EventPattern == "":
		return nil, invalid("Parameter(s) EventPattern or ScheduleExpression must be specified.")
	case len(in.EventPattern) > maxPattern:
		return nil, awsserver.Errorf("InvalidEventPatternException", "Event pattern is not valid. Reason: longer than %d characters", maxPattern)
	case in.State != "" && in.State != "ENABLED" && in.State != "DISABLED" && in.State != "ENABLED_WITH_ALL_CLOUDTRAIL_MANAGEMENT_EVENTS":
		return nil, invalid("1 validation error detected: Value '%s' at 'state' failed to satisfy constraint", in.State)
	}
	p, err := parsePattern(in.EventPattern)
	if err != nil {
		return nil, awsserver.Errorf("InvalidEventPatternException", "Event pattern is not valid. Reason: %s", err)
	}
	if in.RoleARN != "" {
		if err := r.Authorize("iam:PassRole", in.RoleARN, map[string][]string{"iam:passedtoservice": {principal}}); err != nil {
			return nil, err
		}
	}
	rules := s.buses[k]
	if rules == nil {
		rules = map[string]*rule{}
		s.buses[k] = rules
	}
	old := rules[in.Name]
	if old == nil && len(rules) >= maxRules {
		return nil, awsserver.Errorf("LimitExceededException", "The requested resource exceeds the maximum number allowed.")
	}
	next := &rule{bus: k, name: in.Name, description: in.Description, roleARN: in.RoleARN, patternText: in.EventPattern, pattern: p,
		enabled: in.State != "DISABLED", tags: map[string]string{}}
	if old != nil { // the tags of a rule that is there are not changed, as at AWS
		next.tags, next.targets = old.tags, old.targets
	} else {
		for _, t := range in.Tags {
			next.tags[t.Key] = t.Value
		}
	}
	rules[in.Name] = next
	return doc{"RuleArn": next.arn()}, nil
}

func (r *rule) describe() doc {
	d := doc{"Name": r.name, "Arn": r.arn(), "EventPattern": r.patternText, "State": "ENABLED", "EventBusName": "default"}
	if !r.enabled {
		d["State"] = "DISABLED"
	}
	if r.description != "" {
		d["Description"] = r.description
	}
	if r.roleARN != "" {
		d["RoleArn"] = r.roleARN
	}
	return d
}

func (s *Service) describeRule(_ *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.Name)
	if err != nil {
		return nil, err
	}
	d := r.describe()
	d["CreatedBy"] = k.account
	return d, nil
}

// deleteRule refuses a rule with targets, and does nothing about one that is not there.
func (s *Service) deleteRule(_ *awsserver.Request, k busKey, in input) (any, error) {
	r := s.buses[k][in.Name]
	if r != nil && len(r.targets) > 0 {
		return nil, invalid("Rule can't be deleted since it has targets.")
	}
	delete(s.buses[k], in.Name)
	return nil, nil //nolint:nilnil // an empty answer
}

// page cuts sorted names at the place of an opaque token.
func page(r *awsserver.Request, names []string, in input) (out []string, next any, err error) {
	limit := in.Limit
	if limit == 0 {
		limit = 100
	}
	if limit < 1 || limit > 100 {
		return nil, nil, invalid("1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: Member must have value between 1 and 100", limit)
	}
	after, ok := r.ReadPageToken(in.NextToken)
	if !ok {
		return nil, nil, invalid("Invalid nextToken.")
	}
	slices.Sort(names)
	names = slices.DeleteFunc(names, func(n string) bool { return n <= after })
	if len(names) > limit {
		return names[:limit], r.PageToken(names[limit-1]), nil
	}
	return names, nil, nil
}

func answer(member string, list any, next any) doc {
	d := doc{member: list}
	if next != nil {
		d["NextToken"] = next
	}
	return d
}

func (s *Service) listRules(req *awsserver.Request, k busKey, in input) (any, error) {
	var names []string
	for n := range s.buses[k] {
		if strings.HasPrefix(n, in.NamePrefix) {
			names = append(names, n)
		}
	}
	names, next, err := page(req, names, in)
	if err != nil {
		return nil, err
	}
	out := []doc{}
	for _, n := range names {
		out = append(out, s.buses[k][n].describe())
	}
	return answer("Rules", out, next), nil
}

func (s *Service) listRuleNames(req *awsserver.Request, k busKey, in input) (any, error) {
	names := []string{}
	for n, r := range s.buses[k] {
		if slices.ContainsFunc(r.targets, func(t target) bool { return t.ARN == in.TargetARN }) {
			names = append(names, n)
		}
	}
	names, next, err := page(req, names, in)
	if err != nil {
		return nil, err
	}
	return answer("RuleNames", names, next), nil
}

func (s *Service) switchRule(on bool) func(*awsserver.Request, busKey, input) (any, error) {
	return func(_ *awsserver.Request, k busKey, in input) (any, error) {
		r, err := s.find(k, in.Name)
		if err != nil {
			return nil, err
		}
		r.enabled = on
		return nil, nil //nolint:nilnil // an empty answer
	}
}

// putTargets adds or replaces targets by id. Those that the lab cannot serve fail one by one.
func (s *Service) putTargets(req *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.Rule)
	if err != nil {
		return nil, err
	}
	if len(in.Targets) == 0 {
		return nil, invalid("1 validation error detected: Value '[]' at 'targets' failed to satisfy constraint: Member must have length greater than or equal to 1")
	}
	next, failed := slices.Clone(r.targets), []doc{}
	for _, t := range in.Targets {
		if code, message := t.check(k); code != "" {
			failed = append(failed, doc{"TargetId": t.ID, "ErrorCode": code, "ErrorMessage": message})
			continue
		}
		if t.RoleARN != "" {
			if err := req.Authorize("iam:PassRole", t.RoleARN, map[string][]string{"iam:passedtoservice": {principal}}); err != nil {
				return nil, err
			}
		}
		next = append(slices.DeleteFunc(next, func(o target) bool { return o.ID == t.ID }), t)
	}
	if len(next) > maxTargets {
		return nil, awsserver.Errorf("LimitExceededException", "The requested resource exceeds the maximum number allowed.")
	}
	r.targets = next
	return doc{"FailedEntryCount": len(failed), "FailedEntries": failed}, nil
}

// check returns why a target of a rule cannot be served. A queue of another region is reached over a bus there only, as at AWS.
func (t target) check(own busKey) (code, message string) {
	p := strings.Split(t.ARN, ":")
	switch {
	case t.ID == "" || len(t.ID) > 64:
		return validationCode, "The id of a target has 1 to 64 characters."
	case len(p) != 6 || p[0] != "arn":
		return validationCode, "Parameter " + t.ARN + " is not valid. Reason: Provided Arn is not in correct format."
	case p[2] == "events":
		return t.checkBus(own)
	case p[2] != "sqs":
		return "UnsupportedTarget", "The lab's EventBridge sends to SQS queues and event buses only."
	case p[3] != own.region:
		return validationCode, "Parameter " + t.ARN + " is not valid. Reason: Provided Arn is not in the same region as the rule."
	case len(t.Transform) > 0 && string(t.Transform) != "null":
		return "UnsupportedTarget", "The lab's EventBridge has no input transformers."
	case t.Input != "" && !json.Valid([]byte(t.Input)):
		return validationCode, "JSON syntax error in input for target " + t.ID
	}
	return "", ""
}

func (s *Service) listTargets(req *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.Rule)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, t := range r.targets {
		ids = append(ids, t.ID)
	}
	ids, next, err := page(req, ids, in)
	if err != nil {
		return nil, err
	}
	out := []target{}
	for _, id := range ids {
		out = append(out, r.targets[slices.IndexFunc(r.targets, func(t target) bool { return t.ID == id })])
	}
	return answer("Targets", out, next), nil
}

func (s *Service) removeTargets(_ *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.Rule)
	if err != nil {
		return nil, err
	}
	failed := []doc{}
	for _, id := range in.IDs {
		i := slices.IndexFunc(r.targets, func(t target) bool { return t.ID == id })
		if i < 0 {
			failed = append(failed, doc{"TargetId": id, "ErrorCode": "ResourceNotFoundException", "ErrorMessage": "Rule does not have a target with this id."})
			continue
		}
		r.targets = slices.Delete(slices.Clone(r.targets), i, i+1)
	}
	return doc{"FailedEntryCount": len(failed), "FailedEntries": failed}, nil
}

func (s *Service) tagResource(_ *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.name())
	if err != nil {
		return nil, err
	}
	if len(r.tags)+len(in.Tags) > 50 {
		return nil, invalid("Too many tags: the maximum is 50.")
	}
	for _, t := range in.Tags {
		r.tags[t.Key] = t.Value
	}
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) untagResource(_ *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.name())
	if err != nil {
		return nil, err
	}
	for _, key := range in.TagKeys {
		delete(r.tags, key)
	}
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) listTags(_ *awsserver.Request, k busKey, in input) (any, error) {
	r, err := s.find(k, in.name())
	if err != nil {
		return nil, err
	}
	out := []tag{}
	for _, key := range slices.Sorted(maps.Keys(r.tags)) {
		out = append(out, tag{key, r.tags[key]})
	}
	return doc{"Tags": out}, nil
}

package logs

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type doc = map[string]any

// input is the union of the members of all requests.
type input struct {
	LogGroupName        string   `json:"logGroupName"`
	LogGroupIdentifier  string   `json:"logGroupIdentifier"`
	LogGroupNamePrefix  string   `json:"logGroupNamePrefix"`
	LogStreamName       string   `json:"logStreamName"`
	LogStreamNames      []string `json:"logStreamNames"`
	LogStreamNamePrefix string   `json:"logStreamNamePrefix"`
	OrderBy             string   `json:"orderBy"`
	Descending          bool     `json:"descending"`
	FilterPattern       string   `json:"filterPattern"`
	StartTime           *int64   `json:"startTime"`
	EndTime             *int64   `json:"endTime"`
	StartFromHead       bool     `json:"startFromHead"`
	Limit               *int     `json:"limit"`
	NextToken           string   `json:"nextToken"`
	RetentionInDays     int      `json:"retentionInDays"`
	LogEvents           []struct {
		Timestamp int64  `json:"timestamp"`
		Message   string `json:"message"`
	} `json:"logEvents"`
}

// API returns CloudWatch Logs for registration with the front.
func (s *Service) API() awsserver.Service {
	ops := map[string]func(*awsserver.Request, groupKey, input) (any, error){
		"CreateLogGroup": s.createGroup, "DeleteLogGroup": s.deleteGroup, "DescribeLogGroups": s.describeGroups,
		"PutRetentionPolicy": s.putRetention, "CreateLogStream": s.createStream, "DeleteLogStream": s.deleteStream,
		"DescribeLogStreams": s.describeStreams, "PutLogEvents": s.putEvents, "FilterLogEvents": s.filterEvents, "GetLogEvents": s.getEvents,
	}
	svc := awsserver.Service{Name: "logs", Protocol: awsserver.JSON11, Target: "Logs_20140328", Operations: map[string]awsserver.Operation{}}
	for name, op := range ops {
		svc.Operations[name] = func(_ context.Context, r *awsserver.Request) (any, error) {
			var in input
			if err := r.Decode(&in); err != nil {
				return nil, err
			}
			k := groupKey{r.Caller.AccountID, r.Region, in.group()}
			resource := "*"
			if k.name != "" {
				resource = k.arn() + ":*"
			}
			if in.LogStreamName != "" {
				resource = streamARN(k, in.LogStreamName)
			}
			if err := r.Authorize("logs:"+name, resource, nil); err != nil {
				return nil, err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return op(r, k, in)
		}
	}
	return svc
}

// group is the group's name, which some calls give as an ARN.
func (in input) group() string {
	if in.LogGroupName != "" {
		return in.LogGroupName
	}
	if _, name, ok := strings.Cut(in.LogGroupIdentifier, ":log-group:"); ok {
		return strings.TrimSuffix(name, ":*")
	}
	return in.LogGroupIdentifier
}

func (s *Service) createGroup(_ *awsserver.Request, k groupKey, _ input) (any, error) {
	if k.name == "" || len(k.name) > 512 {
		return nil, awsserver.Errorf("InvalidParameterException", "1 validation error detected: Value at 'logGroupName' failed to satisfy constraint: Member must have length between 1 and 512")
	}
	if s.groups[k] != nil {
		return nil, awsserver.Errorf("ResourceAlreadyExistsException", "The specified log group already exists")
	}
	if len(s.groups) >= maxGroups {
		return nil, awsserver.Errorf("LimitExceededException", "Resource limit exceeded.")
	}
	s.groups[k] = &group{created: s.now(), streams: map[string]*stream{}}
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) find(k groupKey) (*group, error) {
	if g := s.groups[k]; g != nil {
		return g, nil
	}
	return nil, errNoGroup
}

func (s *Service) findStream(k groupKey, name string) (*stream, error) {
	g, err := s.find(k)
	if err != nil {
		return nil, err
	}
	if st := g.streams[name]; st != nil {
		return st, nil
	}
	return nil, awsserver.Errorf("ResourceNotFoundException", "The specified log stream does not exist.")
}

func (s *Service) deleteGroup(_ *awsserver.Request, k groupKey, _ input) (any, error) {
	if _, err := s.find(k); err != nil {
		return nil, err
	}
	delete(s.groups, k)
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) putRetention(_ *awsserver.Request, k groupKey, in input) (any, error) {
	g, err := s.find(k)
	if err != nil {
		return nil, err
	}
	g.retention = in.RetentionInDays
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) describeGroups(r *awsserver.Request, k groupKey, in input) (any, error) {
	var names []string
	for other := range s.groups {
		if other.account == k.account && other.region == k.region && strings.HasPrefix(other.name, in.LogGroupNamePrefix) {
			names = append(names, other.name)
		}
	}
	slices.Sort(names)
	names, next, err := cut(r, names, in, 50)
	if err != nil {
		return nil, err
	}
	out := []doc{}
	for _, n := range names {
		gk := groupKey{k.account, k.region, n}
		g := s.groups[gk]
		d := doc{"logGroupName": n, "arn": gk.arn() + ":*", "logGroupArn": gk.arn(), "creationTime": g.created.UnixMilli(),
			"metricFilterCount": 0, "storedBytes": 0, "logGroupClass": "STANDARD"}
		if g.retention > 0 {
			d["retentionInDays"] = g.retention
		}
		out = append(out, d)
	}
	return answer(doc{"logGroups": out}, next), nil
}

func (s *Service) createStream(_ *awsserver.Request, k groupKey, in input) (any, error) {
	g, err := s.find(k)
	if err != nil {
		return nil, err
	}
	if in.LogStreamName == "" || strings.ContainsAny(in.LogStreamName, ":*") {
		return nil, awsserver.Errorf("InvalidParameterException", "Invalid logStreamName: colons and asterisks are not allowed.")
	}
	if g.streams[in.LogStreamName] != nil {
		return nil, awsserver.Errorf("ResourceAlreadyExistsException", "The specified log stream already exists")
	}
	g.add(&stream{name: in.LogStreamName, created: s.now()})
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) deleteStream(_ *awsserver.Request, k groupKey, in input) (any, error) {
	if _, err := s.findStream(k, in.LogStreamName); err != nil {
		return nil, err
	}
	delete(s.groups[k].streams, in.LogStreamName)
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) describeStreams(r *awsserver.Request, k groupKey, in input) (any, error) {
	g, err := s.find(k)
	if err != nil {
		return nil, err
	}
	var list []*stream
	for _, st := range g.streams {
		if strings.HasPrefix(st.name, in.LogStreamNamePrefix) {
			list = append(list, st)
		}
	}
	slices.SortFunc(list, func(a, b *stream) int {
		c := strings.Compare(a.name, b.name)
		if in.OrderBy == "LastEventTime" {
			c = a.lastWrite.Compare(b.lastWrite)
		}
		if in.Descending {
			c = -c
		}
		return c
	})
	list, next, err := cut(r, list, in, 50)
	if err != nil {
		return nil, err
	}
	out := []doc{}
	for _, st := range list {
		d := doc{"logStreamName": st.name, "creationTime": st.created.UnixMilli(), "arn": streamARN(k, st.name), "storedBytes": 0}
		if n := len(st.events); n > 0 {
			d["firstEventTimestamp"], d["lastEventTimestamp"] = st.events[0].at.UnixMilli(), st.events[n-1].at.UnixMilli()
			d["lastIngestionTime"] = st.lastWrite.UnixMilli()
		}
		out = append(out, d)
	}
	return answer(doc{"logStreams": out}, next), nil
}

func (s *Service) putEvents(_ *awsserver.Request, k groupKey, in input) (any, error) {
	st, err := s.findStream(k, in.LogStreamName)
	if err != nil {
		return nil, err
	}
	if len(in.LogEvents) == 0 || len(in.LogEvents) > 10000 {
		return nil, awsserver.Errorf("InvalidParameterException", "Log events must be between 1 and 10000 in number.")
	}
	for _, e := range in.LogEvents {
		s.putLocked(st, time.UnixMilli(e.Timestamp), e.Message)
	}
	return doc{"nextSequenceToken": strconv.FormatUint(s.serial, 10)}, nil
}

// found is an event with the stream it is from.
type found struct {
	event
	stream string
}

func (s *Service) filterEvents(r *awsserver.Request, k groupKey, in input) (any, error) {
	g, err := s.find(k)
	if err != nil {
		return nil, err
	}
	match, err := matcher(in.FilterPattern)
	if err != nil {
		return nil, err
	}
	var all []found
	for _, st := range g.streams {
		if !strings.HasPrefix(st.name, in.LogStreamNamePrefix) || len(in.LogStreamNames) > 0 && !slices.Contains(in.LogStreamNames, st.name) {
			continue
		}
		for _, e := range st.events {
			if in.inTime(e) && match(e.message) {
				all = append(all, found{e, st.name})
			}
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return int(a.id) - int(b.id)
	})
	all, next, err := cut(r, all, in, 10000)
	if err != nil {
		return nil, err
	}
	out := []doc{}
	for _, f := range all {
		out = append(out, doc{"logStreamName": f.stream, "timestamp": f.at.UnixMilli(), "message": f.message,
			"ingestionTime": f.ingested.UnixMilli(), "eventId": fmt.Sprintf("%056d", f.id)})
	}
	return answer(doc{"events": out, "searchedLogStreams": []doc{}}, next), nil
}

func (in input) inTime(e event) bool {
	at := e.at.UnixMilli()
	return (in.StartTime == nil || at >= *in.StartTime) && (in.EndTime == nil || at <= *in.EndTime)
}

// getEvents reads one stream forwards or backwards; the tokens name the event after or before which to go on, and
// asking at the end returns the same token, as at AWS.
func (s *Service) getEvents(_ *awsserver.Request, k groupKey, in input) (any, error) {
	st, err := s.findStream(k, in.LogStreamName)
	if err != nil {
		return nil, err
	}
	limit := 10000
	if in.Limit != nil {
		limit = min(max(*in.Limit, 1), limit)
	}
	var all []event
	for _, e := range st.events {
		if in.inTime(e) {
			all = append(all, e)
		}
	}
	forward := in.StartFromHead
	if in.NextToken != "" {
		dir, num, _ := strings.Cut(in.NextToken, "/")
		at, perr := strconv.ParseUint(num, 10, 64)
		if perr != nil || dir != "f" && dir != "b" {
			return nil, awsserver.Errorf("InvalidParameterException", "The specified nextToken is invalid.")
		}
		forward = dir == "f"
		all = slices.DeleteFunc(all, func(e event) bool { return forward && e.id <= at || !forward && e.id >= at })
	}
	if len(all) > limit {
		if forward {
			all = all[:limit]
		} else {
			all = all[len(all)-limit:]
		}
	}
	first, lastID := uint64(0), uint64(0)
	if _, num, ok := strings.Cut(in.NextToken, "/"); ok {
		first, _ = strconv.ParseUint(num, 10, 64)
		lastID = first
	}
	out := []doc{}
	for i, e := range all {
		if i == 0 {
			first = e.id
		}
		lastID = e.id
		out = append(out, doc{"timestamp": e.at.UnixMilli(), "message": e.message, "ingestionTime": e.ingested.UnixMilli()})
	}
	return doc{"events": out, "nextForwardToken": fmt.Sprintf("f/%020d", lastID), "nextBackwardToken": fmt.Sprintf("b/%020d", first)}, nil
}

// cut pages a list by an offset in the token.
func cut[T any](r *awsserver.Request, list []T, in input, most int) (page []T, next string, err error) {
	limit := most
	if in.Limit != nil {
		limit = *in.Limit
	}
	if limit < 1 || limit > most {
		return nil, "", awsserver.Errorf("InvalidParameterException", "1 validation error detected: Value '%d' at 'limit' failed to satisfy constraint: "+
			"Member must have value between 1 and %d", limit, most)
	}
	from := 0
	after, ok := r.ReadPageToken(in.NextToken)
	if ok && after != "" {
		from, err = strconv.Atoi(after)
		ok = err == nil
	}
	if !ok || from < 0 {
		return nil, "", awsserver.Errorf("InvalidParameterException", "The specified nextToken is invalid.")
	}
	from = min(from, len(list))
	to := min(from+limit, len(list))
	if to < len(list) {
		next = r.PageToken(strconv.Itoa(to))
	}
	return list[from:to], next, nil
}

func answer(d doc, next string) doc {
	if next != "" {
		d["nextToken"] = next
	}
	return d
}

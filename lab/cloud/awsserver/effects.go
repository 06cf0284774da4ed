package awsserver

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Codes of the faults. The Query protocols have other names for them, see queryCodes.
const (
	codeThrottling  = "ThrottlingException"
	codeServerError = "ServerException"
)

// before lets the faults that hit a call do what they do ahead of the operation. When done it has been answered.
func (s *Server) before(x *exchange, account string) (done bool) {
	x.account = account
	x.faults = s.cfg.Faults.hits(account, x.service.Name, x.op)
	if x.faults[FaultDown] != nil {
		hangUp(x)
		return true
	}
	if f := x.faults[FaultSlow]; f != nil && !wait(x.r.Context(), f.By) {
		return true // the client has gone
	}
	if f := x.faults[FaultSkew]; f != nil {
		x.skew = f.By
		x.w.Header().Set("Date", s.cfg.Now().Add(x.skew).UTC().Format(http.TimeFormat))
	}
	return false
}

// refuse returns the failure that a fault gives to a call whose signature is good.
func (s *Server) refuse(x *exchange, who Identity) error {
	switch {
	case x.faults[FaultError] != nil:
		return &Error{Code: codeServerError, Status: http.StatusInternalServerError, Message: "Service Unavailable. Please try again later."}
	case x.faults[FaultThrottle] != nil, x.faults[FaultLimits] != nil && !s.cfg.Faults.take(who.AccountID, x):
		return throttled(x.service.Name)
	case x.faults[FaultDenied] != nil && x.op != "GetCallerIdentity": // which no policy can deny
		return AccessDenied(who.ARN, x.service.Name+":"+x.op, "*", DeniedExplicitly)
	}
	return nil
}

// throttled is how a service says that it is called too often; the Query protocols have other names for it, see queryCodes
// and ec2Codes.
func throttled(service string) error {
	e := &Error{Code: codeThrottling, Status: http.StatusBadRequest, Message: "Rate exceeded"}
	switch service {
	case "sqs":
		e.Code, e.QueryCode = "RequestThrottled", "RequestThrottled"
	case "eks":
		e.Status = http.StatusTooManyRequests
	}
	return e
}

// hangUp closes the connection without an answer.
func hangUp(x *exchange) {
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil { // HTTP/2 and recorders: the closest to no answer
		x.w.WriteHeader(http.StatusBadGateway)
		return
	}
	_ = conn.Close() // nobody hears of it
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// isRead reports whether an operation changes nothing.
func isRead(op string) bool {
	return strings.HasPrefix(op, "List") || strings.HasPrefix(op, "Describe") || strings.HasPrefix(op, "Get") || strings.HasPrefix(op, "Filter")
}

// after lets the faults that hit a call change its answer.
func (s *Server) after(x *exchange, out reply) reply {
	f := s.cfg.Faults
	if f == nil || !isRead(x.op) {
		return out
	}
	out = f.recall(x, out)
	keep := func(n int) int { return n }
	switch {
	case out.status != http.StatusOK:
		return out
	case x.faults[FaultEmpty] != nil:
		keep = func(int) int { return 0 }
	case x.faults[FaultPartial] != nil:
		keep = func(n int) int { return (n + 1) / 2 }
	default:
		return out
	}
	if out.contentType == typeXML {
		out.body = cutXML(out.body, keep)
	} else {
		out.body = cutJSON(out.body, keep)
	}
	return out
}

// cutJSON leaves of each list of an answer as many members as keep says, and no token for the rest.
func cutJSON(body []byte, keep func(int) int) []byte {
	var doc map[string]any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if dec.Decode(&doc) != nil {
		return body
	}
	for name, v := range doc {
		if list, ok := v.([]any); ok && name != "failures" {
			doc[name] = list[:keep(len(list))]
		}
	}
	delete(doc, "nextToken")
	delete(doc, "NextToken")
	changed, err := marshalJSON(doc)
	if err != nil {
		return body
	}
	return changed
}

// The memory of answers is bounded by number and size; the oldest go first.
const (
	maxRemembered      = 2000
	maxRememberedBytes = 16 << 20
)

// memory holds the last answers to reads.
type memory struct {
	answers map[string]*remembered
	order   []string // keys, oldest first
	bytes   int
}

// remembered is an answer and when it was given.
type remembered struct {
	reply
	at   time.Time
	turn int // how often it was asked for while FaultEventual stood
}

// recall returns the answer that a read gets: the remembered one under FaultStale, by turns under FaultEventual, else the
// fresh one, which it remembers.
func (f *Faults) recall(x *exchange, fresh reply) reply {
	key := strings.Join([]string{x.account, x.region, x.service.Name, x.op, string(x.requestKey())}, "\x00")
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.memory.answers[key]
	if s := x.faults[FaultStale]; s != nil && old != nil && !old.at.After(s.set) {
		return old.reply
	}
	if s := x.faults[FaultEventual]; s != nil && old != nil && f.now().Sub(old.at) < s.By {
		old.turn++
		if old.turn%2 == 1 {
			return old.reply
		}
		return fresh // and the remembered one stays what the other replica says, until it is too old
	}
	if x.faults[FaultStale] != nil {
		return fresh // nothing from before: a read that was not made then
	}
	f.memory.put(key, &remembered{reply: fresh, at: f.now()})
	return fresh
}

func (m *memory) put(key string, r *remembered) {
	if len(r.body) > maxRememberedBytes/8 {
		return
	}
	if m.answers == nil {
		m.answers = map[string]*remembered{}
	}
	if old := m.answers[key]; old != nil {
		m.bytes -= len(old.body)
	} else {
		m.order = append(m.order, key)
	}
	m.answers[key] = r
	m.bytes += len(r.body)
	for len(m.order) > maxRemembered || m.bytes > maxRememberedBytes {
		m.bytes -= len(m.answers[m.order[0]].body)
		delete(m.answers, m.order[0])
		m.order = m.order[1:]
	}
}

// bucket is a token bucket.
type bucket struct {
	tokens float64
	last   time.Time
}

// rateLimit is the burst and the refill per second of a category of calls.
type rateLimit struct {
	category      string
	burst, refill float64
	calls         []string
}

// ecsLimits are the request limits that AWS documents for ECS: by account and region, each shared by its calls.
func ecsLimits() []rateLimit {
	return []rateLimit{
		{"cluster read", 50, 20, []string{"ListClusters", "DescribeClusters"}},
		{"cluster modify", 20, 1, []string{"CreateCluster", "DeleteCluster", "UpdateCluster", "UpdateClusterSettings"}},
		{"service read", 100, 20, []string{"ListServices", "DescribeServices"}},
		{"service modify", 50, 5, []string{"CreateService", "UpdateService", "DeleteService"}},
		{"cluster resource read", 100, 20, []string{"ListTasks", "DescribeTasks", "ListContainerInstances", "DescribeContainerInstances", "ListAttributes"}},
		{"cluster resource modify", 100, 40, []string{"RunTask", "StartTask", "StopTask", "ExecuteCommand"}},
		{"task definition read", 50, 20, []string{"ListTaskDefinitions", "DescribeTaskDefinition", "ListTaskDefinitionFamilies"}},
		{"task definition modify", 20, 1, []string{"RegisterTaskDefinition", "DeregisterTaskDefinition"}},
		{"task definition delete", 5, 1, []string{"DeleteTaskDefinitions"}},
		{"tag read", 50, 20, []string{"ListTagsForResource"}},
		{"tag modify", 20, 10, []string{"TagResource", "UntagResource"}},
		{"setting read", 50, 20, []string{"ListAccountSettings"}},
		{"setting modify", 10, 1, []string{"PutAccountSetting", "PutAccountSettingDefault"}},
		{"list services by namespace", 10, 1, []string{"ListServicesByNamespace"}},
	}
}

// take takes a token for a call from its account's bucket; a call without a limit needs none.
func (f *Faults) take(account string, x *exchange) bool {
	if x.service.Name != "ecs" {
		return true
	}
	limits := ecsLimits()
	i := slices.IndexFunc(limits, func(l rateLimit) bool { return slices.Contains(l.calls, x.op) })
	if i < 0 {
		return true
	}
	limit, now := limits[i], f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	key := account + "/" + x.region + "/" + limit.category
	b := f.buckets[key]
	if b == nil {
		b = &bucket{tokens: limit.burst, last: now}
		f.buckets[key] = b
	}
	b.tokens = min(limit.burst, b.tokens+now.Sub(b.last).Seconds()*limit.refill)
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

package awsapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	smithy "github.com/aws/smithy-go"
)

// endpoint is a small AWS: STS and ECS behind one address.
type endpoint struct {
	*httptest.Server
	mu       sync.Mutex
	requests []string // "Operation accessKey"
	forms    []url.Values
	answers  map[string][]func(w http.ResponseWriter) // used up one by one before the default
}

func newEndpoint(t *testing.T) *endpoint {
	e := &endpoint{answers: map[string][]func(http.ResponseWriter){}}
	e.Server = httptest.NewServer(http.HandlerFunc(e.serve))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	op := r.Header.Get("X-Amz-Target")
	op = op[strings.LastIndex(op, ".")+1:]
	form, _ := url.ParseQuery(string(body))
	if op == "" {
		op = form.Get("Action")
	}
	_, cred, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	key, _, _ := strings.Cut(cred, "/")
	e.mu.Lock()
	e.requests, e.forms = append(e.requests, op+" "+key), append(e.forms, form)
	var answer func(http.ResponseWriter)
	if q := e.answers[op]; len(q) > 0 {
		answer, e.answers[op] = q[0], q[1:]
	}
	e.mu.Unlock()
	switch {
	case answer != nil:
		answer(w)
	case op == "AssumeRole":
		fmt.Fprintf(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	case op == "GetCallerIdentity":
		fmt.Fprint(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:sts::123456789012:assumed-role/x/y</Arn><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
	case op == "ListClusters":
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		fmt.Fprint(w, `{"clusterArns":["arn:aws:ecs:us-east-2:123456789012:cluster/a"]}`)
	default:
		http.Error(w, "unknown operation "+op, http.StatusNotFound)
	}
}

func (e *endpoint) answer(op string, status int, body string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answers[op] = append(e.answers[op], func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	})
}

func (e *endpoint) log() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.requests, ", ")
}

func open(t *testing.T, cfg Config) *Session {
	t.Helper()
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	cfg.Region, cfg.AccessKeyID, cfg.SecretAccessKey = "us-east-2", "AKIABASE", "secret"
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func reader(t *testing.T, s *Session, target Target) *ECS {
	t.Helper()
	e, err := NewECS(s, target)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestRoleIsAssumedOnceAndShared(t *testing.T) {
	e := newEndpoint(t)
	s := open(t, Config{Endpoint: e.URL})
	target := Target{RoleARN: "arn:aws:iam::123456789012:role/istiod-local", ExternalID: "mesh-1"}
	for _, region := range []string{"us-east-2", "eu-west-1"} {
		target.Region = region
		if _, err := reader(t, s, target).ListClusters(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := e.log(), "AssumeRole AKIABASE, ListClusters ASIAROLE, ListClusters ASIAROLE"; got != want {
		t.Errorf("requests = %s, want %s", got, want)
	}
	f := e.forms[0]
	if f.Get("RoleSessionName") != DefaultSessionName || f.Get("ExternalId") != "mesh-1" || f.Get("RoleArn") != target.RoleARN || f.Get("DurationSeconds") != "3600" {
		t.Errorf("AssumeRole = %v", f)
	}
}

func TestThrottlingIsRetriedAndObserved(t *testing.T) {
	e := newEndpoint(t)
	var calls []Call
	s := open(t, Config{Endpoint: e.URL, Observe: func(c Call) { calls = append(calls, c) }})
	e.answer("ListClusters", 400, `{"__type":"ThrottlingException","message":"Rate exceeded"}`)
	if _, err := reader(t, s, Target{Account: "123456789012"}).ListClusters(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 1 || calls[0].Attempts != 2 || calls[0].Kind != OK || calls[0].Operation != "ListClusters" || calls[0].Service != "ECS" ||
		calls[0].Region != "us-east-2" || calls[0].Account != "123456789012" || calls[0].Took <= 0 {
		t.Errorf("calls = %+v", calls)
	}
}

func TestKindsOverTheWire(t *testing.T) {
	tests := []struct {
		status int
		body   string
		want   Kind
	}{
		{400, `{"__type":"ThrottlingException","message":"Rate exceeded"}`, Throttled},
		{400, `{"__type":"com.amazonaws.ecs#ClusterNotFoundException","message":"Cluster not found."}`, NotFound},
		{400, `{"__type":"AccessDeniedException","message":"not authorized"}`, AccessDenied},
		{400, `{"__type":"ExpiredTokenException","message":"expired"}`, AccessDenied},
		{400, `{"__type":"UnrecognizedClientException","message":"invalid token"}`, AccessDenied},
		{400, `{"__type":"ClientException","message":"Unable to describe task definition."}`, NotFound},
		{400, `{"__type":"ClientException","message":"something else"}`, Invalid},
		{400, `{"__type":"InvalidParameterException","message":"x"}`, Invalid},
		{500, `{"__type":"ServerException","message":"x"}`, Unavailable},
		{503, `<html>`, Unavailable},
		{429, `slow`, Throttled},
		{403, `no`, AccessDenied},
	}
	for _, tt := range tests {
		t.Run(tt.body, func(t *testing.T) {
			e := newEndpoint(t)
			s := open(t, Config{Endpoint: e.URL, MaxAttempts: 1})
			e.answer("ListClusters", tt.status, tt.body)
			_, err := reader(t, s, Target{}).ListClusters(t.Context())
			if got := KindOf(err); got != tt.want {
				t.Errorf("KindOf(%v) = %v, want %v", err, got, tt.want)
			}
		})
	}
}

func TestKindOfTransport(t *testing.T) {
	e := newEndpoint(t)
	s := open(t, Config{Endpoint: e.URL, MaxAttempts: 1})
	e.Close()
	if _, err := reader(t, s, Target{}).ListClusters(t.Context()); !IsEndpointDown(err) {
		t.Errorf("KindOf(%v) = %v, want unavailable", err, KindOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reader(t, s, Target{}).ListClusters(ctx); KindOf(err) != Canceled {
		t.Errorf("KindOf(%v) = %v, want canceled", err, KindOf(err))
	}
	if KindOf(nil) != OK || KindOf(errors.New("x")) != Other {
		t.Error("KindOf of no error, or of any other")
	}
}

func TestCallTimeout(t *testing.T) {
	e := newEndpoint(t)
	release := make(chan struct{})
	defer close(release)
	e.answers["ListClusters"] = []func(http.ResponseWriter){func(http.ResponseWriter) { <-release }}
	s := open(t, Config{Endpoint: e.URL, MaxAttempts: 1, CallTimeout: 50 * time.Millisecond})
	if _, err := reader(t, s, Target{}).ListClusters(t.Context()); !IsEndpointDown(err) {
		t.Errorf("KindOf(%v) = %v, want unavailable", err, KindOf(err))
	}
}

// Trap 18: Pod Identity sessions carry tags; without sts:TagSession chaining is denied, and the text should say so.
func TestTrap18TagSessionAdvice(t *testing.T) {
	e := newEndpoint(t)
	s := open(t, Config{Endpoint: e.URL, MaxAttempts: 1})
	e.answers["AssumeRole"] = []func(http.ResponseWriter){func(w http.ResponseWriter) {
		w.WriteHeader(403)
		fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: arn:aws:sts::1:assumed-role/a/b is not authorized to perform: sts:TagSession on resource: arn:aws:iam::123456789012:role/istiod-local</Message></Error></ErrorResponse>`)
	}}
	role := "arn:aws:iam::123456789012:role/istiod-local"
	_, err := reader(t, s, Target{RoleARN: role}).ListClusters(t.Context())
	if !IsAccessDenied(err) {
		t.Fatalf("KindOf(%v) = %v, want access_denied", err, KindOf(err))
	}
	cause, fix := Advice(err, role)
	if !strings.Contains(cause, role) || !strings.Contains(fix, "sts:TagSession") {
		t.Errorf("Advice = %q, %q", cause, fix)
	}
}

func TestLimitsArePerAccountAndRegion(t *testing.T) {
	l := newLimitTable(0.5)
	a := l.limiter("1", "us-east-2", category("ECS", "ListTasks"))
	if a != l.limiter("1", "us-east-2", category("ECS", "DescribeTasks")) {
		t.Error("ListTasks and DescribeTasks draw from different buckets, AWS counts them together")
	}
	if a == l.limiter("2", "us-east-2", category("ECS", "ListTasks")) || a == l.limiter("1", "eu-west-1", category("ECS", "ListTasks")) {
		t.Error("two accounts or regions share a bucket")
	}
	if a.Burst() != 50 || a.Limit() != 10 {
		t.Errorf("burst %d, rate %v; want half of AWS's 100 and 20", a.Burst(), a.Limit())
	}
	for op := range categories {
		if _, ok := buckets[category("ECS", op)]; !ok {
			t.Errorf("%s has no bucket", op)
		}
	}
}

func TestLimitSlowsCallsDown(t *testing.T) {
	e := newEndpoint(t)
	var waited time.Duration
	s := open(t, Config{Endpoint: e.URL, RateShare: 0.05, Observe: func(c Call) { waited += c.Waited }}) // burst 2, then 1 per second
	r := reader(t, s, Target{})
	for range 2 {
		if _, err := r.ListClusters(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.ListClusters(ctx); err == nil {
		t.Error("the third call was not limited")
	}
	if got := strings.Count(e.log(), "ListClusters"); got != 2 {
		t.Errorf("%d requests were sent, want 2", got)
	}
}

func TestWhoAmI(t *testing.T) {
	e := newEndpoint(t)
	s := open(t, Config{Endpoint: e.URL})
	c, err := s.WhoAmI(t.Context(), Target{RoleARN: "arn:aws:iam::123456789012:role/x"})
	if err != nil || c.Account != "123456789012" || c.ARN != "arn:aws:sts::123456789012:assumed-role/x/y" {
		t.Errorf("WhoAmI = %+v, %v", c, err)
	}
}

func TestConfigurationIsReadWithoutTheNetwork(t *testing.T) {
	s := open(t, Config{Endpoint: "http://127.0.0.1:1"})
	if _, err := NewECS(s, Target{Region: "us-east-2"}); err != nil {
		t.Errorf("NewECS = %v", err)
	}
	if _, err := NewECS(s, Target{RoleARN: "istiod-local"}); err == nil {
		t.Error("a role that is no ARN was accepted")
	}
	if text := fmt.Sprint(Credentials{AccessKeyID: "AKIA", SecretAccessKey: "hush", SessionToken: "hush"}); strings.Contains(text, "hush") {
		t.Errorf("credentials print as %q", text)
	}
}

func TestAlreadyExists(t *testing.T) {
	for err, want := range map[error]bool{
		&smithy.GenericAPIError{Code: "EntityAlreadyExists"}:                                                           true,
		&smithy.GenericAPIError{Code: "InvalidGroup.Duplicate"}:                                                        true,
		&smithy.GenericAPIError{Code: "InvalidParameterException", Message: "Creation of service was not idempotent."}: true,
		&smithy.GenericAPIError{Code: "InvalidParameterException", Message: "no"}:                                      false,
		errors.New("EntityAlreadyExists"):                                                                              false,
	} {
		if got := IsAlreadyExists(err); got != want {
			t.Errorf("IsAlreadyExists(%v) = %v, want %v", err, got, want)
		}
	}
}

func TestPagesRefuseALoop(t *testing.T) {
	token := "same"
	if _, err := Pages("x", func(*string) ([]string, *string, error) { return []string{"a"}, &token, nil }); err == nil {
		t.Error("a list that never ends gave no error")
	}
	n := 0
	got, err := Pages("x", func(*string) ([]string, *string, error) {
		if n++; n == 3 {
			return nil, nil, errors.New("third page")
		}
		next := fmt.Sprint(n)
		return []string{"a"}, &next, nil
	})
	if err == nil {
		t.Errorf("pages = %v without an error, want one: a part is not the whole", got)
	}
}

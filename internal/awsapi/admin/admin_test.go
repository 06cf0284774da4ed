package admin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// endpoint answers raw ECS calls with what was queued for them.
type endpoint struct {
	*httptest.Server
	mu      sync.Mutex
	answers map[string][]func(http.ResponseWriter) // guarded by mu
}

func newEndpoint(t *testing.T) *endpoint {
	e := &endpoint{answers: map[string][]func(http.ResponseWriter){}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		op := r.Header.Get("X-Amz-Target")
		op = op[strings.LastIndex(op, ".")+1:]
		e.mu.Lock()
		defer e.mu.Unlock()
		if q := e.answers[op]; len(q) > 0 {
			e.answers[op] = q[1:]
			q[0](w)
			return
		}
		http.Error(w, "unexpected "+op, http.StatusNotFound)
	}))
	t.Cleanup(e.Close)
	return e
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

func admin(t *testing.T, cfg awsapi.Config) *Client {
	t.Helper()
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	cfg.Region, cfg.AccessKeyID, cfg.SecretAccessKey = "us-east-2", "AKIABASE", "secret"
	s, err := awsapi.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(t.Context(), s, awsapi.Target{Account: "123456789012"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Members that the SDK does not know yet survive reading and registering a task definition.
func TestRawTaskDefinitionKeepsUnknownMembers(t *testing.T) {
	e := newEndpoint(t)
	a := admin(t, awsapi.Config{Endpoint: e.URL})
	e.answer("DescribeTaskDefinition", 200, `{"taskDefinition":{"family":"echo","revision":3,"fromTheFuture":{"x":[1]}},"tags":[{"key":"k","value":"v"}]}`)
	e.answer("RegisterTaskDefinition", 200, `{"taskDefinition":{"taskDefinitionArn":"arn:new"}}`)
	def, tags, err := a.TaskDefinition(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"family": "echo", "revision": 3.0, "fromTheFuture": map[string]any{"x": []any{1.0}}}, def); diff != "" || tags["k"] != "v" {
		t.Errorf("TaskDefinition: tags %v, (-want +got):\n%s", tags, diff)
	}
	if arn, err := a.RegisterTaskDefinition(t.Context(), def, tags); err != nil || arn != "arn:new" {
		t.Errorf("RegisterTaskDefinition = %q, %v", arn, err)
	}
}

func TestRawCallsAreRetriedAndObserved(t *testing.T) {
	e := newEndpoint(t)
	var calls []awsapi.Call
	a := admin(t, awsapi.Config{Endpoint: e.URL, Observe: func(c awsapi.Call) { calls = append(calls, c) }})
	e.answer("DescribeTaskDefinition", 400, `{"__type":"ThrottlingException","message":"Rate exceeded"}`)
	e.answer("DescribeTaskDefinition", 503, `<html>`)
	e.answer("DescribeTaskDefinition", 200, `{"taskDefinition":{"family":"echo"}}`)
	if _, _, err := a.TaskDefinition(t.Context(), "echo"); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 1 || calls[0].Attempts != 3 || calls[0].Kind != awsapi.OK || calls[0].Account != "123456789012" {
		t.Errorf("calls = %+v", calls)
	}
	e.answer("DescribeTaskDefinition", 400, `{"__type":"ClientException","message":"Unable to describe task definition."}`)
	if _, _, err := a.TaskDefinition(t.Context(), "absent"); !awsapi.IsNotFound(err) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("TaskDefinition of an absent family = %v (%v)", err, awsapi.KindOf(err))
	}
	if calls[1].Attempts != 1 {
		t.Errorf("a refusal was tried %d times", calls[1].Attempts)
	}
}

func TestServiceDetail(t *testing.T) {
	e := newEndpoint(t)
	a := admin(t, awsapi.Config{Endpoint: e.URL})
	e.answer("DescribeServices", 200, `{"services":[{"capacityProviderStrategy":[{"capacityProvider":"FARGATE_SPOT"}],"platformVersion":"1.4.0","deploymentController":{"type":"CODE_DEPLOY"},
		"deploymentConfiguration":{"deploymentCircuitBreaker":{"enable":true,"rollback":true}},"events":[{"createdAt":1.5,"message":"m"}]}]}`)
	got, err := a.ServiceDetail(t.Context(), "c", "s")
	want := ServiceDetail{LaunchType: "FARGATE", PlatformVersion: "1.4.0", Controller: "CODE_DEPLOY", Breaker: true, Rollback: true, Events: []ServiceEvent{{At: time.UnixMilli(1500).UTC(), Message: "m"}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("ServiceDetail: %v (-want +got):\n%s", err, diff)
	}
	e.answer("DescribeServices", 200, `{"services":[]}`)
	if _, err := a.ServiceDetail(t.Context(), "c", "s"); err == nil {
		t.Error("a service that is not there was described")
	}
}

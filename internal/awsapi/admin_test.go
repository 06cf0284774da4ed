package awsapi

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func admin(t *testing.T, s *Session) *Admin {
	t.Helper()
	a, err := NewAdmin(t.Context(), s, Target{Account: "123456789012"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Members that the SDK does not know yet survive reading and registering a task definition.
func TestRawTaskDefinitionKeepsUnknownMembers(t *testing.T) {
	e := newEndpoint(t)
	a := admin(t, open(t, Config{Endpoint: e.URL}))
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
	var calls []Call
	a := admin(t, open(t, Config{Endpoint: e.URL, Observe: func(c Call) { calls = append(calls, c) }}))
	e.answer("DescribeTaskDefinition", 400, `{"__type":"ThrottlingException","message":"Rate exceeded"}`)
	e.answer("DescribeTaskDefinition", 503, `<html>`)
	e.answer("DescribeTaskDefinition", 200, `{"taskDefinition":{"family":"echo"}}`)
	if _, _, err := a.TaskDefinition(t.Context(), "echo"); err != nil {
		t.Fatal(err)
	}
	if len(calls) != 1 || calls[0].Attempts != 3 || calls[0].Kind != OK || calls[0].Account != "123456789012" {
		t.Errorf("calls = %+v", calls)
	}
	e.answer("DescribeTaskDefinition", 400, `{"__type":"ClientException","message":"Unable to describe task definition."}`)
	if _, _, err := a.TaskDefinition(t.Context(), "absent"); !IsNotFound(err) || !strings.Contains(err.Error(), "absent") {
		t.Errorf("TaskDefinition of an absent family = %v (%v)", err, KindOf(err))
	}
	if calls[1].Attempts != 1 {
		t.Errorf("a refusal was tried %d times", calls[1].Attempts)
	}
}

package awsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fakeQueue is SQS in its JSON 1.0 protocol: messages come again until they are deleted.
type fakeQueue struct {
	mu       sync.Mutex
	messages map[string]string // body by receipt
	requests []string
	throttle int
}

func (q *fakeQueue) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	op := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	q.requests = append(q.requests, op+" "+r.Header.Get("Content-Type"))
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	if q.throttle > 0 {
		q.throttle--
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slow down"}`)
		return
	}
	var in struct {
		QueueURL            string `json:"QueueUrl"`
		MaxNumberOfMessages int
		WaitTimeSeconds     int
		Entries             []struct{ ID, ReceiptHandle string }
	}
	if err := json.Unmarshal(body, &in); err != nil || !strings.HasSuffix(in.QueueURL, "/123456789012/ecs-events") {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"no such queue"}`)
		return
	}
	switch op {
	case "ReceiveMessage":
		type message struct{ MessageId, ReceiptHandle, Body string } //nolint:revive // as on the wire
		var out struct{ Messages []message }
		for receipt, body := range q.messages {
			if len(out.Messages) < in.MaxNumberOfMessages {
				out.Messages = append(out.Messages, message{"m-" + receipt, receipt, body})
			}
		}
		_ = json.NewEncoder(w).Encode(out)
	case "DeleteMessageBatch":
		for _, e := range in.Entries {
			delete(q.messages, e.ReceiptHandle)
		}
		fmt.Fprint(w, `{"Successful":[],"Failed":[]}`)
	}
}

func TestQueue(t *testing.T) {
	q := &fakeQueue{messages: map[string]string{}, throttle: 1}
	for i := range 12 {
		q.messages[fmt.Sprintf("r%02d", i)] = fmt.Sprintf("body %d", i)
	}
	srv := httptest.NewServer(q)
	t.Cleanup(srv.Close)
	var calls []Call
	s := open(t, Config{Endpoint: srv.URL, Observe: func(c Call) { calls = append(calls, c) }})
	reader, err := NewQueue(s, Target{Account: "123456789012"}, srv.URL+"/123456789012/ecs-events")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for len(seen) < 12 {
		bodies, receipts, err := reader.Receive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(bodies) == 0 || len(bodies) > 10 || len(bodies) != len(receipts) {
			t.Fatalf("%d bodies, %d receipts", len(bodies), len(receipts))
		}
		for _, b := range bodies {
			seen[b] = true
		}
		if err := reader.Delete(t.Context(), receipts); err != nil {
			t.Fatal(err)
		}
	}
	if len(q.messages) != 0 {
		t.Errorf("%d messages are left", len(q.messages))
	}
	if calls[0].Service != "SQS" || calls[0].Attempts != 2 || calls[0].Kind != OK {
		t.Errorf("first call = %+v, want one that was throttled once", calls[0])
	}
	want := "ReceiveMessage application/x-amz-json-1.0"
	if diff := cmp.Diff(want, q.requests[0]); diff != "" {
		t.Errorf("on the wire (-want +got):\n%s", diff)
	}
}

func TestQueueErrorsHaveKinds(t *testing.T) {
	srv := httptest.NewServer(&fakeQueue{})
	t.Cleanup(srv.Close)
	q, err := NewQueue(open(t, Config{Endpoint: srv.URL}), Target{}, srv.URL+"/123456789012/other")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := q.Receive(t.Context()); KindOf(err) != NotFound {
		t.Errorf("a queue that does not exist: %v (%v), want not_found", err, KindOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := q.Receive(ctx); KindOf(err) != Canceled {
		t.Errorf("after cancel: %v (%v)", err, KindOf(err))
	}
}

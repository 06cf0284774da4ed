package images

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestLoadCountsEveryRequest lets every fifth request fail in one of two ways, and wants all of them told.
func TestLoadCountsEveryRequest(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) % 10 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 5:
			panic(http.ErrAbortHandler)
		}
	}))
	defer srv.Close()
	var out bytes.Buffer
	if err := runLoad(t.Context(), []string{"--url", srv.URL, "--rate", "200", "--for", "400ms"}, &out, &out); err != nil {
		t.Fatal(err)
	}
	var r LoadResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if r.Sent != int(n.Load()) || r.Sent < 60 || r.Sent+r.Skipped > 90 {
		t.Errorf("sent %d and skipped %d of 80 due, the server saw %d", r.Sent, r.Skipped, n.Load())
	}
	if want := r.Sent/10 + (r.Sent+5)/10; r.Failed != want || r.OK != r.Sent-want || len(r.Failures) != want {
		t.Errorf("%+v: want %d failures", r, want)
	}
	for _, f := range r.Failures {
		if !strings.Contains(f.Error, "503") && !strings.Contains(f.Error, "EOF") {
			t.Errorf("failure %q", f.Error)
		}
	}
	if err := runLoad(t.Context(), []string{"--rate", "5"}, &out, &out); err == nil {
		t.Error("a load without a URL succeeded")
	}
}

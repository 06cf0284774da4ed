package images

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func echoServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(EchoHandler([]string{"HOSTNAME=web-0", "PORT=8080"}, slog.New(slog.DiscardHandler)))
	t.Cleanup(s.Close)
	return s
}

func TestEchoHasTheShapeOfTheImage(t *testing.T) {
	s := echoServer(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/a/b?x=1&y=2&y=3", strings.NewReader(`{"k":[1,2]}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "echo-service.ecs-demo-1.ecs.local:8080"
	request.Header = http.Header{"Content-Type": {"application/json"}, "Cookie": {"c=d"}, "X-Test": {"v"}, "User-Agent": {"test"}}
	response, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got any
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"host": map[string]any{"hostname": "echo-service.ecs-demo-1.ecs.local", "ip": "::ffff:127.0.0.1", "ips": []any{}},
		"http": map[string]any{"method": "POST", "baseUrl": "", "originalUrl": "/a/b?x=1&y=2&y=3", "protocol": "http"},
		"request": map[string]any{
			"params": map[string]any{"0": "/a/b"}, "query": map[string]any{"x": "1", "y": []any{"2", "3"}}, "cookies": map[string]any{"c": "d"},
			"body": map[string]any{"k": []any{1.0, 2.0}},
			"headers": map[string]any{
				"host": "echo-service.ecs-demo-1.ecs.local:8080", "content-type": "application/json", "cookie": "c=d", "x-test": "v",
				"user-agent": "test", "content-length": "11", "accept-encoding": "gzip",
			},
		},
		"environment": map[string]any{"HOSTNAME": "web-0", "PORT": "8080"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestEchoBounds(t *testing.T) {
	s := echoServer(t)
	for _, test := range []struct {
		path, body string
		want       int
	}{
		{"/", strings.Repeat("x", maxEchoBody), 200}, {"/", strings.Repeat("x", maxEchoBody+1), 413},
		{"/?echo_code=503", "", 503}, {"/?echo_code=99", "", 200}, {"/?echo_code=x", "", 200}, {"/?echo_time=10", "", 200},
	} {
		response, err := s.Client().Post(s.URL+test.path, "text/plain", strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		if response.StatusCode != test.want {
			t.Errorf("%s with %d bytes = %d, want %d", test.path, len(test.body), response.StatusCode, test.want)
		}
	}
}

func TestRunEchoServesUntilItIsAskedToEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runEcho(ctx, []string{"HTTP_PORT=1", "PORT=" + port}, io.Discard) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); ; <-tick.C {
		response, err := http.Get("http://127.0.0.1:" + port + "/")
		if err == nil {
			_ = response.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("runEcho = %v", err)
	}
	for _, port := range []string{"0", "x", "70000"} {
		if err := runEcho(t.Context(), []string{"PORT=" + port}, io.Discard); err == nil {
			t.Errorf("PORT=%s was accepted", port)
		}
	}
}

func TestRunRefusesUnknownPrograms(t *testing.T) {
	for _, args := range [][]string{nil, {"other"}} {
		var errOut bytes.Buffer
		if code := Run(args, nil, io.Discard, &errOut); code != 2 || errOut.Len() == 0 {
			t.Errorf("Run(%q) = %d %q, want 2 and a reason", args, code, errOut.String())
		}
	}
}

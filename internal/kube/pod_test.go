package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// streamServer plays the parts of an API server that stream, over SPDY only, so that the fall back from WebSocket is
// exercised too. Exec runs "cat" (copies standard input), "fail" (exit code 56) and prints the command otherwise.
// Port-forward echoes on port 80 and refuses others.
type streamServer struct{}

func (streamServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/log"):
		fmt.Fprintf(w, "container=%s tail=%s\n", r.URL.Query().Get("container"), r.URL.Query().Get("tailLines"))
	case r.Method == http.MethodGet:
		http.Error(w, "no websocket here", http.StatusForbidden)
	case strings.HasSuffix(r.URL.Path, "/exec"):
		serveExec(w, r)
	case strings.HasSuffix(r.URL.Path, "/portforward"):
		serveForward(w, r)
	default:
		http.NotFound(w, r)
	}
}

func upgrade(w http.ResponseWriter, r *http.Request, protocol string) (httpstream.Connection, chan httpstream.Stream) {
	streams := make(chan httpstream.Stream, 16)
	if _, err := httpstream.Handshake(r, w, []string{protocol}); err != nil {
		return nil, nil
	}
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, _ <-chan struct{}) error {
		streams <- s
		return nil
	})
	return conn, streams
}

func serveExec(w http.ResponseWriter, r *http.Request) {
	conn, streams := upgrade(w, r, "v4.channel.k8s.io")
	if conn == nil {
		return
	}
	defer conn.Close()
	want := 3 // error, stdout, stderr
	if r.URL.Query().Get("stdin") == "true" {
		want++
	}
	byType := map[string]httpstream.Stream{}
	for range want {
		s := <-streams
		byType[s.Headers().Get("streamType")] = s
	}
	status := metav1.Status{Status: metav1.StatusSuccess}
	switch command := strings.Join(r.URL.Query()["command"], " "); command {
	case "cat":
		_, _ = io.Copy(byType["stdout"], byType["stdin"])
	case "fail":
		_, _ = io.WriteString(byType["stderr"], "curl: (56) Recv failure: Connection reset by peer\n")
		status = metav1.Status{Status: metav1.StatusFailure, Reason: "NonZeroExitCode", Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: "56"}}}}
	default:
		_, _ = io.WriteString(byType["stdout"], command)
	}
	_ = byType["stdout"].Close()
	_ = byType["stderr"].Close()
	_ = json.NewEncoder(byType["error"]).Encode(status)
	_ = byType["error"].Close()
	<-conn.CloseChan()
}

func serveForward(w http.ResponseWriter, r *http.Request) {
	conn, streams := upgrade(w, r, "portforward.k8s.io")
	if conn == nil {
		return
	}
	defer conn.Close()
	failure, data := <-streams, <-streams
	if data.Headers().Get("port") != "80" {
		_, _ = io.WriteString(failure, "connection refused")
		_ = failure.Close()
		<-conn.CloseChan()
		return
	}
	_, _ = io.Copy(data, data)
	_ = data.Close()
	<-conn.CloseChan()
}

func streamClient(t *testing.T) *kube.Client {
	t.Helper()
	srv := httptest.NewTLSServer(streamServer{})
	t.Cleanup(srv.Close)
	file := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: c, cluster: {insecure-skip-tls-verify: true, server: '" + srv.URL + "'}}]\nusers: [{name: u, user: {token: x}}]\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := kube.New(kube.Config{Kubeconfig: file, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExec(t *testing.T) {
	c := streamClient(t)
	tests := []struct {
		name    string
		command []string
		stdin   io.Reader
		code    int
		out     string
		errOut  string
	}{
		{"output", []string{"echo", "hello"}, nil, 0, "echo hello", ""},
		{"input", []string{"cat"}, strings.NewReader("through"), 0, "through", ""},
		{"exit code", []string{"fail"}, nil, 56, "", "curl: (56) Recv failure: Connection reset by peer\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code, err := c.Exec(t.Context(), kube.ExecSpec{Namespace: "default", Pod: "shell", Command: tt.command, Stdin: tt.stdin, Stdout: &out, Stderr: &errOut})
			if err != nil || code != tt.code || out.String() != tt.out || errOut.String() != tt.errOut {
				t.Errorf("Exec = %d, %v, %q, %q; want %d, %q, %q", code, err, &out, &errOut, tt.code, tt.out, tt.errOut)
			}
		})
	}
}

func TestLogs(t *testing.T) {
	var out bytes.Buffer
	if err := streamClient(t).Logs(t.Context(), kube.LogSpec{Namespace: "istio-system", Pod: "ztunnel-1", Container: "istio-proxy", Tail: 100}, &out); err != nil || out.String() != "container=istio-proxy tail=100\n" {
		t.Errorf("Logs = %q, %v", &out, err)
	}
}

func TestDialPod(t *testing.T) {
	c := streamClient(t)
	conn, err := c.Dial(t.Context(), "istio-system", "ztunnel-1", 80)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "ping"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "ping" {
		t.Errorf("read %q, %v", buf, err)
	}
	if half, ok := conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		t.Error("CloseWrite does not work")
	}
	if _, err := conn.Read(buf); err != io.EOF {
		t.Errorf("after the other side closed: %v, want EOF", err)
	}
	if err := conn.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	t.Run("refused", func(t *testing.T) {
		conn, err := c.Dial(t.Context(), "istio-system", "ztunnel-1", 81)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Read(buf); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("read from a closed port: %v, want what the other side said", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		conn, err := c.Dial(t.Context(), "istio-system", "ztunnel-1", 80)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(buf); err == nil {
			t.Error("a read outlived its deadline")
		}
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		conn, err := c.Dial(ctx, "istio-system", "ztunnel-1", 80)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		cancel()
		if _, err := conn.Read(buf); err == nil {
			t.Error("a read outlived its context")
		}
	})
}

func TestStreamsNeedAConnection(t *testing.T) {
	c := kube.NewForClients(nil, nil, slog.New(slog.DiscardHandler))
	if _, err := c.Exec(t.Context(), kube.ExecSpec{}); err == nil {
		t.Error("Exec worked without a connection")
	}
	if _, err := c.Dial(t.Context(), "a", "b", 1); err == nil {
		t.Error("Dial worked without a connection")
	}
	if err := c.Ready(t.Context()); err == nil || diag.CodeOf(err) != "" {
		t.Errorf("Ready = %v", err)
	}
}

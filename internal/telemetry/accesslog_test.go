package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

func testConn() *Conn {
	return &Conn{
		Reporter: Source, MutualTLS: true,
		Source: Party{Instance: "shell-1", Workload: "shell", Namespace: "default", CanonicalName: "shell", CanonicalRevision: "v1",
			App: "shell", Cluster: "Kubernetes", Region: "us-east-2", Zone: "us-east-2a",
			Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "shell"}},
		Destination: Party{Instance: "echo-1", Workload: "echo", Namespace: "ecs-demo-1", CanonicalName: "echo", App: "echo", Cluster: "Kubernetes"},
		Service:     mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: "echo.ecs-demo-1.ecs.local"}, ServiceName: "echo",
		SrcAddr: netip.MustParseAddrPort("10.0.64.2:4000"), DstAddr: netip.MustParseAddrPort("10.0.128.9:15008"),
		HBONEAddr: "10.0.128.9:8080", Start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// newTestLog returns an access log with a fixed clock that writes to the buffer.
func newTestLog(t *testing.T, f Format, filter string) (*AccessLog, *bytes.Buffer) {
	t.Helper()
	levels, err := NewLevels(filter)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := NewAccessLog(slog.New(NewHandler(&b, f, levels)))
	a.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 13_500_000, time.UTC) }
	return a, &b
}

// afterTime drops the first column, which is the wall clock, after checking its form.
func afterTime(t *testing.T, line string) string {
	t.Helper()
	stamp, rest, ok := strings.Cut(line, "\t")
	if _, err := time.Parse("2006-01-02T15:04:05.000000Z", stamp); err != nil || !ok {
		t.Errorf("line %q does not begin with a time in microseconds: %v", line, err)
	}
	return rest
}

func TestAccessLogText(t *testing.T) {
	a, b := newTestLog(t, Text, "")
	a.Opened(testConn()) // debug: not written at info
	c := testConn()
	a.Closed(c, 900, 81, OK, nil)
	want := "info\taccess\tconnection complete\t" +
		`src.addr=10.0.64.2:4000 src.workload="shell-1" src.namespace="default" src.identity="spiffe://cluster.local/ns/default/sa/shell" src.cluster="Kubernetes" ` +
		`dst.addr=10.0.128.9:15008 dst.hbone_addr=10.0.128.9:8080 dst.service="echo.ecs-demo-1.ecs.local" dst.workload="echo-1" dst.namespace="ecs-demo-1" dst.cluster="Kubernetes" ` +
		`direction="outbound" bytes_sent=81 bytes_recv=900 duration="13ms"` + "\n"
	if diff := cmp.Diff(want, afterTime(t, b.String())); diff != "" {
		t.Errorf("access log (-want +got):\n%s", diff)
	}
}

func TestAccessLogDenied(t *testing.T) {
	a, b := newTestLog(t, Text, "")
	c := testConn()
	c.Reporter = Destination
	c.Policy = mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "deny-all"}
	c.Rule = 2
	a.Closed(c, 7, 5, Denied, errors.New("connection closed due to policy rejection: explicitly denied by: ecs-demo-1/deny-all"))
	got := afterTime(t, b.String())
	if !strings.HasPrefix(got, "error\taccess\tconnection complete\t") {
		t.Errorf("line = %q, want level error", got)
	}
	end := `direction="inbound" bytes_sent=7 bytes_recv=5 duration="13ms" error="connection closed due to policy rejection: explicitly denied by: ecs-demo-1/deny-all" policy="ecs-demo-1/deny-all" rule=2 reason=DENY` + "\n"
	if !strings.HasSuffix(got, end) {
		t.Errorf("line = %q, want the end %q", got, end)
	}
}

func TestAccessLogJSON(t *testing.T) {
	a, b := newTestLog(t, JSON, "")
	a.Closed(testConn(), 900, 81, OK, nil)
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatalf("line %q is not JSON: %v", b, err)
	}
	for k, want := range map[string]any{"level": "info", "scope": "access", "message": "connection complete", "src.addr": "10.0.64.2:4000",
		"dst.hbone_addr": "10.0.128.9:8080", "bytes_sent": 81.0, "bytes_recv": 900.0, "duration": "13ms", "direction": "outbound"} {
		if got[k] != want {
			t.Errorf("%s = %v, want %v", k, got[k], want)
		}
	}
	if _, ok := got["error"]; ok {
		t.Error("a connection without error has an error field")
	}
}

func TestEarlyDeny(t *testing.T) {
	a, b := newTestLog(t, Text, "")
	a.EarlyDeny(&Conn{Reporter: Source, SrcAddr: netip.MustParseAddrPort("127.0.0.1:1"), DstAddr: netip.MustParseAddrPort("240.240.0.1:80")}, errors.New("no healthy upstream: 240.240.0.1:80"))
	want := "warn\taccess\tconnection failed\tsrc.addr=127.0.0.1:1 dst.addr=240.240.0.1:80 direction=\"outbound\" error=\"no healthy upstream: 240.240.0.1:80\"\n"
	if diff := cmp.Diff(want, afterTime(t, b.String())); diff != "" {
		t.Errorf("early deny (-want +got):\n%s", diff)
	}
}

// A peer chooses the authority that is logged without quotes; it must not be able to forge fields.
func TestBareTextCannotForge(t *testing.T) {
	for _, evil := range []string{"a:1 error=\"x\"", "a:1\nb", "a=b", "a\tb", `a"b`} {
		a, b := newTestLog(t, Text, "")
		c := testConn()
		c.HBONEAddr = evil
		a.Closed(c, 0, 0, OK, nil)
		if n := strings.Count(b.String(), "\n"); n != 1 {
			t.Errorf("authority %q made %d lines, want 1", evil, n)
		}
		if strings.Contains(b.String(), "dst.hbone_addr="+evil) {
			t.Errorf("authority %q was written without quotes", evil)
		}
	}
}

func TestHandlerScopesAndGroups(t *testing.T) {
	levels, err := NewLevels("warn,xds=debug")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	log := slog.New(NewHandler(&b, Text, levels))
	log.Info("dropped")
	log.With(logattr.Scope("xds.client")).WithGroup("g").Debug("kept", slog.Int("n", 3), slog.Group("h", slog.String("s", "x y")))
	want := "debug\txds.client\tkept\tg.n=3 g.h.s=\"x y\"\n"
	if diff := cmp.Diff(want, afterTime(t, b.String())); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
}

func TestLevels(t *testing.T) {
	l, err := NewLevels("")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		filter string
		reset  bool
		want   string
		bad    bool
	}{
		{filter: "debug", want: "debug"},
		{filter: "access=off", want: "access=off,debug"},
		{filter: "ztunnel::proxy::outbound=trace,dns:error", want: "access=off,dns=error,proxy.outbound=trace,debug"},
		{filter: "loud", bad: true, want: "access=off,dns=error,proxy.outbound=trace,debug"},
		{filter: "level=info", reset: true, want: "level=info,info"},
		{filter: "warn", reset: true, want: "warn"},
		{filter: "", reset: true, want: "info"},
	} {
		err := l.Set(step.filter, step.reset)
		if (err != nil) != step.bad {
			t.Errorf("Set(%q) = %v", step.filter, err)
		}
		if got := l.String(); got != step.want {
			t.Errorf("after Set(%q, %v): %q, want %q", step.filter, step.reset, got, step.want)
		}
	}
}

func TestQueuedWriterKeepsEverything(t *testing.T) {
	var b bytes.Buffer
	w := NewQueuedWriter(&b)
	line := []byte(strings.Repeat("x", 1000) + "\n")
	for range 3000 { // three times what the queue holds
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := b.Len(), 3000*len(line); got != want {
		t.Errorf("%d bytes were written, want %d", got, want)
	}
	if _, err := w.Write(line); !errors.Is(err, ErrWriterClosed) {
		t.Errorf("Write after Close = %v, want ErrWriterClosed", err)
	}
}

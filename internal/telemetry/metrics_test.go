package telemetry

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const connLine = `{connection_security_policy="mutual_tls",destination_app="echo",destination_canonical_revision="unknown",destination_canonical_service="echo",destination_cluster="Kubernetes",destination_principal="unknown",destination_region="unknown",destination_service="echo.ecs-demo-1.ecs.local",destination_service_name="echo",destination_service_namespace="ecs-demo-1",destination_version="unknown",destination_workload="echo",destination_workload_namespace="ecs-demo-1",destination_zone="unknown",reporter="source",request_protocol="tcp",response_flags="FLAG",source_app="shell",source_canonical_revision="v1",source_canonical_service="shell",source_cluster="Kubernetes",source_principal="spiffe://cluster.local/ns/default/sa/shell",source_region="us-east-2",source_version="v1",source_workload="shell",source_workload_namespace="default",source_zone="us-east-2a"}`

func scrape(t *testing.T, reg *prometheus.Registry, m *Metrics) string {
	t.Helper()
	rec := httptest.NewRecorder()
	MetricsHandler(reg, m).ServeHTTP(rec, httptest.NewRequest("GET", "/stats/prometheus", nil))
	return rec.Body.String()
}

func newTestMetrics(t *testing.T) (*prometheus.Registry, *Metrics) {
	t.Helper()
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg, "test")
	if err != nil {
		t.Fatal(err)
	}
	return reg, m
}

func TestConnectionMetrics(t *testing.T) {
	reg, m := newTestMetrics(t)
	c := testConn()
	o := m.Opened(c)
	var sent, received uint64
	o.Transfer(c, func() (uint64, uint64) { return sent, received })
	sent, received = 100, 10
	text := scrape(t, reg, m) // while the connection lives
	ok := strings.ReplaceAll(connLine, "FLAG", "-")
	for _, want := range []string{
		"istio_tcp_connections_opened_total" + ok + " 1",
		"istio_tcp_sent_bytes_total" + ok + " 100",
		"istio_tcp_received_bytes_total" + ok + " 10",
		`istio_tcp_sockets_open{reporter="source"} 1`,
		`istio_build{component="ztunnel",tag="test"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
	if strings.Contains(text, "istio_tcp_connections_closed_total{") || strings.Contains(text, "istio_tcp_connections_failed_total{") {
		t.Error("an open connection shows a closed or failed series")
	}
	sent = 150
	o.Closed(c, Denied)
	text = scrape(t, reg, m)
	for _, want := range []string{
		"istio_tcp_sent_bytes_total" + ok + " 150",
		"istio_tcp_connections_closed_total" + strings.ReplaceAll(connLine, "FLAG", "DENY") + " 1",
		"istio_tcp_connections_failed_total" + strings.ReplaceAll(connLine, "FLAG", "DENY") + " 1",
		`istio_tcp_sockets_open{reporter="source"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestNilMetrics(t *testing.T) {
	var m *Metrics
	o := m.Opened(testConn())
	o.Transfer(testConn(), nil)
	o.Closed(testConn(), OK)
	m.Flush()
	m.LimitReached("x")
	m.EndpointWait(true)
	m.DNSRequest("A", "udp", "", "")
	m.ProxyStarted()
	var a *AccessLog
	a.Closed(testConn(), 0, 0, OK, nil)
}

func TestLabelSetsAreBounded(t *testing.T) {
	reg, m := newTestMetrics(t)
	m.maxSeries = 2
	for i := range 5 {
		c := testConn()
		c.Source.Namespace = strings.Repeat("n", i+1)
		m.Opened(c)
	}
	if n := testutil.ToFloat64(m.overflow); n != 3 {
		t.Errorf("%v label sets overflowed, want 3", n)
	}
	if n := strings.Count(scrape(t, reg, m), "istio_tcp_connections_opened_total{"); n != 3 {
		t.Errorf("%d series of opened connections, want 2 and the rest together", n)
	}
}

// A workload's instance name must not become a label, or every pod would be a series.
func TestInstanceIsNoLabel(t *testing.T) {
	_, m := newTestMetrics(t)
	a, b := testConn(), testConn()
	b.Source.Instance = "shell-2"
	m.Opened(a)
	m.Opened(b)
	if n := m.nSeries.Load(); n != 1 {
		t.Errorf("two instances of a workload make %d label sets, want 1", n)
	}
}

func TestMetricNames(t *testing.T) {
	reg, m := newTestMetrics(t)
	o := m.Opened(testConn())
	o.Closed(testConn(), ConnectFailure)
	m.DNSRequest("A", "udp", "shell", "v1")
	m.XDSTerminated("Complete")
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		// Istio's own names are not ours to improve.
		if !strings.HasPrefix(p.Metric, "workload_manager_") && !strings.HasPrefix(p.Metric, "istio_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestExpiry(t *testing.T) {
	reg, m := newTestMetrics(t)
	var at time.Time
	value := func() float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "isthmus_certificate_expiration_timestamp_seconds" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatal("there is no gauge")
		return 0
	}
	if got := value(); got != 0 {
		t.Errorf("before there is a manager: %v, want 0", got)
	}
	m.WatchExpiry(func() time.Time { return at })
	if got := value(); got != 0 {
		t.Errorf("without certificates: %v, want 0", got)
	}
	if at = time.UnixMilli(1_800_000_000_500); value() != 1_800_000_000.5 {
		t.Errorf("expiry = %v", value())
	}
}

func BenchmarkConnectionMetrics(b *testing.B) {
	m, err := NewMetrics(prometheus.NewRegistry(), "")
	if err != nil {
		b.Fatal(err)
	}
	c := testConn()
	b.ReportAllocs()
	for b.Loop() {
		o := m.Opened(c)
		o.Transfer(c, func() (uint64, uint64) { return 1, 1 })
		o.Closed(c, OK)
	}
}

// Scrapers get the format that they ask for, compressed if they can take it.
func TestFormats(t *testing.T) {
	reg, m := newTestMetrics(t)
	m.Opened(testConn()).Closed(testConn(), OK)
	srv := httptest.NewServer(MetricsHandler(reg, m))
	defer srv.Close()
	const open = "application/openmetrics-text; version=1.0.0; charset=utf-8"
	for _, c := range []struct {
		accept, encoding       string
		contentType, gotEncode string
		end                    bool // OpenMetrics ends with a mark
	}{
		{contentType: "text/plain; version=0.0.4; charset=utf-8"},
		{accept: "*/*", contentType: "text/plain; version=0.0.4; charset=utf-8"},
		{accept: "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2", contentType: open, end: true},
		{accept: "text/plain;version=0.0.4", encoding: "gzip", contentType: "text/plain; version=0.0.4; charset=utf-8", gotEncode: "gzip"},
		{accept: "application/openmetrics-text;version=1.0.0", encoding: "gzip, deflate", contentType: open, gotEncode: "gzip", end: true},
		{encoding: "identity", contentType: "text/plain; version=0.0.4; charset=utf-8"},
		{encoding: "br", contentType: "text/plain; version=0.0.4; charset=utf-8"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", c.accept)
		req.Header.Set("Accept-Encoding", c.encoding)
		resp, err := (&http.Transport{DisableCompression: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body := io.Reader(resp.Body)
		if resp.Header.Get("Content-Encoding") == "gzip" {
			if body, err = gzip.NewReader(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Content-Type"); !strings.HasPrefix(got, c.contentType) || resp.Header.Get("Content-Encoding") != c.gotEncode {
			t.Errorf("Accept %q, Accept-Encoding %q = %q, %q; want %q, %q", c.accept, c.encoding, got, resp.Header.Get("Content-Encoding"), c.contentType, c.gotEncode)
		}
		if !strings.Contains(string(text), "istio_tcp_connections_opened_total{") || strings.HasSuffix(string(text), "# EOF\n") != c.end {
			t.Errorf("Accept %q: the text is not in that format:\n%.200s", c.accept, text)
		}
	}
}

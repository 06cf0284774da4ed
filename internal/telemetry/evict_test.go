package telemetry

import (
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

func scrapeAll(t *testing.T, reg *prometheus.Registry, m *Metrics) string {
	t.Helper()
	rec := httptest.NewRecorder()
	MetricsHandler(reg, m).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

func peer(name string) *Conn { return &Conn{Destination: Party{Workload: name}} }

// A peer that nobody talked to for long disappears from the metrics, one with an open connection does not, and one
// that comes back starts anew.
func TestEvict(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg, "test")
	if err != nil {
		t.Fatal(err)
	}
	gone, there := m.Opened(peer("gone")), m.Opened(peer("there"))
	there.Transfer(peer("there"), func() (uint64, uint64) { return 5, 7 })
	gone.Closed(peer("gone"), Denied)
	m.OnDemandDNS(Party{Workload: "shell"}, mesh.Identity{}, "gw.example.org")
	m.DNSRequest("A", "udp", "asker", "v1")
	m.DNSUpstream("A", "udp", "asker", "v1", time.Second, nil)
	for _, part := range []string{`destination_workload="gone"`, "istio_on_demand_dns_total{", "istio_dns_upstream_requests_total{", `response_flags="DENY"`} {
		if !strings.Contains(scrapeAll(t, reg, m), part) {
			t.Errorf("no %s before eviction", part)
		}
	}
	m.Evict(time.Now().Add(-time.Minute))
	if !strings.Contains(scrapeAll(t, reg, m), `destination_workload="gone"`) {
		t.Error("a series that was used just now was dropped")
	}
	m.Evict(time.Now().Add(time.Minute))
	text := scrapeAll(t, reg, m)
	for _, part := range []string{`destination_workload="gone"`, "istio_on_demand_dns_total{", "istio_dns_upstream_requests_total{", "istio_dns_requests_total{"} {
		if strings.Contains(text, part) {
			t.Errorf("%s is still there after eviction", part)
		}
	}
	if !strings.Contains(text, `destination_workload="there"`) {
		t.Error("the series of an open connection was dropped")
	}
	if n := m.nSeries.Load(); n != 1 {
		t.Errorf("%d label sets are kept, want the one in use", n)
	}
	there.Closed(peer("there"), OK)
	m.Evict(time.Now().Add(time.Minute))
	if strings.Contains(scrapeAll(t, reg, m), `destination_workload="there"`) {
		t.Error("the series of a closed connection is still there")
	}
	m.Opened(peer("gone")).Closed(peer("gone"), OK)
	if !strings.Contains(scrapeAll(t, reg, m), `istio_tcp_connections_opened_total{`) {
		t.Error("a peer that came back is not counted")
	}
}

// Nothing that is counted while label sets are being dropped may be lost.
func TestEvictWhileCounting(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := NewMetrics(reg, "test")
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var evicting, counting sync.WaitGroup
	evicting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				m.Evict(time.Now().Add(time.Hour))
			}
		}
	})
	for range 4 {
		counting.Go(func() {
			for range 500 {
				o := m.Opened(peer("busy"))
				o.Transfer(peer("busy"), func() (uint64, uint64) { return 1, 1 })
				o.Closed(peer("busy"), OK)
			}
		})
	}
	counting.Wait()
	close(stop)
	evicting.Wait()
	m.Evict(time.Now().Add(time.Hour))
	if n := m.nSeries.Load(); n != 0 {
		t.Errorf("%d label sets are left, want 0", n)
	}
	for _, line := range strings.Split(scrapeAll(t, reg, m), "\n") {
		if strings.HasPrefix(line, "istio_tcp_") && strings.Contains(line, "busy") {
			t.Errorf("a series without owner is left: %s", line)
		}
	}
}

// The number of label sets that clients can cause is limited.
func TestOnDemandLimit(t *testing.T) {
	m, err := NewMetrics(prometheus.NewRegistry(), "test")
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxOnDemandSets + 10 {
		m.OnDemandDNS(Party{}, mesh.Identity{}, strings.Repeat("a", i+1))
	}
	if n := len(m.lookups.sets.last); n != maxOnDemandSets {
		t.Errorf("%d label sets, want %d", n, maxOnDemandSets)
	}
}

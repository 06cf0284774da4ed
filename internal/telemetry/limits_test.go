package telemetry

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// slow is a reader of the log that takes nothing until it is released.
type slow struct {
	release chan struct{}
	entered chan struct{}
	once    sync.Once
}

func (s *slow) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.entered) })
	<-s.release
	return len(p), nil
}

// When nobody reads the log, so much is queued, and then whoever logs waits.
func TestQueueIsBounded(t *testing.T) {
	out := &slow{release: make(chan struct{}), entered: make(chan struct{})}
	w := NewQueuedWriter(out)
	line := []byte(strings.Repeat("x", 1023) + "\n")
	if _, err := w.Write(line); err != nil { // this one is being written, and does not count
		t.Fatal(err)
	}
	<-out.entered
	for range MaxQueuedLogBytes / len(line) {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = w.Write(line)
	}()
	w.mu.Lock()
	if n := len(w.pending); n != MaxQueuedLogBytes {
		t.Errorf("%d bytes are queued, want %d", n, MaxQueuedLogBytes)
	}
	w.mu.Unlock()
	select {
	case <-written:
		t.Error("a line beyond the limit was queued")
	default:
	}
	close(out.release)
	<-written
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// A filter may name so many scopes.
func TestScopesAreBounded(t *testing.T) {
	l, err := NewLevels("")
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for i := range maxScopes + 1 {
		parts = append(parts, fmt.Sprintf("s%d=debug", i))
	}
	if err := l.Set(strings.Join(parts[:maxScopes], ","), false); err != nil {
		t.Errorf("%d scopes: %v", maxScopes, err)
	}
	if err := l.Set(parts[maxScopes], false); err == nil {
		t.Errorf("%d scopes were accepted", maxScopes+1)
	}
}

// stuck is a metric that takes its time.
type stuck struct{ entered, release chan struct{} }

func (stuck) Describe(chan<- *prometheus.Desc) {}

func (s stuck) Collect(chan<- prometheus.Metric) {
	s.entered <- struct{}{}
	<-s.release
}

// So many scrapes are served at once; more are told to come back.
func TestScrapesAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := stuck{make(chan struct{}), make(chan struct{})}
	reg.MustRegister(s)
	h := MetricsHandler(reg, nil)
	var wg sync.WaitGroup
	for range maxScrapes {
		wg.Go(func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/metrics", nil)) })
		<-s.entered
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != 503 {
		t.Errorf("one scrape too many = %d, want 503", rec.Code)
	}
	close(s.release)
	wg.Wait()
}

// Label sets of DNS questions are limited; more are counted as left out.
func TestDNSSetsAreBounded(t *testing.T) {
	reg, m := newTestMetrics(t)
	for i := range maxDNSSets + 5 {
		m.DNSRequest("A", "udp", fmt.Sprint("client-", i), "v1")
	}
	text := scrape(t, reg, m)
	if n := strings.Count(text, "\nistio_dns_requests_total{"); n != maxDNSSets || !strings.Contains(text, "isthmus_telemetry_label_sets_overflowed_total 5\n") {
		t.Errorf("%d label sets, want %d and 5 left out", n, maxDNSSets)
	}
}

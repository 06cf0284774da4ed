package telemetry

import (
	"context"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// DefaultMetricIdle is how long a label set is kept after the last connection with it ended. Scrapers have seen its
// last value many times by then, and take its absence for the end of a series.
const DefaultMetricIdle = time.Hour

// Run drops label sets that nothing was counted with for idle, until ctx ends, so that the memory of a proxy does not
// grow with every peer it ever had. idle 0 means DefaultMetricIdle.
func (m *Metrics) Run(ctx context.Context, idle time.Duration) error {
	if m == nil {
		return nil
	}
	if idle == 0 {
		idle = DefaultMetricIdle
	}
	t := time.NewTicker(max(idle/8, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			m.Evict(now.Add(-idle))
		}
	}
}

// Evict drops the label sets that were last used before then.
func (m *Metrics) Evict(before time.Time) {
	m.series.Range(func(k, v any) bool {
		s := v.(*series)
		if s.last.Load() >= before.UnixNano() || !s.uses.CompareAndSwap(0, math.MinInt64/2) {
			return true
		}
		// Who looks the set up now waits until it is gone from the map, and so starts a new one after it is gone here.
		for _, vec := range []*prometheus.CounterVec{m.opened, m.closed, m.failed, m.sent, m.received} {
			vec.DeleteLabelValues(s.labels...)
		}
		m.series.Delete(k)
		m.nSeries.Add(-1)
		m.evicted.Inc()
		return true
	})
	m.evicted.Add(float64(m.lookups.sets.evict(before) + m.dns.sets.evict(before)))
}

// acquire marks the set as in use; it fails if the set is being evicted.
func (s *series) acquire() bool {
	for {
		n := s.uses.Load()
		if n < 0 {
			return false
		}
		if s.uses.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *series) release() {
	s.last.Store(time.Now().UnixNano())
	s.uses.Add(-1)
}

// idleSets remembers when label sets were last used, limits their number, and drops those that are idle. It is for
// what is counted now and then, not for connections.
type idleSets struct {
	max  int
	vecs []interface{ DeleteLabelValues(...string) bool }

	mu   sync.Mutex
	last map[string]idleSet // guarded by mu
}

type idleSet struct {
	labels []string
	at     time.Time
}

// The limits of label sets of names that were looked up, and of DNS questions.
const (
	maxOnDemandSets = 1024
	maxDNSSets      = 4096
)

// use runs count, which counts with the labels, unless that would be one label set too many.
func (c *idleSets) use(labels []string, count func()) (ok bool) {
	key := strings.Join(labels, "\x00")
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.last[key]; !known && len(c.last) >= c.max {
		return false
	}
	if c.last == nil {
		c.last = map[string]idleSet{}
	}
	c.last[key] = idleSet{labels: labels, at: time.Now()}
	count()
	return true
}

func (c *idleSets) evict(before time.Time) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, s := range c.last {
		if s.at.Before(before) {
			for _, v := range c.vecs {
				v.DeleteLabelValues(s.labels...)
			}
			delete(c.last, key)
			n++
		}
	}
	return n
}

// onDemandMetrics counts look-ups of gateways and workloads that are known by name only.
type onDemandMetrics struct {
	total *prometheus.CounterVec
	sets  *idleSets
}

func newOnDemandDNS() onDemandMetrics {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_on_demand_dns_total", Help: "The total number of requests that used on-demand DNS (unstable)."},
		[]string{"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
			"source_principal", "source_app", "source_version", "source_cluster", "hostname"})
	return onDemandMetrics{total: total, sets: &idleSets{max: maxOnDemandSets, vecs: []interface{ DeleteLabelValues(...string) bool }{total}}}
}

// OnDemandDNS counts that the address of a gateway or workload had to be looked up by its name for a connection.
func (m *Metrics) OnDemandDNS(s Party, id mesh.Identity, hostname string) {
	if m == nil {
		return
	}
	labels := []string{or(s.Workload), or(s.CanonicalName), or(s.CanonicalRevision), or(s.Namespace), or(id.String()),
		or(s.App), or(s.CanonicalRevision), or(s.Cluster), or(hostname)}
	if !m.lookups.sets.use(labels, func() { m.lookups.total.WithLabelValues(labels...).Inc() }) {
		m.overflow.Inc()
	}
}

func newCRLMetrics() (revoked, untracked *prometheus.CounterVec) {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_crl_policy_rejections_total",
			Help: "The total number of peers that were rejected because their certificate was revoked (unstable)."}, []string{"reporter"}),
		prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_crl_untracked_connections_total",
			Help: "The total number of connections that a later revocation could not end; always 0 here (unstable)."}, []string{"reporter"})
}

// Revoked counts a peer, new or connected, that was rejected because its certificate was revoked.
func (m *Metrics) Revoked(r Reporter) {
	if m != nil {
		m.revoked.WithLabelValues(r.String()).Inc()
	}
}

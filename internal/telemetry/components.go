package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type dnsMetrics struct {
	requests, upstream, failures *prometheus.CounterVec
	duration                     *prometheus.HistogramVec
	sets                         *idleSets
}

func newDNSMetrics() dnsMetrics {
	labels := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	d := dnsMetrics{
		requests: counter("istio_dns_requests_total", "Total number of DNS requests (unstable)."),
		upstream: counter("istio_dns_upstream_requests_total", "Total number of DNS requests forwarded to upstream (unstable)."),
		failures: counter("istio_dns_upstream_failures_total", "Total number of DNS requests that failed to forward to upstream (unstable)."),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "istio_dns_upstream_request_duration_seconds", Help: "Total time in seconds Istio takes to get DNS response from upstream (unstable).",
			Buckets: []float64{0.0005, 0.001, 0.01, 0.1, 1, 5}}, labels),
	}
	d.sets = &idleSets{max: maxDNSSets, vecs: []interface{ DeleteLabelValues(...string) bool }{d.requests, d.upstream, d.failures, d.duration}}
	return d
}

func (d dnsMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{d.requests, d.upstream, d.failures, d.duration}
}

// DNSRequest counts a question asked of the DNS proxy.
func (m *Metrics) DNSRequest(queryType, protocol, canonicalName, canonicalRevision string) {
	if m == nil {
		return
	}
	labels := []string{queryType, protocol, or(canonicalName), or(canonicalRevision)}
	if !m.dns.sets.use(labels, func() { m.dns.requests.WithLabelValues(labels...).Inc() }) {
		m.overflow.Inc()
	}
}

// DNSUpstream counts a question forwarded to an upstream resolver, how long it took and whether it failed.
func (m *Metrics) DNSUpstream(queryType, protocol, canonicalName, canonicalRevision string, took time.Duration, err error) {
	if m == nil {
		return
	}
	labels := []string{queryType, protocol, or(canonicalName), or(canonicalRevision)}
	counted := m.dns.sets.use(labels, func() {
		m.dns.upstream.WithLabelValues(labels...).Inc()
		m.dns.duration.WithLabelValues(labels...).Observe(took.Seconds())
		if err != nil {
			m.dns.failures.WithLabelValues(labels...).Inc()
		}
	})
	if !counted {
		m.overflow.Inc()
	}
}

type xdsMetrics struct {
	terminations, messages, bytes *prometheus.CounterVec
}

func newXDSMetrics() xdsMetrics {
	return xdsMetrics{
		terminations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_xds_connection_terminations_total",
			Help: "The total number of completed connections to xds server (unstable)."}, []string{"reason"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_xds_message_total",
			Help: "Total number of messages received (unstable)."}, []string{"url"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_xds_message_bytes_total",
			Help: "Total number of bytes received (unstable)."}, []string{"url"}),
	}
}

func (x xdsMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{x.terminations, x.messages, x.bytes}
}

// XDSTerminated counts the end of a stream to the control plane.
func (m *Metrics) XDSTerminated(reason string) {
	if m != nil {
		m.xds.terminations.WithLabelValues(reason).Inc()
	}
}

// XDSMessage counts a message of the control plane.
func (m *Metrics) XDSMessage(typeURL string, bytes int) {
	if m != nil {
		m.xds.messages.WithLabelValues(typeURL).Inc()
		m.xds.bytes.WithLabelValues(typeURL).Add(float64(bytes))
	}
}

type proxyMetrics struct {
	active, pending  prometheus.Gauge
	started, stopped prometheus.Counter
}

func newProxyMetrics() proxyMetrics {
	return proxyMetrics{
		active: prometheus.NewGauge(prometheus.GaugeOpts{Name: "workload_manager_active_proxy_count",
			Help: "The total number current workloads with active proxies (unstable)."}),
		pending: prometheus.NewGauge(prometheus.GaugeOpts{Name: "workload_manager_pending_proxy_count",
			Help: "The total number current workloads with pending proxies (unstable)."}),
		started: prometheus.NewCounter(prometheus.CounterOpts{Name: "workload_manager_proxies_started_total",
			Help: "The total number of proxies that were started (unstable)."}),
		stopped: prometheus.NewCounter(prometheus.CounterOpts{Name: "workload_manager_proxies_stopped_total",
			Help: "The total number of proxies that were stopped (unstable)."}),
	}
}

func (p proxyMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{p.active, p.pending, p.started, p.stopped}
}

// ProxyStarted counts a workload whose proxy now serves.
func (m *Metrics) ProxyStarted() {
	if m != nil {
		m.proxies.started.Inc()
		m.proxies.active.Inc()
	}
}

// ProxyStopped counts a workload whose proxy stopped.
func (m *Metrics) ProxyStopped() {
	if m != nil {
		m.proxies.stopped.Inc()
		m.proxies.active.Dec()
	}
}

// ProxiesPending sets how many workloads wait for their proxy to start.
func (m *Metrics) ProxiesPending(n int) {
	if m != nil {
		m.proxies.pending.Set(float64(n))
	}
}

// newExpiry makes the gauge of WatchExpiry.
func (m *Metrics) newExpiry() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_certificate_expiration_timestamp_seconds",
		Help: "When the certificate ends that ends first; 0 while there is none. Renewal begins at half of its life."}, func() float64 {
		if earliest := m.expiry.Load(); earliest != nil {
			if at := (*earliest)(); !at.IsZero() {
				return float64(at.UnixMilli()) / 1000
			}
		}
		return 0
	})
}

// WatchExpiry has each scrape ask earliest when the certificate ends that ends first; zero means that there is none.
func (m *Metrics) WatchExpiry(earliest func() time.Time) {
	if m != nil {
		m.expiry.Store(&earliest)
	}
}

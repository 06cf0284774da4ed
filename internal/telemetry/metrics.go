package telemetry

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// DefaultMaxSeries is how many different label sets of connections are kept apart before the rest is counted together.
const DefaultMaxSeries = 20_000

// connLabels are Istio's labels of a TCP connection, in Istio's order.
func connLabels() []string {
	return []string{
		"reporter",
		"source_workload", "source_canonical_service", "source_canonical_revision", "source_workload_namespace",
		"source_principal", "source_app", "source_version", "source_cluster",
		"destination_service", "destination_service_namespace", "destination_service_name",
		"destination_workload", "destination_canonical_service", "destination_canonical_revision",
		"destination_workload_namespace", "destination_principal", "destination_app", "destination_version",
		"destination_cluster",
		"request_protocol", "response_flags", "connection_security_policy",
		"source_region", "source_zone", "destination_region", "destination_zone",
	}
}

// Metrics counts what a proxy does. A nil *Metrics counts nothing, so tests and tools need none.
type Metrics struct {
	opened, closed, failed, sent, received *prometheus.CounterVec

	sockets     *prometheus.GaugeVec
	overflow    prometheus.Counter
	limits      *prometheus.CounterVec
	dns         dnsMetrics
	xds         xdsMetrics
	lookups     onDemandMetrics
	revoked     *prometheus.CounterVec
	untracked   *prometheus.CounterVec
	proxies     proxyMetrics
	connections *prometheus.GaugeVec
	expiry      atomic.Pointer[func() time.Time]

	maxSeries int64
	nSeries   atomic.Int64
	series    sync.Map // labelKey -> *series
	open      sync.Map // *Open -> struct{}; connections whose bytes are still moving
	evicted   prometheus.Counter
	waits     *prometheus.CounterVec
	other     *series // all label sets beyond maxSeries
}

// NewMetrics registers Istio's metrics with reg. tag is the version the build metric carries; "" means this program's.
func NewMetrics(reg prometheus.Registerer, tag string) (*Metrics, error) {
	if tag == "" {
		tag = version.String()
	}
	labels := connLabels()
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &Metrics{
		opened:   counter("istio_tcp_connections_opened_total", "The total number of TCP connections opened."),
		closed:   counter("istio_tcp_connections_closed_total", "The total number of TCP connections closed."),
		failed:   counter("istio_tcp_connections_failed_total", "The total number of TCP connections that ended with a response flag (unstable)."),
		sent:     counter("istio_tcp_sent_bytes_total", "The size of total bytes sent in response, from the upstream to the downstream."),
		received: counter("istio_tcp_received_bytes_total", "The size of total bytes received in request, from the downstream."),
		sockets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "istio_tcp_sockets_open", Help: "The number of application sockets open now (unstable)."}, []string{"reporter"}),
		overflow: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_telemetry_label_sets_overflowed_total",
			Help: "The total number of connections whose labels were dropped because the limit of label sets was reached."}),
		limits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_proxy_limit_reached_total", Help: "The total number of times a named limit refused or delayed work."}, []string{"limit"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "isthmus_proxy_connections", Help: "The number of connections being proxied now."}, []string{"listener"}),
		maxSeries: DefaultMaxSeries,
	}
	m.dns, m.xds, m.proxies = newDNSMetrics(), newXDSMetrics(), newProxyMetrics()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "istio_build", Help: "Istio component build info.", ConstLabels: prometheus.Labels{"component": "ztunnel", "tag": tag}})
	build.Set(1)
	all := []prometheus.Collector{m.opened, m.closed, m.failed, m.sent, m.received, m.sockets, m.overflow, m.limits, m.connections, build,
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})}
	m.evicted = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "isthmus_telemetry_label_sets_evicted_total", Help: "The total number of label sets that were dropped because nothing was counted for long."})
	m.waits = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "isthmus_proxy_endpoint_waits_total",
		Help: "The total number of connections that found every known endpoint gone and waited for another, by whether one came."}, []string{"outcome"})
	m.lookups = newOnDemandDNS()
	m.revoked, m.untracked = newCRLMetrics()
	all = append(all, m.newExpiry(), m.evicted, m.waits, m.lookups.total, m.revoked, m.untracked)
	all = append(all, m.dns.collectors()...)
	all = append(all, m.xds.collectors()...)
	all = append(all, m.proxies.collectors()...)
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	m.other = m.newSeries(labelKey{})
	m.other.acquire() // never evicted
	return m, nil
}

// labelKey is what tells two label sets apart. It is comparable, so it is the key of the cache.
type labelKey struct {
	reporter    Reporter
	source      Party
	destination Party
	service     mesh.ServiceKey
	serviceName string
	mutualTLS   bool
	reason      Reason
}

// series is a cached label set: the counters one connection adds to.
type series struct {
	opened, closed, failed, sent, received prometheus.Counter

	labels []string
	uses   atomic.Int64 // by connections that are counting; negative once it is evicted
	last   atomic.Int64 // when the last use ended, Unix nanoseconds
}

// Open is one connection that has been counted as opened. Its bytes are read when somebody asks, at a scrape and at
// the end, so that a long connection shows while it lives and a busy one costs nothing. A nil *Open counts nothing.
type Open struct {
	m        *Metrics
	reporter Reporter

	mu       sync.Mutex
	counts   func() (sent, received uint64) // guarded by mu; nil until Transfer
	series   *series                        // guarded by mu
	sent     uint64                         // guarded by mu; already added to the counters
	received uint64                         // guarded by mu
}

// Opened counts the connection as opened. Every Opened needs one Closed.
func (m *Metrics) Opened(c *Conn) *Open {
	if m == nil {
		return nil
	}
	s := m.lookup(c, OK)
	s.opened.Inc()
	s.release()
	m.sockets.WithLabelValues(c.Reporter.String()).Inc()
	return &Open{m: m, reporter: c.Reporter}
}

// Transfer says how to read the connection's byte counts from now on. The labels of c are final.
func (o *Open) Transfer(c *Conn, counts func() (sent, received uint64)) {
	if o == nil {
		return
	}
	s := o.m.lookup(c, OK)
	o.mu.Lock()
	if o.series != nil {
		o.series.release()
	}
	o.counts, o.series = counts, s // kept in use until Closed
	o.mu.Unlock()
	o.m.open.Store(o, struct{}{})
}

// Closed counts the connection as closed, with why as its response flag.
func (o *Open) Closed(c *Conn, why Reason) {
	if o == nil {
		return
	}
	o.m.open.Delete(o)
	o.flush()
	s := o.m.lookup(c, why)
	s.closed.Inc()
	if why != OK {
		s.failed.Inc()
	}
	s.release()
	o.mu.Lock()
	if o.series != nil {
		o.series.release()
		o.series, o.counts = nil, nil
	}
	o.mu.Unlock()
	o.m.sockets.WithLabelValues(o.reporter.String()).Dec()
}

func (o *Open) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		return
	}
	sent, received := o.counts()
	if sent > o.sent {
		o.series.sent.Add(float64(sent - o.sent))
		o.sent = sent
	}
	if received > o.received {
		o.series.received.Add(float64(received - o.received))
		o.received = received
	}
}

// Flush brings the byte counters of all open connections up to date. The metrics handler calls it.
func (m *Metrics) Flush() {
	if m == nil {
		return
	}
	m.open.Range(func(k, _ any) bool {
		k.(*Open).flush()
		return true
	})
}

// LimitReached counts that the named limit refused or delayed something.
func (m *Metrics) LimitReached(limit string) {
	if m != nil {
		m.limits.WithLabelValues(limit).Inc()
	}
}

// EndpointWait counts a connection that waited for the mesh to know an endpoint that serves, and whether one came.
func (m *Metrics) EndpointWait(found bool) {
	if m == nil {
		return
	}
	outcome := "none"
	if found {
		outcome = "found"
	}
	m.waits.WithLabelValues(outcome).Inc()
}

// Connections adds delta to the number of connections of a listener.
func (m *Metrics) Connections(listener string, delta int) {
	if m != nil {
		m.connections.WithLabelValues(listener).Add(float64(delta))
	}
}

// lookup returns the label set of a connection, in use: the caller releases it.
func (m *Metrics) lookup(c *Conn, why Reason) *series {
	k := labelKey{c.Reporter, c.Source, c.Destination, c.Service, c.ServiceName, c.MutualTLS, why}
	k.source.Instance, k.destination.Instance = "", ""
	for {
		if s, ok := m.series.Load(k); ok {
			if s := s.(*series); s.acquire() {
				return s
			}
			runtime.Gosched() // it is being evicted this moment, and gone the next
			continue
		}
		if m.nSeries.Load() >= m.maxSeries {
			m.overflow.Inc()
			m.other.acquire()
			return m.other
		}
		s := m.newSeries(k)
		s.acquire()
		if _, loaded := m.series.LoadOrStore(k, s); !loaded {
			m.nSeries.Add(1)
			return s
		}
	}
}

func (m *Metrics) newSeries(k labelKey) *series {
	v := k.values()
	return &series{
		opened: lazy(m.opened, v), closed: lazy(m.closed, v), failed: lazy(m.failed, v),
		sent: lazy(m.sent, v), received: lazy(m.received, v), labels: v,
	}
}

// lazyCounter creates its series at the first count: a connection that never failed must not show a failed series of 0.
type lazyCounter struct {
	prometheus.Counter
	once   sync.Once
	vec    *prometheus.CounterVec
	values []string
}

func lazy(vec *prometheus.CounterVec, values []string) prometheus.Counter {
	return &lazyCounter{vec: vec, values: values}
}

// Inc counts one.
func (l *lazyCounter) Inc() { l.Add(1) }

// Add counts n.
func (l *lazyCounter) Add(n float64) {
	l.once.Do(func() { l.Counter = l.vec.WithLabelValues(l.values...) })
	l.Counter.Add(n)
}

func (k labelKey) values() []string {
	security := "unknown"
	if k.mutualTLS {
		security = "mutual_tls"
	}
	s, d := k.source, k.destination
	return []string{
		k.reporter.String(),
		or(s.Workload), or(s.CanonicalName), or(s.CanonicalRevision), or(s.Namespace),
		or(s.Identity.String()), or(s.App), or(s.CanonicalRevision), or(s.Cluster),
		or(k.service.Hostname), or(k.service.Namespace), or(k.serviceName),
		or(d.Workload), or(d.CanonicalName), or(d.CanonicalRevision), or(d.Namespace),
		or(d.Identity.String()), or(d.App), or(d.CanonicalRevision), or(d.Cluster),
		"tcp", k.reason.String(), security,
		or(s.Region), or(s.Zone), or(d.Region), or(d.Zone),
	}
}

func or(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

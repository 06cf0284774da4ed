// Package control holds the metrics of isthmus-controller: discovery, planning, writing, and the broker.
package control

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the controller's. A nil *Metrics records nothing. Label sets are constant and bounded: no ARN, no address.
type Metrics struct {
	registry *prometheus.Registry

	awsCalls     *prometheus.CounterVec
	awsSeconds   *prometheus.HistogramVec
	events       *prometheus.CounterVec
	sweeps       *prometheus.CounterVec
	sweepSeconds prometheus.Histogram
	seen         *prometheus.GaugeVec
	accounts     *prometheus.GaugeVec
	problems     prometheus.Gauge
	planned      *prometheus.GaugeVec
	writes       *prometheus.CounterVec
	rounds       prometheus.Histogram
	leader       prometheus.Gauge
	tokens       *prometheus.CounterVec
	tokenSeconds prometheus.Histogram
	secrets      prometheus.Gauge
	revoked      prometheus.Counter
	certificate  prometheus.Gauge
}

// New returns Metrics with a registry of their own. The age of the oldest snapshot is asked for at each scrape.
func New(snapshotAge func() time.Duration) *Metrics {
	buckets := []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		awsCalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_ecs_api_requests_total", Help: "Calls of AWS APIs by operation and outcome.",
		}, []string{"service", "call", "outcome"}),
		awsSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "isthmus_ecs_api_request_duration_seconds", Help: "Duration of calls of AWS APIs, waiting for the client-side limit included.", Buckets: buckets,
		}, []string{"service", "call"}),
		sweeps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_discovery_sweeps_total", Help: "Sweeps of an account and region by outcome: complete or incomplete.",
		}, []string{"outcome"}),
		sweepSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "isthmus_discovery_sweep_duration_seconds", Help: "Duration of sweeps.", Buckets: buckets,
		}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_discovery_events_total", Help: "Messages of event queues by outcome: hint or ignored.",
		}, []string{"outcome"}),
		seen: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "isthmus_discovery_objects", Help: "ECS clusters, services and tasks in the latest snapshots.",
		}, []string{"kind"}),
		accounts: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "isthmus_discovery_scopes", Help: "Accounts and regions by the outcome of their last sweep.",
		}, []string{"outcome"}),
		problems: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "isthmus_discovery_problems", Help: "Problems that a person should put right; they are events and in the status ConfigMap.",
		}),
		planned: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "isthmus_plan_changes", Help: "Changes of the last plan by action.",
		}, []string{"action"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_kube_writes_total", Help: "Writes of Istio objects by outcome.",
		}, []string{"outcome"}),
		rounds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "isthmus_plan_round_duration_seconds", Help: "Duration of a round: discover, plan and write.", Buckets: buckets,
		}),
		leader: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "isthmus_controller_leader", Help: "1 while this replica is the leader, which alone writes.",
		}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "isthmus_broker_requests_total", Help: "Requests to the broker by error code; issued for those that got a token.",
		}, []string{"code"}),
		tokenSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "isthmus_broker_request_duration_seconds", Help: "Duration of requests to the broker.", Buckets: buckets,
		}),
		secrets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "isthmus_broker_task_secrets", Help: "Secrets to which tokens of tasks are bound.",
		}),
		certificate: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "isthmus_broker_certificate_expiration_timestamp_seconds", Help: "When the broker's own certificate ends; it is renewed at half its life.",
		}),
		revoked: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "isthmus_broker_revocations_total", Help: "Tasks whose tokens were revoked because they ended.",
		}),
	}
	age := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "isthmus_discovery_snapshot_age_seconds", Help: "Time since the last complete sweep of the account and region that was swept least recently.",
	}, func() float64 { return snapshotAge().Seconds() })
	m.registry.MustRegister(m.events, m.awsCalls, m.awsSeconds, m.sweeps, m.sweepSeconds, m.seen, m.accounts, m.problems, m.planned, m.writes, m.rounds,
		m.leader, m.tokens, m.tokenSeconds, m.secrets, m.revoked, m.certificate, age,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registry returns the registry, for tests that collect everything.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// AWSCall counts a call of an AWS API.
func (m *Metrics) AWSCall(service, call, outcome string, took time.Duration) {
	if m == nil {
		return
	}
	m.awsCalls.WithLabelValues(service, call, outcome).Inc()
	m.awsSeconds.WithLabelValues(service, call).Observe(took.Seconds())
}

// Sweep counts a sweep.
func (m *Metrics) Sweep(complete bool, took time.Duration) {
	if m == nil {
		return
	}
	m.sweeps.WithLabelValues(completeness(complete)).Inc()
	m.sweepSeconds.Observe(took.Seconds())
}

// Event counts a message of an event queue.
func (m *Metrics) Event(understood bool) {
	if m == nil {
		return
	}
	outcome := "ignored"
	if understood {
		outcome = "hint"
	}
	m.events.WithLabelValues(outcome).Inc()
}

func completeness(complete bool) string {
	if complete {
		return "complete"
	}
	return "incomplete"
}

// Seen tells what the latest snapshots hold.
func (m *Metrics) Seen(clusters, services, tasks, scopesComplete, scopesIncomplete int) {
	if m == nil {
		return
	}
	m.seen.WithLabelValues("cluster").Set(float64(clusters))
	m.seen.WithLabelValues("service").Set(float64(services))
	m.seen.WithLabelValues("task").Set(float64(tasks))
	m.accounts.WithLabelValues("complete").Set(float64(scopesComplete))
	m.accounts.WithLabelValues("incomplete").Set(float64(scopesIncomplete))
}

// Plan tells what the last plan held.
func (m *Metrics) Plan(create, update, remove, held, unchanged, problems int, took time.Duration) {
	if m == nil {
		return
	}
	for action, n := range map[string]int{"create": create, "update": update, "delete": remove, "hold": held, "keep": unchanged} {
		m.planned.WithLabelValues(action).Set(float64(n))
	}
	m.problems.Set(float64(problems))
	m.rounds.Observe(took.Seconds())
}

// Write counts a write by its outcome; an empty one is an error.
func (m *Metrics) Write(outcome string) {
	if m == nil {
		return
	}
	if outcome == "" {
		outcome = "error"
	}
	m.writes.WithLabelValues(outcome).Inc()
}

// Leader tells whether this replica leads.
func (m *Metrics) Leader(leads bool) {
	if m == nil {
		return
	}
	m.leader.Set(0)
	if leads {
		m.leader.Set(1)
	}
}

// Token counts a request to the broker; an empty code is a token issued.
func (m *Metrics) Token(code string, took time.Duration) {
	if m == nil {
		return
	}
	if code == "" {
		code = "issued"
	}
	m.tokens.WithLabelValues(code).Inc()
	m.tokenSeconds.Observe(took.Seconds())
}

// Certificate tells when the broker's certificate ends.
func (m *Metrics) Certificate(notAfter time.Time) {
	if m == nil {
		return
	}
	m.certificate.Set(float64(notAfter.Unix()))
}

// Revocation tells of a round of revocation.
func (m *Metrics) Revocation(found, revoked int) {
	if m == nil {
		return
	}
	m.secrets.Set(float64(found - revoked))
	m.revoked.Add(float64(revoked))
}

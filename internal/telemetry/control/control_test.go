package control

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetrics(t *testing.T) {
	m := New(func() time.Duration { return 3 * time.Second })
	m.AWSCall("ECS", "ListClusters", "ok", time.Second)
	m.Sweep(true, time.Second)
	m.Seen(2, 4, 6, 1, 0)
	m.Plan(1, 2, 3, 4, 5, 6, time.Second)
	m.Write("")
	m.Leader(true)
	m.Token("IST2104", time.Second)
	m.Token("", time.Second)
	m.Revocation(5, 2)
	m.Certificate(time.Unix(1_800_000_000, 0))
	want := `
# HELP isthmus_broker_certificate_expiration_timestamp_seconds When the broker's own certificate ends; it is renewed at half its life.
# TYPE isthmus_broker_certificate_expiration_timestamp_seconds gauge
isthmus_broker_certificate_expiration_timestamp_seconds 1.8e+09
# HELP isthmus_broker_requests_total Requests to the broker by error code; issued for those that got a token.
# TYPE isthmus_broker_requests_total counter
isthmus_broker_requests_total{code="IST2104"} 1
isthmus_broker_requests_total{code="issued"} 1
# HELP isthmus_broker_task_secrets Secrets to which tokens of tasks are bound.
# TYPE isthmus_broker_task_secrets gauge
isthmus_broker_task_secrets 3
# HELP isthmus_discovery_snapshot_age_seconds Time since the last complete sweep of the account and region that was swept least recently.
# TYPE isthmus_discovery_snapshot_age_seconds gauge
isthmus_discovery_snapshot_age_seconds 3
# HELP isthmus_kube_writes_total Writes of Istio objects by outcome.
# TYPE isthmus_kube_writes_total counter
isthmus_kube_writes_total{outcome="error"} 1
`
	if err := testutil.GatherAndCompare(m.Registry(), strings.NewReader(want), "isthmus_broker_requests_total",
		"isthmus_broker_certificate_expiration_timestamp_seconds", "isthmus_broker_task_secrets", "isthmus_discovery_snapshot_age_seconds", "isthmus_kube_writes_total"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(m.Registry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestNilRecordsNothing(t *testing.T) {
	var m *Metrics
	m.AWSCall("", "", "", 0)
	m.Sweep(false, 0)
	m.Seen(0, 0, 0, 0, 0)
	m.Plan(0, 0, 0, 0, 0, 0, 0)
	m.Write("")
	m.Leader(false)
	m.Token("", 0)
	m.Revocation(0, 0)
}

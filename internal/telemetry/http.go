package telemetry

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes limits the scrapes that are served at once.
const maxScrapes = 4

// MetricsHandler returns the HTTP handler of the metrics port: /metrics and /stats/prometheus, plain or OpenMetrics as the
// scraper asks.
func MetricsHandler(g prometheus.Gatherer, m *Metrics) http.Handler {
	h := promhttp.HandlerFor(g, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes, Timeout: 30 * time.Second})
	flushed := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.Flush()
		h.ServeHTTP(w, r)
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", flushed)
	mux.Handle("GET /stats/prometheus", flushed)
	return mux
}

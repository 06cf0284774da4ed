package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// health is a registry of named conditions; the replica is ready when none of them has an error.
type health struct {
	mu         sync.Mutex
	conditions map[string]error // guarded by mu
}

func newHealth() *health { return &health{conditions: map[string]error{}} }

func (h *health) set(name string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conditions[name] = err
}

// snapshot returns the conditions by name, and whether all are well.
func (h *health) snapshot() (map[string]error, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out, ok := maps.Clone(h.conditions), true
	for _, err := range out {
		ok = ok && err == nil
	}
	return out, ok
}

// ready answers /readyz; with ?verbose it lists the conditions.
func (h *health) ready(w http.ResponseWriter, r *http.Request) {
	conditions, ok := h.snapshot()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if ok && !r.URL.Query().Has("verbose") {
		fmt.Fprintln(w, "ok")
		return
	}
	for _, name := range slices.Sorted(maps.Keys(conditions)) {
		state := "ok"
		if err := conditions[name]; err != nil {
			state = err.Error()
		}
		fmt.Fprintf(w, "%s: %s\n", name, state)
	}
}

// startMonitoring serves /healthz, /readyz and /metrics.
func (c *Controller) startMonitoring(ctx context.Context, g *errgroup.Group) error {
	if c.cfg.Options.MonitoringAddress == "" {
		return nil
	}
	ln, err := c.listen(c.cfg.Options.MonitoringAddress)
	if err != nil {
		return fmt.Errorf("listen for monitoring: %w", err)
	}
	c.noteAddress("monitoring", ln)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", c.health.ready)
	if c.cfg.Metrics != nil {
		mux.Handle("GET /metrics", c.cfg.Metrics.Handler())
	}
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return cmp.Or(err, errors.New("serve monitoring"))
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			_ = srv.Close()
		}
		return nil
	})
	return nil
}

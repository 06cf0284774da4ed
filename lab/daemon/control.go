package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/controlplane"
)

// Status is what GET /v1/status answers.
type Status struct {
	// State is one of the States.
	State string `json:"state"`
	// Components are the parts of the lab, in the order in which they start.
	Components []Component `json:"components"`
	// Steps are the durations of the steps of the start.
	Steps map[string]time.Duration `json:"steps"`
}

// Component is one process, pod or part of the lab.
type Component struct {
	controlplane.Status
	// Kind is "process", "pod" or "part"; a part runs inside the daemon's process.
	Kind string `json:"kind"`
}

// serveControl serves the control API until ctx ends. Whoever can reach the socket may do everything: it lies in a
// directory of the user's own.
func (d *Daemon) serveControl(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", d.handleStatus)
	mux.HandleFunc("GET /v1/events", d.handleEvents)
	mux.HandleFunc("POST /v1/stop", d.handleStop)
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		mux.HandleFunc(method+" /v1/faults", d.handleFaults)
	}
	mux.HandleFunc("POST /v1/components/{name}/{action}", d.handleComponent)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(d.cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(d.cfg.Control); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (d *Daemon) handleStatus(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, d.status(r.Context()))
}

// handleEvents streams the events of the start, one JSON object a line, until the start has ended.
func (d *Daemon) handleEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	encoder, flush := json.NewEncoder(w), http.NewResponseController(w)
	for next := 0; ; {
		events, last, more := d.journal.from(next)
		for _, e := range events {
			if encoder.Encode(e) != nil {
				return // the reader has gone
			}
		}
		next += len(events)
		_ = flush.Flush() // the same
		if last {
			return
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

func (d *Daemon) handleStop(w http.ResponseWriter, _ *http.Request) {
	d.cfg.Log.Info("asked to stop")
	w.WriteHeader(http.StatusAccepted)
	_ = http.NewResponseController(w).Flush() // the answer must leave before the server closes
	d.stop()
}

func (d *Daemon) handleComponent(w http.ResponseWriter, r *http.Request) {
	name, action := r.PathValue("name"), r.PathValue("action")
	if err := d.act(r.Context(), name, action); err != nil {
		writeJSON(w, http.StatusBadRequest, newFailure(err))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the reader may have gone
}

// status collects the state of every part of the lab.
func (d *Daemon) status(ctx context.Context) Status {
	s := Status{State: d.journal.current(), Steps: map[string]time.Duration{}}
	d.mu.Lock()
	plane := d.plane
	for name, took := range d.timings {
		s.Steps[name] = took
	}
	var parts []Component
	for _, p := range d.parts {
		status := controlplane.Status{Name: p.name, Started: p.started, Ready: !p.ended}
		if p.err != nil {
			status.LastExit = p.err.Error()
		}
		if p.name == componentAWS && d.endpoint != nil && d.endpoint.isDown() {
			status.Ready, status.LastExit = false, "stopped"
		}
		parts = append(parts, Component{Status: status, Kind: "part"})
	}
	d.mu.Unlock()
	pid := os.Getpid()
	s.Components = append(s.Components, Component{Kind: "process", Status: controlplane.Status{
		Name: "lab daemon", PID: pid, Ready: true, RSSBytes: controlplane.ResidentBytes(pid),
	}})
	if len(parts) > 0 {
		s.Components[0].Started = parts[0].Started
	}
	if plane != nil {
		for _, c := range plane.Components() {
			s.Components = append(s.Components, Component{Status: c.Status(), Kind: "process"})
		}
		s.Components = append(s.Components, podComponents(ctx, plane)...)
	}
	for _, p := range parts {
		if p.Name != "control plane" { // its components stand for it
			s.Components = append(s.Components, p)
		}
	}
	return s
}

// Package admin serves what operators ask a running proxy: its configuration dump in ztunnel's JSON, its log levels,
// profiles, a way to stop it (all on the loopback), its metrics, and whether it is ready.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// Levels can report and change log levels while the program runs.
type Levels interface {
	String() string
	Set(filter string, reset bool) error
}

// Config configures a Server. A nil listener means that port is not served.
type Config struct {
	Admin     []net.Listener // loopback only
	Metrics   []net.Listener
	Readiness []net.Listener

	Dump   func() Dump // required with Admin
	Levels Levels      // required with Admin
	// Why answers questions about policies; its error may have a method Status. nil serves no /why.
	Why      func(url.Values) (any, error)
	Shutdown func()       // required with Admin; called once by /quitquitquit
	Gather   http.Handler // required with Metrics
	Ready    *Readiness   // required with Readiness

	Log *slog.Logger // required
}

// Server is the set of HTTP servers of a proxy.
type Server struct {
	cfg  Config
	stop sync.Once
}

// Limits of the HTTP servers.
const (
	headerTimeout  = 2 * time.Second
	maxHeaderBytes = 8 << 10
	idleTimeout    = 60 * time.Second
	drainTimeout   = 2 * time.Second
)

// New returns a Server, which owns the listeners of cfg.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.Log == nil:
		return nil, errors.New("admin: Config.Log is required")
	case len(cfg.Admin) > 0 && cfg.Dump == nil:
		return nil, errors.New("admin: Config.Dump is required")
	case len(cfg.Admin) > 0 && cfg.Levels == nil:
		return nil, errors.New("admin: Config.Levels is required")
	case len(cfg.Admin) > 0 && cfg.Shutdown == nil:
		return nil, errors.New("admin: Config.Shutdown is required")
	case len(cfg.Metrics) > 0 && cfg.Gather == nil:
		return nil, errors.New("admin: Config.Gather is required")
	case len(cfg.Readiness) > 0 && cfg.Ready == nil:
		return nil, errors.New("admin: Config.Ready is required")
	}
	return &Server{cfg: cfg}, nil
}

// Run serves until ctx ends, then lets requests in progress finish.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	errc := make(chan error, len(s.cfg.Admin)+len(s.cfg.Metrics)+len(s.cfg.Readiness))
	serve := func(ls []net.Listener, h http.Handler) {
		for _, l := range ls {
			wg.Go(func() { errc <- s.serve(ctx, l, h) })
		}
	}
	serve(s.cfg.Admin, s.AdminHandler())
	serve(s.cfg.Metrics, s.cfg.Gather)
	serve(s.cfg.Readiness, s.ReadinessHandler())
	wg.Wait()
	close(errc)
	var errs []error
	for err := range errc {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if srv.Shutdown(stop) != nil {
			_ = srv.Close() // a profile that still runs is cut off
		}
	}()
	err := srv.Serve(l)
	if ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	<-done
	return nil
}

// AdminHandler returns the handler of the admin port.
func (s *Server) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /config_dump", s.configDump)
	if s.cfg.Why != nil {
		mux.HandleFunc("GET /why", s.why)
	}
	mux.HandleFunc("POST /logging", s.logging)
	mux.HandleFunc("/logging", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, loggingUsage, http.StatusMethodNotAllowed)
	})
	mux.HandleFunc("POST /quitquitquit", s.quit)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /{$}", index)
	return mux
}

// ReadinessHandler returns the handler of the readiness port.
func (s *Server) ReadinessHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if pending := s.cfg.Ready.Pending(); len(pending) > 0 {
			http.Error(w, "not ready, pending: "+strings.Join(pending, ", "), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

func (s *Server) configDump(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s.cfg.Dump()); err != nil {
		s.cfg.Log.Debug("config dump was cut short", logattr.Err(err))
	}
}

// why answers with JSON, and to a question that has no answer with the reason, as text.
func (s *Server) why(w http.ResponseWriter, r *http.Request) {
	answer, err := s.cfg.Why(r.URL.Query())
	if err != nil {
		code := http.StatusBadRequest
		if e, ok := err.(interface{ Status() int }); ok {
			code = e.Status()
		}
		http.Error(w, err.Error()+"\n"+whyUsage, code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(answer); err != nil {
		s.cfg.Log.Debug("answer was cut short", logattr.Err(err))
	}
}

const whyUsage = `usage: GET /why?source=SOURCE&destination=DESTINATION[&sourceAddress=ADDRESS]
SOURCE:      spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, ADDRESS, HOSTNAME or NAMESPACE/NAME
DESTINATION: ADDRESS:PORT, HOSTNAME:PORT or NAMESPACE/NAME:PORT
`

const loggingUsage = `usage: POST /logging					(to list the current levels)
usage: POST /logging?level=<level>			(to set the level of everything)
usage: POST /logging?level=<scope>=<level>,<scope>:<level>	(to set levels of scopes)
usage: POST /logging?reset				(to return to the levels of the start)
levels: off, error, warn, info, debug, trace
`

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Has("level") || q.Has("reset") {
		if err := s.cfg.Levels.Set(q.Get("level"), q.Has("reset")); err != nil {
			http.Error(w, err.Error()+"\n"+loggingUsage, http.StatusBadRequest)
			return
		}
	}
	fmt.Fprintf(w, "current log level is %s\n", s.cfg.Levels.String())
}

func (s *Server) quit(w http.ResponseWriter, _ *http.Request) {
	s.stop.Do(s.cfg.Shutdown)
	fmt.Fprintln(w, "shutdown now")
}

// profile bounds the length of a CPU profile as ztunnel does: 10 seconds unless asked, at most 300.
func profile(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if !q.Has("seconds") {
		q.Set("seconds", "10")
		r.URL.RawQuery = q.Encode()
	}
	var n int
	if _, err := fmt.Sscanf(q.Get("seconds"), "%d", &n); err != nil || n < 1 || n > 300 {
		http.Error(w, "seconds must be between 1 and 300", http.StatusBadRequest)
		return
	}
	r.Form = nil
	pprof.Profile(w, r)
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, `<!doctype html><title>ztunnel admin</title><h1>ztunnel admin</h1><ul>
<li><a href="config_dump">/config_dump</a>: what this proxy knows
<li>/why?source=SOURCE&amp;destination=DESTINATION: whether policies let a connection pass, and which
<li>POST /logging: log levels
<li>POST /quitquitquit: stop
<li><a href="debug/pprof/">/debug/pprof/</a>: profiles
</ul>
`)
}

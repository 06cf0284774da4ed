package images

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of the echo server.
const (
	maxEchoBody   = 1 << 20
	maxEchoHeader = 64 << 10
	echoTimeout   = 30 * time.Second
	echoDrain     = 5 * time.Second
	defaultPort   = "80"
)

// lameDuckVariable says for how long after SIGTERM the echo server goes on serving, such as 3s; without it the server
// stops at once.
const lameDuckVariable = "LAME_DUCK"

// maxLameDuck is less than the time that ECS and Kubernetes give a container to end.
const maxLameDuck = 25 * time.Second

// lameDuck reads lameDuckVariable; what is not a duration is none.
func lameDuck(env []string) time.Duration {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, lameDuckVariable+"="); ok {
			d, err := time.ParseDuration(v)
			if err != nil {
				return 0
			}
			return max(0, min(d, maxLameDuck))
		}
	}
	return 0
}

// echoReply is the answer of the echo server, in the shape of the image ealen/echo-server.
type echoReply struct {
	Host struct {
		Hostname string   `json:"hostname"`
		IP       string   `json:"ip"`
		IPs      []string `json:"ips"`
	} `json:"host"`
	HTTP struct {
		Method      string `json:"method"`
		BaseURL     string `json:"baseUrl"`
		OriginalURL string `json:"originalUrl"`
		Protocol    string `json:"protocol"`
	} `json:"http"`
	Request struct {
		Params  map[string]string `json:"params"`
		Query   map[string]any    `json:"query"`
		Cookies map[string]string `json:"cookies"`
		Body    any               `json:"body"`
		Headers map[string]string `json:"headers"`
	} `json:"request"`
	Environment map[string]string `json:"environment"`
}

// echo answers every request with a description of it.
type echo struct {
	env map[string]string
	log *slog.Logger
}

// EchoHandler returns the handler of the echo server. env, as NAME=value, is part of every answer.
func EchoHandler(env []string, log *slog.Logger) http.Handler {
	e := &echo{env: map[string]string{}, log: log}
	for _, kv := range env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			e.env[name] = value
		}
	}
	return e
}

func (e *echo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var reply echoReply
	reply.Environment = e.env
	// The server names the host that was asked for, and as IP the peer's address, in the form of a dual-stack socket.
	reply.Host.Hostname = r.Host
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		reply.Host.Hostname = host
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		reply.Host.IP = host
		if ip := net.ParseIP(host); ip != nil && ip.To4() != nil {
			reply.Host.IP = "::ffff:" + host
		}
	}
	reply.Host.IPs = []string{}
	reply.HTTP.Method, reply.HTTP.OriginalURL, reply.HTTP.Protocol = r.Method, r.URL.RequestURI(), "http"
	reply.Request.Params = map[string]string{"0": r.URL.Path}
	reply.Request.Query = map[string]any{}
	for name, values := range r.URL.Query() {
		if len(values) == 1 {
			reply.Request.Query[name] = values[0]
		} else {
			reply.Request.Query[name] = values
		}
	}
	reply.Request.Cookies = map[string]string{}
	for _, c := range r.Cookies() {
		reply.Request.Cookies[c.Name] = c.Value
	}
	reply.Request.Headers = map[string]string{"host": r.Host}
	for name, values := range r.Header {
		reply.Request.Headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	if r.ContentLength > 0 { // net/http keeps it apart from the headers
		reply.Request.Headers["content-length"] = strconv.FormatInt(r.ContentLength, 10)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEchoBody))
	if err != nil {
		http.Error(w, "request body: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	reply.Request.Body = echoBody(r.Header.Get("Content-Type"), body)
	status := echoStatus(r)
	if !echoPause(r) {
		return
	}
	answer, err := json.Marshal(reply)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(answer) // the client may have gone
	}
	e.log.Info("request", slog.String("method", r.Method), slog.String("url", r.URL.RequestURI()), slog.String("peer", r.RemoteAddr), slog.Int("status", status))
}

// echoBody returns the body as JSON when it is declared so, else as text; an empty one as an empty object.
func echoBody(contentType string, body []byte) any {
	if len(body) == 0 {
		return map[string]any{}
	}
	if strings.HasPrefix(contentType, "application/json") {
		var v any
		if json.Unmarshal(body, &v) == nil {
			return v
		}
	}
	return string(body)
}

// echoStatus returns the status that the request asks for with ?echo_code= or X-Echo-Code.
func echoStatus(r *http.Request) int {
	for _, s := range []string{r.Header.Get("X-Echo-Code"), r.URL.Query().Get("echo_code")} {
		if n, err := strconv.Atoi(s); err == nil && n >= 200 && n <= 599 {
			return n
		}
	}
	return http.StatusOK
}

// echoPause waits as long as ?echo_time= or X-Echo-Time ask for, in milliseconds. It reports whether the client stayed.
func echoPause(r *http.Request) bool {
	for _, s := range []string{r.Header.Get("X-Echo-Time"), r.URL.Query().Get("echo_time")} {
		n, err := strconv.Atoi(s)
		if err != nil || n <= 0 {
			continue
		}
		timer := time.NewTimer(min(time.Duration(n)*time.Millisecond, echoTimeout))
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-r.Context().Done():
			return false
		}
	}
	return true
}

// runEcho serves on $PORT until ctx ends.
func runEcho(ctx context.Context, env []string, stdout io.Writer) error {
	port := defaultPort
	for _, name := range []string{"HTTP_PORT", "PORT"} { // the last one that is set counts
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, name+"="); ok && v != "" {
				port = v
			}
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("PORT is %q: want a port number", port)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", ":"+port)
	if err != nil {
		return err
	}
	out := &flushed{w: bufio.NewWriter(stdout)}
	log := slog.New(slog.NewTextHandler(out, nil))
	log.Info("listening", slog.String("port", port), slog.Int("pid", os.Getpid()))
	server := &http.Server{
		Handler: EchoHandler(env, log), ReadHeaderTimeout: echoTimeout, IdleTimeout: 2 * echoTimeout, MaxHeaderBytes: maxEchoHeader,
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Serve(l) }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
	}
	// Whoever sends requests hears of the end later than this process does. It goes on serving for that long, and closes
	// the connections after the requests on them, as programs must that want to lose none.
	server.SetKeepAlivesEnabled(false)
	late := time.NewTimer(lameDuck(env))
	defer late.Stop()
	select {
	case err := <-stopped:
		return err
	case <-late.C:
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), echoDrain)
	defer cancel()
	if err := server.Shutdown(drain); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// flushed writes every log line in one piece.
type flushed struct {
	mu sync.Mutex
	w  *bufio.Writer
}

func (f *flushed) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, f.w.Flush()
}

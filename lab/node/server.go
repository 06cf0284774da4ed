package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// Bounds of the kubelet API.
const (
	streamIdle      = 4 * time.Hour
	streamCreation  = 30 * time.Second
	serverDrain     = time.Second
	readHeaderLimit = 10 * time.Second
)

// listen opens the port of the kubelet API.
func (n *Node) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(n.cfg.Address, n.cfg.Port).String())
	if err != nil {
		return nil, fmt.Errorf("node: kubelet API: %w", err)
	}
	n.mu.Lock()
	n.address = l.Addr().String()
	n.mu.Unlock()
	return l, nil
}

// Address returns where the kubelet API listens, or "" before it does.
func (n *Node) Address() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.address
}

// serve serves the kubelet API until ctx ends.
func (n *Node) serve(ctx context.Context, l net.Listener) error {
	certificate, err := n.certificate()
	if err != nil {
		_ = l.Close() // nothing was accepted
		return err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate},
		NextProtos: []string{"http/1.1"}, // exec and port-forward take the connection over
	}
	if n.cfg.ClientCAs != nil {
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, n.cfg.ClientCAs
	}
	server := &http.Server{
		Handler: n.authenticated(n.routes()), TLSConfig: config, ReadHeaderTimeout: readHeaderLimit,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.ServeTLS(l, "", "") }()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), serverDrain)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		_ = server.Close() // what is left is cut off
	}
	<-stopped
	return nil
}

// certificate returns the configured certificate, or makes a self-signed one.
func (n *Node) certificate() (tls.Certificate, error) {
	if n.cfg.Certificate != nil {
		return *n.cfg.Certificate, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: n.cfg.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{n.cfg.Name}, IPAddresses: []net.IP{n.cfg.Address.AsSlice()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// authenticated lets only the API server in. Only /healthz is for everybody.
func (n *Node) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" && !n.allowed(r) {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (n *Node) allowed(r *http.Request) bool {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 && slices.Contains(n.cfg.ClientNames, r.TLS.VerifiedChains[0][0].Subject.CommonName) {
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		return false
	}
	given := sha256.Sum256([]byte(token))
	for _, t := range n.cfg.BearerTokens {
		want := sha256.Sum256([]byte(t))
		if t != "" && subtle.ConstantTimeCompare(given[:], want[:]) == 1 {
			return true
		}
	}
	return false
}

func (n *Node) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("GET /pods", n.listPods)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.containerLogs)
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", n.exec)
	mux.HandleFunc("/exec/{namespace}/{pod}/{uid}/{container}", n.exec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", n.attach)
	mux.HandleFunc("/attach/{namespace}/{pod}/{uid}/{container}", n.attach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", n.portForward)
	mux.HandleFunc("/portForward/{namespace}/{pod}/{uid}", n.portForward)
	return mux
}

// listPods answers with the pods that the node runs.
func (n *Node) listPods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{}
	list.APIVersion, list.Kind = "v1", "PodList"
	n.mu.Lock()
	for _, worker := range n.workers {
		list.Items = append(list.Items, *worker.latest())
	}
	n.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the client may have gone
}

var (
	errNoPod       = errors.New("pod not found on this node")
	errNoContainer = errors.New("container not found in pod")
)

// container finds a container, running or not. previous asks for the one before the last restart.
func (n *Node) container(namespace, pod, uid, name string, previous bool) (*runtime.Container, error) {
	w := n.worker(namespace, pod, uid)
	if w == nil {
		return nil, errNoPod
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.containers[name]
	switch {
	case c == nil:
		return nil, errNoContainer
	case previous && c.previous == nil:
		return nil, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod)
	case previous:
		return c.previous, nil
	case c.current == nil:
		return nil, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod, waitingReason(c))
	}
	return c.current, nil
}

func waitingReason(c *containerState) string {
	if c.state.Waiting != nil && c.state.Waiting.Reason != "" {
		return c.state.Waiting.Reason
	}
	return "ContainerCreating"
}

// refuse answers with the status that fits an error.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	if errors.Is(err, errNoPod) || errors.Is(err, errNoContainer) {
		status = http.StatusNotFound
	}
	http.Error(w, err.Error(), status)
}

func (n *Node) containerLogs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	opt, limit, err := logOptions(q.Get)
	if err != nil {
		refuse(w, err)
		return
	}
	c, err := n.container(r.PathValue("namespace"), r.PathValue("pod"), "", r.PathValue("container"), q.Get("previous") == "true")
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &logResponse{w: w, left: limit}
	if opt.Follow {
		w.WriteHeader(http.StatusOK)
		out.Flush()
	}
	if err := c.Logs(r.Context(), opt, out); err != nil && !errors.Is(err, errLimit) && r.Context().Err() == nil {
		n.log.Debug("logs ended early", slog.String("pod", r.PathValue("pod")), slog.Any("error", err))
	}
}

// logOptions reads the parameters of a request for logs. limit is -1 when there is none.
func logOptions(get func(string) string) (opt runtime.LogOptions, limit int64, err error) {
	opt = runtime.LogOptions{Follow: get("follow") == "true", Timestamps: get("timestamps") == "true", Tail: -1}
	limit = -1
	if s := get("tailLines"); s != "" {
		if opt.Tail, err = strconv.Atoi(s); err != nil || opt.Tail < 0 {
			return opt, 0, fmt.Errorf("tailLines is %q", s)
		}
	}
	if s := get("limitBytes"); s != "" {
		if limit, err = strconv.ParseInt(s, 10, 64); err != nil || limit < 1 {
			return opt, 0, fmt.Errorf("limitBytes is %q", s)
		}
	}
	if s := get("sinceSeconds"); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 1 {
			return opt, 0, fmt.Errorf("sinceSeconds is %q", s)
		}
		opt.Since = time.Now().Add(-time.Duration(n) * time.Second)
	}
	if s := get("sinceTime"); s != "" {
		if opt.Since, err = time.Parse(time.RFC3339, s); err != nil {
			return opt, 0, fmt.Errorf("sinceTime is %q", s)
		}
	}
	return opt, limit, nil
}

var errLimit = errors.New("as much was written as was asked for")

// logResponse is an answer of at most left bytes; -1 means no limit.
type logResponse struct {
	w    http.ResponseWriter
	left int64
}

func (l *logResponse) Write(p []byte) (int, error) {
	if l.left < 0 {
		return l.w.Write(p)
	}
	if l.left == 0 {
		return 0, errLimit
	}
	n, err := l.w.Write(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// Flush sends what was written.
func (l *logResponse) Flush() { _ = http.NewResponseController(l.w).Flush() } // a client that has gone shows at the next write

func (n *Node) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c, err := n.container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"), false)
	if err != nil {
		refuse(w, err)
		return
	}
	remotecommand.ServeExec(w, r, executor{c}, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		r.URL.Query()["command"], options, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

// executor runs commands in one container.
type executor struct{ c *runtime.Container }

// ExecInContainer runs a command and reports its exit code as the streaming server wants it.
func (e executor) ExecInContainer(ctx context.Context, _, _, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	spec := runtime.ExecSpec{Command: cmd, TTY: tty}
	// A nil pointer in an interface is not nil: only set what is there.
	if in != nil {
		spec.Stdin = in
	}
	if out != nil {
		spec.Stdout = out
	}
	if errOut != nil {
		spec.Stderr = errOut
	}
	sizes, stop := windowSizes(resize)
	defer stop()
	spec.Resize = sizes
	code, err := e.c.Exec(ctx, spec)
	if cannot, ok := errors.AsType[*runtime.CannotStartError](err); ok {
		if errOut != nil {
			_, _ = fmt.Fprintln(errOut, cannot.Reason) // the exit code tells it as well
		}
		return utilexec.CodeExitError{Err: err, Code: cannot.Code}
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

func (n *Node) attach(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c, err := n.container(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"), false)
	if err != nil {
		refuse(w, err)
		return
	}
	remotecommand.ServeAttach(w, r, attacher{c, n.stdinOnce(r)}, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		options, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

// stdinOnce reports whether the container that a request is for has an input that ends with its first client.
func (n *Node) stdinOnce(r *http.Request) bool {
	w := n.worker(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"))
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	spec := w.containerByName(r.PathValue("container"))
	return spec != nil && spec.StdinOnce
}

// attacher connects clients to one container. Both of its streams go to the standard output.
type attacher struct {
	c    *runtime.Container
	once bool // the input of the program ends with that of the first client
}

// AttachContainer copies between the client and the container until either ends.
func (a attacher) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, _ io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	spec := runtime.AttachSpec{StdinOnce: a.once, Output: io.Discard}
	// A nil pointer in an interface is not nil: only set what is there.
	if in != nil {
		spec.Stdin = in
	}
	if out != nil {
		spec.Output = out
	}
	sizes, stop := windowSizes(resize)
	defer stop()
	spec.Resize = sizes
	return a.c.Attach(ctx, spec)
}

// windowSizes translates the sizes of a client's terminal until stop is called.
func windowSizes(from <-chan remotecommand.TerminalSize) (sizes <-chan runtime.WindowSize, stop func()) {
	if from == nil {
		return nil, func() {}
	}
	to := make(chan runtime.WindowSize)
	done := make(chan struct{})
	go func() {
		defer close(to)
		for s := range from {
			select {
			case to <- runtime.WindowSize{Width: s.Width, Height: s.Height}:
			case <-done:
				return
			}
		}
	}()
	return to, func() { close(done) }
}

func (n *Node) portForward(w http.ResponseWriter, r *http.Request) {
	worker := n.worker(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("uid"))
	if worker == nil {
		refuse(w, errNoPod)
		return
	}
	s, err := worker.open()
	if err != nil {
		refuse(w, err)
		return
	}
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, forwarder{s}, r.PathValue("pod"), r.PathValue("uid"), options, streamIdle, streamCreation, portforward.SupportedProtocols)
}

// forwarder connects to the loopback of one sandbox.
type forwarder struct{ s *runtime.Sandbox }

// PortForward copies between the stream and the port until either side ends.
func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	conn, err := f.s.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream) // the end of either direction is seen below
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	_, err = io.Copy(stream, conn)
	return err
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	streaming "k8s.io/streaming/pkg/httpstream"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// Pod is what callers need to know of a pod.
type Pod struct {
	Namespace  string
	Name       string
	Node       string
	IP         string
	Phase      string
	Ready      bool
	Labels     map[string]string
	Containers []string
}

// ListPods returns the pods that the selector selects; namespace "" means all namespaces.
func (c *Client) ListPods(ctx context.Context, namespace, selector string) ([]Pod, error) {
	list, err := c.List(ctx, Pods, namespace, selector)
	if err != nil {
		return nil, Explain(err)
	}
	out := make([]Pod, 0, len(list))
	for _, o := range list {
		p, err := podOf(o)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func podOf(o *Object) (Pod, error) {
	var p struct {
		Spec struct {
			NodeName   string
			Containers []struct{ Name string }
		}
		Status struct {
			Phase, PodIP string
			Conditions   []struct{ Type, Status string }
		}
	}
	if err := Decode(o, &p); err != nil {
		return Pod{}, err
	}
	out := Pod{Namespace: o.GetNamespace(), Name: o.GetName(), Node: p.Spec.NodeName, IP: p.Status.PodIP, Phase: p.Status.Phase, Labels: o.GetLabels()}
	for _, ct := range p.Spec.Containers {
		out.Containers = append(out.Containers, ct.Name)
	}
	for _, cond := range p.Status.Conditions {
		if cond.Type == "Ready" {
			out.Ready = cond.Status == "True" && o.GetDeletionTimestamp() == nil
		}
	}
	return out, nil
}

// ofPod makes a request of a pod's subresource. Names that are no path segment would reach another path.
func (c *Client) ofPod(req func() *rest.Request, namespace, pod, sub string) (*rest.Request, error) {
	for _, s := range []string{namespace, pod} {
		if why := path.IsValidPathSegmentName(s); s == "" || len(why) > 0 {
			return nil, fmt.Errorf("%q is not the name of a pod or namespace", s)
		}
	}
	return req().AbsPath("/api/v1/namespaces", namespace, "pods", pod, sub), nil
}

// ExecSpec is a command to run in a container of a pod.
type ExecSpec struct {
	Namespace string
	Pod       string
	Container string // empty means the pod's first
	Command   []string
	TTY       bool
	Stdin     io.Reader // nil means none
	Stdout    io.Writer // nil discards
	Stderr    io.Writer // nil discards; unused with a TTY
	Sizes     <-chan WindowSize
}

// WindowSize is the size of a terminal in characters.
type WindowSize struct{ Width, Height uint16 }

// Exec runs a command in a pod and returns its exit code. An error means that the command did not run, or that the
// connection broke; a command that ran and failed has a code and no error.
func (c *Client) Exec(ctx context.Context, spec ExecSpec) (int, error) {
	if c.rest == nil {
		return 0, errNoConnection
	}
	stdout, stderr := spec.Stdout, spec.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	req, err := c.ofPod(c.api.Post, spec.Namespace, spec.Pod, "exec")
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	req.Param("stdout", "true")
	for name, set := range map[string]bool{"stdin": spec.Stdin != nil, "stderr": !spec.TTY, "tty": spec.TTY} {
		if set {
			req.Param(name, "true")
		}
	}
	if spec.Container != "" {
		req.Param("container", spec.Container)
	}
	for _, word := range spec.Command {
		req.Param("command", word)
	}
	executor, err := c.executor(req.URL())
	if err != nil {
		return 0, Explain(fmt.Errorf("exec in pod %s/%s: %w", spec.Namespace, spec.Pod, err))
	}
	opt := remotecommand.StreamOptions{Stdin: spec.Stdin, Stdout: stdout, Tty: spec.TTY}
	if !spec.TTY {
		opt.Stderr = stderr
	}
	if spec.Sizes != nil {
		opt.TerminalSizeQueue = sizes{ctx, spec.Sizes}
	}
	err = executor.StreamWithContext(ctx, opt)
	var exit exec.CodeExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.Code, nil
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	return 0, diag.Wrap(diag.ExecFailed, fmt.Errorf("exec %q in pod %s/%s: %w", spec.Command, spec.Namespace, spec.Pod, err))
}

// executor speaks WebSocket and falls back to SPDY where the server, or a proxy on the way, does not.
func (c *Client) executor(u *url.URL) (remotecommand.Executor, error) {
	old, err := remotecommand.NewSPDYExecutor(c.rest, http.MethodPost, u)
	if err != nil {
		return nil, err
	}
	modern, err := remotecommand.NewWebSocketExecutor(c.rest, http.MethodGet, u.String())
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(modern, old, cannotUpgrade)
}

// cannotUpgrade reports that the other protocol is worth a try. The error's type lives in two packages, one of which is
// about to replace the other, and either may arrive.
func cannotUpgrade(err error) bool {
	return streaming.IsUpgradeFailure(err) || httpstream.IsUpgradeFailure(err) || streaming.IsHTTPSProxyError(err)
}

type sizes struct {
	ctx context.Context // ends with the one call it serves
	ch  <-chan WindowSize
}

// Next implements remotecommand.TerminalSizeQueue.
func (s sizes) Next() *remotecommand.TerminalSize {
	select {
	case size, ok := <-s.ch:
		if ok {
			return &remotecommand.TerminalSize{Width: size.Width, Height: size.Height}
		}
	case <-s.ctx.Done():
	}
	return nil
}

// LogSpec says which lines of which container's log are wanted.
type LogSpec struct {
	Namespace string
	Pod       string
	Container string // empty means the pod's only one
	Follow    bool
	Tail      int64 // lines from the end; negative means all
	Since     time.Duration
}

// Logs copies a container's log to w, until its end, or with Follow until ctx ends.
func (c *Client) Logs(ctx context.Context, spec LogSpec, w io.Writer) error {
	if c.rest == nil {
		return errNoConnection
	}
	req, err := c.ofPod(c.api.Get, spec.Namespace, spec.Pod, "log")
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	if spec.Container != "" {
		req.Param("container", spec.Container)
	}
	if spec.Follow {
		req.Param("follow", "true")
	}
	if spec.Tail >= 0 {
		req.Param("tailLines", strconv.FormatInt(spec.Tail, 10))
	}
	if spec.Since > 0 {
		req.Param("sinceSeconds", strconv.FormatInt(int64(spec.Since/time.Second), 10))
	}
	stream, err := req.Stream(ctx)
	if err != nil {
		return Explain(fmt.Errorf("read log of pod %s/%s: %w", spec.Namespace, spec.Pod, err))
	}
	defer stream.Close()
	if _, err := io.Copy(w, stream); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read log of pod %s/%s: %w", spec.Namespace, spec.Pod, err)
	}
	return nil
}

// Dial opens a connection to a TCP port of a pod through the API server, as `kubectl port-forward` does, without a local
// port in between. Each call has a connection of its own to the API server.
func (c *Client) Dial(ctx context.Context, namespace, pod string, port uint16) (net.Conn, error) {
	if c.rest == nil {
		return nil, errNoConnection
	}
	req, err := c.ofPod(c.api.Post, namespace, pod, "portforward")
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	u := req.URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.rest)
	if err != nil {
		return nil, fmt.Errorf("port-forward to %s/%s: %w", namespace, pod, err)
	}
	old := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	modern, err := portforward.NewSPDYOverWebsocketDialer(u, c.rest)
	if err != nil {
		return nil, fmt.Errorf("port-forward to %s/%s: %w", namespace, pod, err)
	}
	conn, _, err := portforward.NewFallbackDialer(modern, old, cannotUpgrade).Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, Explain(fmt.Errorf("port-forward to %s/%s: %w", namespace, pod, err))
	}
	f, err := newForwarded(conn, namespace+"/"+pod, port)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("port-forward to %s/%s:%d: %w", namespace, pod, port, err)
	}
	if ctx.Done() != nil {
		f.stop = context.AfterFunc(ctx, func() { _ = f.Close() })
	}
	return f, nil
}

// forwarded is one forwarded connection. The protocol has no deadlines; those that are set end the whole connection,
// which is what an HTTP client wants of them.
type forwarded struct {
	conn   httpstream.Connection
	data   httpstream.Stream
	remote forwardAddr
	stop   func() bool

	mu    sync.Mutex
	timer *time.Timer // guarded by mu
	err   error       // guarded by mu; what the other side said went wrong
}

func newForwarded(conn httpstream.Connection, pod string, port uint16) (*forwarded, error) {
	headers := http.Header{}
	headers.Set("streamType", "error")
	headers.Set("port", strconv.Itoa(int(port)))
	headers.Set("requestID", "0")
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open error stream: %w", err)
	}
	_ = errs.Close() // we never write to it
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open data stream: %w", err)
	}
	f := &forwarded{conn: conn, data: data, remote: forwardAddr(pod + ":" + strconv.Itoa(int(port)))}
	go func() { // ends with the connection
		text, err := io.ReadAll(io.LimitReader(errs, 4<<10))
		if err == nil && len(text) > 0 {
			f.mu.Lock()
			f.err = fmt.Errorf("port-forward to %s: %s", f.remote, text)
			f.mu.Unlock()
			_ = conn.Close()
		}
	}()
	return f, nil
}

func (f *forwarded) failure(err error) error {
	if err == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return err
}

func (f *forwarded) Read(b []byte) (int, error) {
	n, err := f.data.Read(b)
	return n, f.failure(err)
}

func (f *forwarded) Write(b []byte) (int, error) {
	n, err := f.data.Write(b)
	return n, f.failure(err)
}

// CloseWrite says that no more data follows.
func (f *forwarded) CloseWrite() error { return f.data.Close() }

func (f *forwarded) Close() error {
	if f.stop != nil {
		f.stop()
	}
	_ = f.SetDeadline(time.Time{})
	_ = f.data.Reset()
	return f.conn.Close()
}

func (f *forwarded) LocalAddr() net.Addr  { return forwardAddr("kube-apiserver") }
func (f *forwarded) RemoteAddr() net.Addr { return f.remote }

func (f *forwarded) SetDeadline(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if !t.IsZero() {
		f.timer = time.AfterFunc(time.Until(t), func() { _ = f.conn.Close() })
	}
	return nil
}

func (f *forwarded) SetReadDeadline(t time.Time) error  { return f.SetDeadline(t) }
func (f *forwarded) SetWriteDeadline(t time.Time) error { return f.SetDeadline(t) }

type forwardAddr string

func (forwardAddr) Network() string  { return "port-forward" }
func (a forwardAddr) String() string { return string(a) }

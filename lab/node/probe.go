package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// maxProbeBody bounds what is read of a probe's answer.
const maxProbeBody = 10 << 10

// probe runs the probes of a running container until ctx ends: first the startup probe alone, then the others. When a
// startup or liveness probe fails for good the container is stopped, and its restart policy decides what comes.
func (w *worker) probe(ctx context.Context, spec *corev1.Container, c *containerState, ran *runtime.Container) {
	if p := spec.StartupProbe; p != nil {
		ok := w.probeLoop(ctx, p, spec, ran, "Startup", func(bool) bool { return true })
		if ctx.Err() != nil {
			return
		}
		if !ok {
			w.killUnhealthy(ctx, spec, ran, p, "startup")
			return
		}
		w.change(func() {
			c.started = c.current == ran
			c.ready = c.started && spec.ReadinessProbe == nil
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if p := spec.ReadinessProbe; p != nil {
			w.probeLoop(ctx, p, spec, ran, "Readiness", func(ok bool) bool {
				w.change(func() { c.ready = ok && c.current == ran && c.state.Running != nil })
				return false
			})
		}
	}()
	if p := spec.LivenessProbe; p != nil {
		if !w.probeLoop(ctx, p, spec, ran, "Liveness", func(ok bool) bool { return !ok }) && ctx.Err() == nil {
			w.killUnhealthy(ctx, spec, ran, p, "liveness")
		}
	}
	<-done
}

func (w *worker) killUnhealthy(ctx context.Context, spec *corev1.Container, ran *runtime.Container, p *corev1.Probe, kind string) {
	w.event(corev1.EventTypeNormal, "Killing", "Container %s failed %s probe, will be restarted", spec.Name, kind)
	grace := 30 * time.Second
	if s := w.latest().Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	if s := p.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	_ = ran.Stop(ctx, grace) // never fails: it kills in the end
}

// probeLoop repeats a probe and tells settled every time that its verdict, with the thresholds applied, changes. It
// ends when settled returns true or ctx ends, and returns the last verdict.
func (w *worker) probeLoop(ctx context.Context, p *corev1.Probe, spec *corev1.Container, ran *runtime.Container, kind string, settled func(ok bool) bool) bool {
	period, success, failure := seconds(p.PeriodSeconds, 10), max(p.SuccessThreshold, 1), p.FailureThreshold
	if failure == 0 {
		failure = 3
	}
	if !wait(ctx, time.Duration(p.InitialDelaySeconds)*time.Second) {
		return false
	}
	verdict, known := false, false
	var good, bad int32
	// A program that is just starting is asked more often than the period says: that decides nothing but how soon its
	// pod is ready. Failures of these extra tries do not count.
	for early := firstProbePause; ; {
		next := period
		extra := kind == "Readiness" && !verdict && early < period
		if extra {
			next = early
			early *= 2
		}
		err := w.probeOnce(ctx, p, spec, ran)
		if ctx.Err() != nil {
			return verdict
		}
		switch {
		case err == nil:
			good, bad = good+1, 0
		case extra:
			good = 0
		default:
			good, bad = 0, bad+1
			if kind == "Readiness" && !verdict && bad < failure {
				break // it is starting
			}
			w.event(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %v", kind, err)
		}
		switch {
		case err == nil && good >= success && (!verdict || !known):
			verdict, known = true, true
			if settled(true) {
				return true
			}
		case err != nil && bad >= failure && (verdict || !known):
			verdict, known = false, true
			if settled(false) || kind == "Startup" {
				return false
			}
		}
		if !wait(ctx, next) {
			return verdict
		}
	}
}

// firstProbePause is the first pause between readiness probes of a container that is not ready yet.
const firstProbePause = 50 * time.Millisecond

// seconds is n seconds, or def of them when n is not set.
func seconds(n, def int32) time.Duration {
	if n == 0 {
		n = def
	}
	return time.Duration(n) * time.Second
}

// probeOnce asks once.
func (w *worker) probeOnce(ctx context.Context, p *corev1.Probe, spec *corev1.Container, ran *runtime.Container) error {
	ctx, cancel := context.WithTimeout(ctx, seconds(p.TimeoutSeconds, 1))
	defer cancel()
	switch {
	case p.Exec != nil:
		return execCheck(ctx, ran, p.Exec.Command)
	case p.HTTPGet != nil:
		return w.httpGet(ctx, p.HTTPGet, spec)
	case p.TCPSocket != nil:
		s, err := w.open()
		if err != nil {
			return err
		}
		port, err := portNumber(p.TCPSocket.Port, spec)
		if err != nil {
			return err
		}
		conn, err := s.Dial(ctx, "tcp", net.JoinHostPort(hostOr(p.TCPSocket.Host, s), port))
		if err != nil {
			return err
		}
		return conn.Close()
	case p.GRPC != nil:
		return errors.New("gRPC probes are not supported by the lab's node agent")
	}
	return errors.New("the probe has no action")
}

func execCheck(ctx context.Context, ran *runtime.Container, command []string) error {
	out := &limitedBuffer{max: maxProbeBody}
	code, err := ran.Exec(ctx, runtime.ExecSpec{Command: command, Stdout: out, Stderr: out})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("exit code %d: %s", code, out.String())
	}
	return nil
}

func hostOr(host string, s *runtime.Sandbox) string {
	if host != "" {
		return host
	}
	return s.Addr().String()
}

// portNumber resolves a port that may be a name.
func portNumber(p intstr.IntOrString, spec *corev1.Container) (string, error) {
	if p.Type == intstr.Int {
		return strconv.Itoa(p.IntValue()), nil
	}
	for _, port := range spec.Ports {
		if port.Name == p.StrVal {
			return strconv.Itoa(int(port.ContainerPort)), nil
		}
	}
	if _, err := strconv.ParseUint(p.StrVal, 10, 16); err == nil {
		return p.StrVal, nil
	}
	return "", fmt.Errorf("container %s has no port named %q", spec.Name, p.StrVal)
}

// httpGet asks a server of the pod. The connection is made inside the pod's network namespace, over its loopback
// interface: as with istio-cni, redirection into the mesh does not catch the node's probes.
func (w *worker) httpGet(ctx context.Context, g *corev1.HTTPGetAction, spec *corev1.Container) error {
	s, err := w.open()
	if err != nil {
		return err
	}
	port, err := portNumber(g.Port, spec)
	if err != nil {
		return err
	}
	scheme := "http"
	if g.Scheme == corev1.URISchemeHTTPS {
		scheme = "https"
	}
	path := g.Path
	if path == "" || path[0] != '/' {
		path = "/" + path
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(hostOr(g.Host, s), port)+path, nil)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	request.Header.Set("User-Agent", "kube-probe/1.36")
	for _, h := range g.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			request.Host = h.Value
			continue
		}
		request.Header.Add(h.Name, h.Value)
	}
	transport := &http.Transport{
		DialContext: s.Dial, DisableKeepAlives: true,
		// As the kubelet does: a probe asks for health, not for identity.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxProbeBody))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("HTTP status %d: %s", response.StatusCode, body)
	}
	return nil
}

// hook runs a postStart or preStop hook.
func (w *worker) hook(ctx context.Context, h *corev1.LifecycleHandler, ran *runtime.Container, spec *corev1.Container) error {
	switch {
	case h.Exec != nil:
		return execCheck(ctx, ran, h.Exec.Command)
	case h.HTTPGet != nil:
		return w.httpGet(ctx, h.HTTPGet, spec)
	case h.Sleep != nil:
		wait(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
		return nil
	}
	return errors.New("the hook has no action that the lab's node agent supports")
}

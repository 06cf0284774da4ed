package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// maxBackoffFactor is by how much the first pause between restarts may grow.
const maxBackoffFactor = 60

// backoffForgotten is how long a container must have run for its earlier ends to be forgotten.
const backoffForgotten = 10 * time.Minute

// maxTerminationMessage bounds what a container says about its end.
const maxTerminationMessage = 4 << 10

// containerState is what the node knows of one container. worker.mu guards all of it.
type containerState struct {
	name, image   string
	init, sidecar bool
	current       *runtime.Container // running, or ended last
	previous      *runtime.Container // the one before; its log is kept
	state, last   corev1.ContainerState
	restarts      int32
	ready         bool
	started       bool
	over          bool // it is not started again
	code          int  // of the last end, with over
	ids           int  // how many were started
}

func newContainerState(c *corev1.Container, initial bool) *containerState {
	s := &containerState{name: c.Name, image: c.Image, init: initial}
	s.sidecar = initial && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	s.state.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	return s
}

// change changes a container's state and reports it.
func (w *worker) change(f func()) {
	w.mu.Lock()
	f()
	w.mu.Unlock()
	w.touched()
}

// runInit runs the init containers one after the other. Sidecars among them go on in background. It reports false
// when the pod cannot go on.
func (w *worker) runInit(ctx context.Context, background *sync.WaitGroup) bool {
	pod := w.latest()
	for i := range pod.Spec.InitContainers {
		spec := &pod.Spec.InitContainers[i]
		c := w.state(spec.Name)
		if c.sidecar {
			background.Go(func() { w.runContainer(ctx, spec, corev1.RestartPolicyAlways) })
			if !w.awaitStarted(ctx, c) {
				return false
			}
			continue
		}
		policy := corev1.RestartPolicyOnFailure
		if pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
			policy = corev1.RestartPolicyNever
		}
		w.runContainer(ctx, spec, policy)
		if ctx.Err() != nil {
			return false
		}
		w.mu.Lock()
		code := c.code
		w.mu.Unlock()
		if code != 0 {
			w.touched() // the pod has failed
			return false
		}
	}
	return ctx.Err() == nil
}

// awaitStarted waits until a sidecar runs and has passed its startup probe.
func (w *worker) awaitStarted(ctx context.Context, c *containerState) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		w.mu.Lock()
		started := c.started
		w.mu.Unlock()
		if started {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// runContainer starts a container, and starts it again as policy says, until it has ended for good or ctx ends. When
// ctx ends a running container is left to end.
func (w *worker) runContainer(ctx context.Context, spec *corev1.Container, policy corev1.RestartPolicy) {
	c := w.state(spec.Name)
	ends := 0
	for ctx.Err() == nil {
		ran, err := w.startContainer(ctx, spec, c)
		if err != nil {
			if !w.notStarted(ctx, spec, c, err, &ends, policy) {
				return
			}
			continue
		}
		began := time.Now()
		w.superviseContainer(ctx, spec, c, ran)
		select {
		case <-ran.Done():
		default:
			return // ctx has ended; end stops the container
		}
		code := w.terminated(spec, c, ran)
		if policy == corev1.RestartPolicyNever || (policy == corev1.RestartPolicyOnFailure && code == 0) {
			w.change(func() { c.over, c.code = true, code })
			return
		}
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > backoffForgotten {
			ends = 0
		}
		if !w.backOff(ctx, spec, c, ends) {
			return
		}
		ends++
		w.change(func() { c.restarts++ })
	}
}

// backOff waits before a container is started again: not at all the first time.
func (w *worker) backOff(ctx context.Context, spec *corev1.Container, c *containerState, ends int) bool {
	if ends == 0 {
		return true
	}
	pause := w.pause(ends)
	w.event(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s", spec.Name, w.name)
	w.change(func() {
		if c.state.Terminated != nil {
			c.last = c.state
		}
		c.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{
			Reason: "CrashLoopBackOff", Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", pause, spec.Name, w.name, w.namespace, w.uid),
		}}
	})
	return wait(ctx, pause)
}

// pause is how long to wait after a number of ends or failures.
func (w *worker) pause(ends int) time.Duration {
	first := w.n.cfg.RestartBackoff
	return min(first<<min(ends-1, 10), maxBackoffFactor*first)
}

// notStarted handles a container that could not be started. It reports false when there is no point in trying again.
func (w *worker) notStarted(ctx context.Context, spec *corev1.Container, c *containerState, err error, ends *int, policy corev1.RestartPolicy) bool {
	if ctx.Err() != nil {
		return false
	}
	if cannot, ok := errors.AsType[*runtime.CannotStartError](err); ok {
		w.event(corev1.EventTypeWarning, "Failed", "Error: %s", cannot.Reason)
		now := metav1.Now()
		end := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 128, Reason: "StartError", Message: cannot.Reason, FinishedAt: now, ContainerID: w.containerID(c),
		}}
		w.change(func() { c.last, c.state = c.state, end })
		if policy == corev1.RestartPolicyNever {
			w.change(func() { c.over, c.code = true, 128 })
			return false
		}
		*ends++
		ok := w.backOff(ctx, spec, c, *ends)
		w.change(func() { c.restarts++ })
		return ok
	}
	first, again := "CreateContainerError", "CreateContainerError"
	switch {
	case errors.Is(err, runtime.ErrImageNotFound):
		first, again = "ErrImagePull", "ImagePullBackOff"
		w.event(corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", spec.Image, err)
	case errors.Is(err, errContainerConfig):
		first, again = "CreateContainerConfigError", "CreateContainerConfigError"
		w.event(corev1.EventTypeWarning, "Failed", "Error: %v", err)
	default:
		w.event(corev1.EventTypeWarning, "Failed", "Error: %v", err)
	}
	w.log().Info("container cannot be started", slog.String("container", spec.Name), slog.Any("error", err))
	*ends++
	for i, reason := range []string{first, again} {
		message := err.Error()
		if i == 1 && first != again {
			message = fmt.Sprintf("Back-off pulling image %q: %v", spec.Image, err)
		}
		w.change(func() {
			c.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
		})
		if !wait(ctx, w.pause(*ends)/2) {
			return false
		}
	}
	return true
}

// startContainer starts a container once.
func (w *worker) startContainer(ctx context.Context, spec *corev1.Container, c *containerState) (*runtime.Container, error) {
	s, err := w.open()
	if err != nil {
		return nil, err
	}
	if _, err := w.n.cfg.Runtime.Images().Resolve(spec.Image); err != nil {
		return nil, err
	}
	w.mu.Lock()
	c.ids++
	attempt := c.ids
	w.mu.Unlock()
	rs, err := w.containerSpec(ctx, spec, attempt)
	if err != nil {
		return nil, err
	}
	ran, err := s.Start(ctx, rs)
	if err != nil {
		return nil, err
	}
	var old *runtime.Container
	w.change(func() {
		old = c.previous
		c.previous, c.current = c.current, ran
		if c.state.Terminated != nil {
			c.last = c.state
		}
		c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(ran.StartedAt())}}
		c.started = spec.StartupProbe == nil
		c.ready = c.started && spec.ReadinessProbe == nil
	})
	if old != nil {
		_ = old.Remove() // only its log is lost, which nobody can ask for any more
	}
	w.event(corev1.EventTypeNormal, "Started", "Started container %s", spec.Name)
	return ran, nil
}

// containerSpec translates a container for the runtime.
func (w *worker) containerSpec(ctx context.Context, spec *corev1.Container, attempt int) (runtime.ContainerSpec, error) {
	env, err := w.environment(ctx, spec)
	if err != nil {
		return runtime.ContainerSpec{}, fmt.Errorf("%w: %w", errContainerConfig, err)
	}
	mounts, err := w.mounts(spec, env)
	if err != nil {
		return runtime.ContainerSpec{}, fmt.Errorf("%w: %w", errContainerConfig, err)
	}
	message := w.terminationLog(spec.Name)
	if err := os.MkdirAll(filepath.Dir(message), 0o755); err != nil {
		return runtime.ContainerSpec{}, err
	}
	if err := os.WriteFile(message, nil, 0o666); err != nil {
		return runtime.ContainerSpec{}, err
	}
	path := spec.TerminationMessagePath
	if path == "" {
		path = corev1.TerminationMessagePathDefault
	}
	mounts = append(mounts, runtime.Mount{Source: message, Target: path})
	identity, identityMounts := w.podIdentity(ctx)
	out := runtime.ContainerSpec{
		ID: fmt.Sprintf("%s-%s-%d", w.uid, spec.Name, attempt), Name: spec.Name, Image: spec.Image,
		Entrypoint: expandAll(spec.Command, env), Command: expandAll(spec.Args, env), Env: append(identity, env...),
		WorkingDir: spec.WorkingDir, Mounts: append(mounts, identityMounts...), TTY: spec.TTY, Stdin: spec.Stdin,
		LogPath: filepath.Join(w.dir(), "logs", spec.Name, strconv.Itoa(attempt)+".log"),
	}
	if sc := spec.SecurityContext; sc != nil && sc.ReadOnlyRootFilesystem != nil {
		out.ReadOnlyRoot = *sc.ReadOnlyRootFilesystem
	}
	return out, nil
}

func (w *worker) terminationLog(container string) string {
	return filepath.Join(w.dir(), "termination", container)
}

// superviseContainer probes a container until it ends, a liveness or startup probe fails for good, or ctx ends.
func (w *worker) superviseContainer(ctx context.Context, spec *corev1.Container, c *containerState, ran *runtime.Container) {
	ctx, cancel := context.WithCancel(ctx)
	var probes sync.WaitGroup
	defer probes.Wait()
	defer cancel()
	if spec.Lifecycle != nil && spec.Lifecycle.PostStart != nil {
		if err := w.hook(ctx, spec.Lifecycle.PostStart, ran, spec); err != nil {
			w.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook of container %s failed: %v", spec.Name, err)
			_ = ran.Stop(ctx, 0) // it is started again by the restart policy
		}
	}
	probes.Go(func() { w.probe(ctx, spec, c, ran) })
	select {
	case <-ran.Done():
	case <-ctx.Done():
	}
}

// terminated records the end of a container and returns its exit code.
func (w *worker) terminated(spec *corev1.Container, c *containerState, ran *runtime.Container) int {
	code, signal := ran.ExitStatus()
	t := &corev1.ContainerStateTerminated{
		ExitCode: int32(code), Reason: "Completed", StartedAt: metav1.NewTime(ran.StartedAt()), FinishedAt: metav1.NewTime(ran.FinishedAt()),
		ContainerID: containerID(ran),
	}
	if code != 0 {
		t.Reason = "Error"
	}
	if signal != "" {
		t.Message = "ended by " + signal
	}
	if m := w.terminationMessage(spec, ran, code); m != "" {
		t.Message = m
	}
	w.change(func() {
		if c.current == ran {
			c.state = corev1.ContainerState{Terminated: t}
			c.ready, c.started = false, false
		}
	})
	return code
}

// terminationMessage is what the container left in its message file, or the end of its log if that was asked for.
func (w *worker) terminationMessage(spec *corev1.Container, ran *runtime.Container, code int) string {
	f, err := os.Open(w.terminationLog(spec.Name))
	if err == nil {
		defer f.Close()
		b := make([]byte, maxTerminationMessage)
		if n, _ := f.Read(b); n > 0 {
			return string(b[:n])
		}
	}
	if spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || code == 0 {
		return ""
	}
	var b limitedBuffer
	b.max = maxTerminationMessage
	if err := ran.Logs(context.Background(), runtime.LogOptions{Tail: 80}, &b); err != nil {
		return ""
	}
	return b.String()
}

// stop ends a running container: first its preStop hook, then SIGTERM, then SIGKILL at the deadline.
func (w *worker) stop(ctx context.Context, c *containerState, deadline time.Time) {
	w.mu.Lock()
	ran := c.current
	spec := w.containerByName(c.name)
	w.mu.Unlock()
	if ran == nil || spec == nil {
		return
	}
	select {
	case <-ran.Done():
	default:
		w.event(corev1.EventTypeNormal, "Killing", "Stopping container %s", c.name)
		if spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
			hookCtx, cancel := context.WithDeadline(ctx, deadline)
			if err := w.hook(hookCtx, spec.Lifecycle.PreStop, ran, spec); err != nil {
				w.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook of container %s failed: %v", c.name, err)
			}
			cancel()
		}
		_ = ran.Stop(ctx, max(time.Until(deadline), 0)) // never fails: it kills in the end
	}
	w.terminated(spec, c, ran)
}

// containerByName returns a container's specification. w.mu is held.
func (w *worker) containerByName(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{w.pod.Spec.Containers, w.pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// containerID is the identifier of a container in the form that a pod's status has.
func containerID(c *runtime.Container) string { return "isthmus-lab://" + c.ID() }

func (w *worker) containerID(c *containerState) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.current == nil {
		return ""
	}
	return containerID(c.current)
}

// limitedBuffer keeps the last max bytes that are written to it.
type limitedBuffer struct {
	b   []byte
	max int
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	if extra := len(l.b) - l.max; extra > 0 {
		l.b = l.b[extra:]
	}
	return len(p), nil
}

func (l *limitedBuffer) String() string { return string(l.b) }

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// worker runs one pod from its first appearance to the end of its object.
type worker struct {
	n               *Node
	uid             types.UID
	namespace, name string
	tokens          *tokens
	asked           chan struct{} // closed when the pod is to end
	askedOnce       sync.Once
	changed         chan struct{} // something that the pod's place in the mesh depends on has changed; capacity 1
	dirty           chan struct{} // the status has changed; capacity 1

	mu         sync.Mutex
	pod        *corev1.Pod                           // guarded by mu; the latest version
	sandbox    *runtime.Sandbox                      // guarded by mu
	containers map[string]*containerState            // guarded by mu, contents too; by name
	grace      time.Duration                         // guarded by mu; how long containers may take to end
	objectGone bool                                  // guarded by mu; there is no object to report to
	failure    podFailure                            // guarded by mu; why the pod as a whole has failed
	since      map[corev1.PodConditionType]condition // guarded by mu
	startTime  metav1.Time
}

// podFailure is a reason for a whole pod to fail.
type podFailure struct{ reason, message string }

// condition is the last status of a pod condition and since when it holds.
type condition struct {
	status corev1.ConditionStatus
	at     metav1.Time
}

func newWorker(n *Node, pod *corev1.Pod) *worker {
	w := &worker{
		n: n, uid: pod.UID, namespace: pod.Namespace, name: pod.Name, pod: pod,
		asked: make(chan struct{}), changed: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
		containers: map[string]*containerState{}, since: map[corev1.PodConditionType]condition{}, startTime: metav1.Now(),
	}
	w.tokens = &tokens{w: w, issued: map[tokenKey]*issuedToken{}}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		w.containers[c.Name] = newContainerState(c, true)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		w.containers[c.Name] = newContainerState(c, false)
	}
	w.update(pod)
	return w
}

// update takes a newer version of the pod's object.
func (w *worker) update(pod *corev1.Pod) {
	w.mu.Lock()
	w.pod = pod
	if pod.DeletionTimestamp != nil {
		w.grace = 30 * time.Second
		if s := pod.DeletionGracePeriodSeconds; s != nil {
			w.grace = time.Duration(*s) * time.Second
		}
	}
	w.mu.Unlock()
	if pod.DeletionTimestamp != nil {
		w.askedOnce.Do(func() { close(w.asked) })
	}
	w.nudge()
}

// gone ends the pod at once: its object does not exist any more.
func (w *worker) gone() {
	w.mu.Lock()
	w.objectGone = true
	w.grace = 0
	w.mu.Unlock()
	w.askedOnce.Do(func() { close(w.asked) })
}

// nudge makes the worker look at the pod's place in the mesh again.
func (w *worker) nudge() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// touched says that the status has changed.
func (w *worker) touched() {
	select {
	case w.dirty <- struct{}{}:
	default:
	}
}

func (w *worker) latest() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

func (w *worker) dir() string { return filepath.Join(w.n.cfg.Dir, "pods", string(w.uid)) }

func (w *worker) log() *slog.Logger {
	return w.n.log.With(slog.String("namespace", w.namespace), slog.String("pod", w.name))
}

// event records an event of the pod.
func (w *worker) event(kind, reason, format string, args ...any) {
	w.n.recorder.Eventf(w.latest(), kind, reason, format, args...)
}

// run runs the pod. It returns when the pod's object is gone or is to be left alone.
func (w *worker) run(ctx context.Context) {
	reporting, stopReporting := context.WithCancel(ctx)
	defer stopReporting()
	var reporter sync.WaitGroup
	reporter.Go(func() { w.report(reporting) })
	living, stopLiving := context.WithCancel(ctx)
	var life sync.WaitGroup
	life.Go(func() { w.live(living) })
	select {
	case <-w.asked:
	case <-ctx.Done():
	}
	stopLiving() // nothing is started or probed any more
	life.Wait()
	w.end(ctx)
	stopReporting()
	reporter.Wait()
	w.finish(ctx)
}

// live prepares the pod and runs its containers until all have ended for good or ctx ends.
func (w *worker) live(ctx context.Context) {
	if reason := unsupported(&w.latest().Spec); reason != "" {
		w.fail("Unsupported", reason)
		return
	}
	w.touched()
	if !w.prepare(ctx) {
		return
	}
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() { w.refreshVolumes(ctx) })
	background.Go(func() { w.followMesh(ctx) })
	if !w.runInit(ctx, &background) {
		return
	}
	pod := w.latest()
	var apps sync.WaitGroup
	for i := range pod.Spec.Containers {
		spec := &pod.Spec.Containers[i]
		apps.Go(func() { w.runContainer(ctx, spec, pod.Spec.RestartPolicy) })
	}
	apps.Wait()
	w.touched()
}

// unsupported returns what the node agent cannot do for a pod, or "".
func unsupported(spec *corev1.PodSpec) string {
	if spec.HostNetwork {
		return "host networking is not supported by the lab's node agent"
	}
	if spec.OS != nil && spec.OS.Name != corev1.Linux {
		return "only Linux containers run in the lab"
	}
	return ""
}

// fail marks the whole pod as failed.
func (w *worker) fail(reason, message string) {
	w.event(corev1.EventTypeWarning, reason, "%s", message)
	w.mu.Lock()
	w.failure = podFailure{reason, message}
	w.mu.Unlock()
	w.touched()
}

// prepareQuietly is how long a pod waits for what it needs before that is worth an event: what is created together rarely
// comes in the right order.
const prepareQuietly = time.Second

// prepare makes volumes and sandbox and joins the mesh, trying again until it succeeds or ctx ends.
func (w *worker) prepare(ctx context.Context) bool {
	for _, step := range []struct {
		reason string
		run    func(context.Context) error
	}{
		{"FailedMount", w.prepareVolumes}, {"FailedCreatePodSandBox", w.openSandbox}, {"FailedMeshEnrolment", w.joinMesh},
	} {
		last, begin := "", time.Now()
		for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
			err := step.run(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return false
			}
			if err.Error() != last && time.Since(begin) >= prepareQuietly {
				last = err.Error()
				w.event(corev1.EventTypeWarning, step.reason, "%s", last)
				w.log().Info("pod cannot start yet", slog.String("reason", step.reason), slog.Any("error", err))
			}
			if !wait(ctx, pause) {
				return false
			}
		}
	}
	w.touched()
	return true
}

// openSandbox gives the pod its network namespace.
func (w *worker) openSandbox(ctx context.Context) error {
	w.mu.Lock()
	pod, have := w.pod, w.sandbox
	w.mu.Unlock()
	if have != nil {
		return nil
	}
	spec := runtime.SandboxSpec{ID: "pod-" + string(w.uid), Hostname: hostname(pod), Hosts: map[string]netip.Addr{}}
	spec.Nameservers, spec.Searches, spec.Options = w.n.dns(pod)
	for _, alias := range pod.Spec.HostAliases {
		addr, err := netip.ParseAddr(alias.IP)
		if err != nil {
			return fmt.Errorf("host alias: %w", err)
		}
		for _, name := range alias.Hostnames {
			spec.Hosts[name] = addr
		}
	}
	s, err := w.n.cfg.Runtime.NewSandbox(ctx, spec)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.sandbox = s
	w.mu.Unlock()
	return nil
}

func hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	return name[:min(len(name), 63)]
}

// dns returns the resolver settings of a pod.
func (n *Node) dns(pod *corev1.Pod) (servers []netip.Addr, searches, options []string) {
	if pod.Spec.DNSPolicy != corev1.DNSNone {
		servers = []netip.Addr{n.cfg.ClusterDNS}
	}
	if p := pod.Spec.DNSPolicy; p == "" || p == corev1.DNSClusterFirst || p == corev1.DNSClusterFirstWithHostNet {
		d := n.cfg.ClusterDomain
		searches = []string{pod.Namespace + ".svc." + d, "svc." + d, d}
		options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		for _, s := range c.Nameservers {
			if a, err := netip.ParseAddr(s); err == nil {
				servers = append(servers, a)
			}
		}
		searches = append(searches, c.Searches...)
		for _, o := range c.Options {
			// The pod's own value takes the place of the cluster's.
			options = slices.DeleteFunc(options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			if o.Value != nil {
				options = append(options, o.Name+":"+*o.Value)
			} else {
				options = append(options, o.Name)
			}
		}
	}
	return servers, searches, options
}

// end stops what runs in the pod: the containers together, then the sidecars in reverse order. When the whole agent
// ends, nothing is waited for.
func (w *worker) end(ctx context.Context) {
	pod := w.latest()
	var apps, sidecars []*containerState
	for i := range pod.Spec.Containers {
		apps = append(apps, w.state(pod.Spec.Containers[i].Name))
	}
	for i := range pod.Spec.InitContainers {
		sidecars = append(sidecars, w.state(pod.Spec.InitContainers[i].Name))
	}
	if ctx.Err() == nil {
		w.mu.Lock()
		grace := w.grace
		w.mu.Unlock()
		deadline := time.Now().Add(grace)
		var wg sync.WaitGroup
		for _, c := range apps {
			wg.Go(func() { w.stop(ctx, c, deadline) })
		}
		wg.Wait()
		slices.Reverse(sidecars)
		for _, c := range sidecars {
			w.stop(ctx, c, deadline)
		}
	}
	w.mu.Lock()
	s := w.sandbox
	w.mu.Unlock()
	w.n.ambient.leave(context.WithoutCancel(ctx), w)
	if s != nil {
		if err := s.Close(); err != nil {
			w.log().Warn("sandbox not closed cleanly", slog.Any("error", err))
		}
	}
	w.touched()
}

// finish removes the pod's files and, when the pod was asked to end, its object.
func (w *worker) finish(ctx context.Context) {
	if err := os.RemoveAll(w.dir()); err != nil {
		w.log().Warn("files of a pod not removed", slog.Any("error", err))
	}
	w.mu.Lock()
	gone := w.objectGone
	w.mu.Unlock()
	if gone || ctx.Err() != nil {
		return
	}
	w.reportOnce(ctx, nil) // the last status: everything has terminated
	zero := int64(0)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := w.n.cfg.Kube.CoreV1().Pods(w.namespace).Delete(ctx, w.name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &w.uid},
		})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return
		}
		w.log().Warn("pod object not removed", slog.Any("error", err))
		if !wait(ctx, pause) {
			return
		}
	}
}

// state returns the state of a container by name.
func (w *worker) state(name string) *containerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.containers[name]
}

var errNoSandbox = errors.New("the pod has no sandbox yet")

// open returns the sandbox.
func (w *worker) open() (*runtime.Sandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sandbox == nil {
		return nil, errNoSandbox
	}
	return w.sandbox, nil
}

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// report writes the pod's status every time it has changed, until ctx ends.
func (w *worker) report(ctx context.Context) {
	var last *corev1.PodStatus
	for {
		select {
		case <-w.dirty:
		case <-ctx.Done():
			return
		}
		last = w.reportOnce(ctx, last)
	}
}

// reportOnce writes the status unless it equals last, trying again until it succeeds, and returns what was written.
func (w *worker) reportOnce(ctx context.Context, last *corev1.PodStatus) *corev1.PodStatus {
	first := 50 * time.Millisecond
	for pause := first; ; pause = min(2*pause, 5*time.Second) {
		status := w.status()
		if last != nil && equality.Semantic.DeepEqual(*last, status) {
			return last
		}
		err := w.write(ctx, &status)
		if err == nil {
			return &status
		}
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || ctx.Err() != nil {
			return last // the object is gone, or a new one has its name
		}
		if pause == first { // once, however long the API server is down
			w.log().Warn("pod status not written", slog.Any("error", err))
		}
		if !wait(ctx, pause) {
			return last
		}
	}
}

func (w *worker) write(ctx context.Context, status *corev1.PodStatus) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": w.uid}, "status": status})
	if err != nil {
		return fmt.Errorf("encode pod status: %w", err)
	}
	if _, err := w.n.cfg.Kube.CoreV1().Pods(w.namespace).Patch(ctx, w.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("write pod status: %w", err)
	}
	return nil
}

// status computes the pod's status.
func (w *worker) status() corev1.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	host := w.n.cfg.Address.String()
	st := corev1.PodStatus{HostIP: host, HostIPs: []corev1.HostIP{{IP: host}}, StartTime: &w.startTime}
	if w.sandbox != nil {
		ip := w.sandbox.Addr().String()
		st.PodIP, st.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
	initialized, ready := true, true
	for i := range w.pod.Spec.InitContainers {
		c := w.containers[w.pod.Spec.InitContainers[i].Name]
		st.InitContainerStatuses = append(st.InitContainerStatuses, w.containerStatus(c))
		if c.sidecar {
			initialized = initialized && c.started
			ready = ready && c.ready
		} else {
			initialized = initialized && c.over && c.code == 0
		}
	}
	running, over, failed := 0, 0, 0
	for i := range w.pod.Spec.Containers {
		c := w.containers[w.pod.Spec.Containers[i].Name]
		st.ContainerStatuses = append(st.ContainerStatuses, w.containerStatus(c))
		ready = ready && c.ready
		switch {
		case c.over:
			over++
			if c.code != 0 {
				failed++
			}
		case c.state.Running != nil || c.ids > 0:
			running++
		}
	}
	st.Phase = corev1.PodPending
	switch {
	case w.failure.reason != "":
		st.Phase, st.Reason, st.Message = corev1.PodFailed, w.failure.reason, w.failure.message
	case w.initFailed():
		st.Phase = corev1.PodFailed
	case over == len(w.pod.Spec.Containers):
		st.Phase = corev1.PodSucceeded
		if failed > 0 {
			st.Phase = corev1.PodFailed
		}
	case running+over > 0:
		st.Phase = corev1.PodRunning
	}
	if w.pod.DeletionTimestamp != nil {
		w.lastPhase(&st)
	}
	w.conditions(&st, initialized, ready)
	return st
}

// lastPhase sets the phase of a pod that was asked to end: Failed or Succeeded once everything has ended. w.mu is held.
func (w *worker) lastPhase(st *corev1.PodStatus) {
	if st.Phase == corev1.PodFailed || st.Phase == corev1.PodSucceeded {
		return
	}
	phase := corev1.PodSucceeded
	for _, c := range st.ContainerStatuses {
		switch {
		case c.State.Running != nil:
			return
		case c.State.Terminated == nil || c.State.Terminated.ExitCode != 0:
			phase = corev1.PodFailed
		}
	}
	if st.Phase == corev1.PodPending {
		return // it never ran
	}
	st.Phase = phase
}

// initFailed reports whether an init container has failed for good. w.mu is held.
func (w *worker) initFailed() bool {
	for _, c := range w.containers {
		if c.init && !c.sidecar && c.over && c.code != 0 {
			return true
		}
	}
	return false
}

// containerStatus is the status of one container. w.mu is held.
func (w *worker) containerStatus(c *containerState) corev1.ContainerStatus {
	started := c.started
	s := corev1.ContainerStatus{
		Name: c.name, Image: c.image, ImageID: "isthmus-lab://" + c.image, State: c.state, LastTerminationState: c.last,
		RestartCount: c.restarts, Ready: c.ready, Started: &started,
	}
	if c.init && !c.sidecar {
		s.Ready = c.over && c.code == 0
	}
	if c.current != nil {
		s.ContainerID = containerID(c.current)
	}
	if s.State.Waiting != nil && s.State.Waiting.Reason == "PodInitializing" && (c.init || len(w.pod.Spec.InitContainers) == 0) {
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
	}
	return s
}

// conditions fills in the conditions, keeping the time of the last change of each. w.mu is held.
func (w *worker) conditions(st *corev1.PodStatus, initialized, ready bool) {
	finished := st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed
	ready = ready && st.Phase == corev1.PodRunning
	reason := ""
	switch {
	case st.Phase == corev1.PodSucceeded:
		reason = "PodCompleted"
	case st.Phase == corev1.PodFailed:
		reason = "PodFailed"
	case !initialized:
		reason = "ContainersNotInitialized"
	case !ready:
		reason = "ContainersNotReady"
	}
	gates := true
	for _, gate := range w.pod.Spec.ReadinessGates {
		gates = gates && conditionTrue(w.pod, gate.ConditionType)
	}
	for _, c := range []struct {
		kind corev1.PodConditionType
		ok   bool
	}{
		{corev1.PodReadyToStartContainers, w.sandbox != nil && !finished},
		{corev1.PodInitialized, initialized || (finished && st.Phase == corev1.PodSucceeded)},
		{corev1.ContainersReady, ready},
		{corev1.PodReady, ready && gates},
	} {
		status := corev1.ConditionFalse
		if c.ok {
			status = corev1.ConditionTrue
		}
		was := w.since[c.kind]
		if was.status != status {
			was = condition{status, metav1.Now()}
			w.since[c.kind] = was
		}
		pc := corev1.PodCondition{Type: c.kind, Status: status, LastTransitionTime: was.at}
		switch {
		case c.ok || c.kind == corev1.PodReadyToStartContainers:
		case c.kind == corev1.PodReady && ready && !gates:
			pc.Reason = "ReadinessGatesNotReady"
		default:
			pc.Reason = reason
		}
		st.Conditions = append(st.Conditions, pc)
	}
}

func conditionTrue(pod *corev1.Pod, kind corev1.PodConditionType) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

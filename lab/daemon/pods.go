package daemon

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/lab/controlplane"
)

// podTimeout bounds what status and actions ask of the API server, which may be the part that is down.
const podTimeout = 2 * time.Second

// podComponents returns the pods of Istio and Isthmus. When the API server does not answer there are none to show.
func podComponents(ctx context.Context, plane *controlplane.ControlPlane) []Component {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(plane.RESTConfig(controlplane.Admin))
	if err != nil {
		return nil
	}
	list, err := client.CoreV1().Pods(controlplane.IstioNamespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil
	}
	byHost := processesByHost("/proc")
	var all []Component
	for i := range list.Items {
		pod := &list.Items[i]
		s := controlplane.Status{Name: appOf(pod) + " (" + pod.Name + ")", Ready: podReady(pod)}
		if pod.Status.StartTime != nil {
			s.Started = pod.Status.StartTime.Time
		}
		for _, c := range pod.Status.ContainerStatuses {
			s.Restarts += int(c.RestartCount)
			if c.State.Waiting != nil {
				s.LastExit = c.State.Waiting.Reason
			}
		}
		for _, pid := range byHost[pod.Name] {
			s.RSSBytes += controlplane.ResidentBytes(pid)
			s.PID = pid // the youngest is the program; the others are its inits
		}
		all = append(all, Component{Status: s, Kind: "pod"})
	}
	slices.SortFunc(all, func(a, b Component) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Name, b.Name)) })
	return all
}

func appOf(pod *corev1.Pod) string {
	return cmp.Or(pod.Labels["app"], pod.Labels["app.kubernetes.io/name"], "pod")
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// processesByHost groups the processes of the lab, in order of their numbers, by the host name of their container,
// which for a pod is its name.
func processesByHost(proc string) map[string][]int {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	grouped := map[string][]int{}
	for _, pid := range pids {
		b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "root/etc/hostname"))
		if err == nil {
			host := strings.TrimSpace(string(b))
			grouped[host] = append(grouped[host], pid)
		}
	}
	return grouped
}

// The actions on a component.
const (
	// ActionKill ends it as a crash would; it comes back by itself.
	ActionKill = "kill"
	// ActionRestart ends it in good order and starts it again.
	ActionRestart = "restart"
	// ActionStop ends it and keeps it down until ActionRestart.
	ActionStop = "stop"
)

// act does something to a component: a process of the control plane, or the pods of an app in Istio's namespace.
func (d *Daemon) act(ctx context.Context, name, action string) error {
	d.mu.Lock()
	plane, aws := d.plane, d.endpoint
	d.mu.Unlock()
	if name == componentAWS && aws != nil {
		return aws.act(ctx, action)
	}
	if plane == nil {
		return fmt.Errorf("%s %s: the control plane is not started yet", action, name)
	}
	if c, err := plane.Component(name); err == nil {
		switch action {
		case ActionKill:
			return c.Kill()
		case ActionRestart:
			return c.Restart()
		case ActionStop:
			return c.Stop()
		}
		return fmt.Errorf("no action %q: there are %s, %s and %s", action, ActionKill, ActionRestart, ActionStop)
	}
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	client, err := kubernetes.NewForConfig(plane.RESTConfig(controlplane.Admin))
	if err != nil {
		return fmt.Errorf("make Kubernetes client: %w", err)
	}
	pods := client.CoreV1().Pods(controlplane.IstioNamespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("%s %s: %w", action, name, err)
	}
	options := metav1.DeleteOptions{}
	switch action {
	case ActionKill:
		options.GracePeriodSeconds = new(int64)
	case ActionRestart:
	default:
		return fmt.Errorf("no action %q on pods: there are %s and %s; scale the workload to stop it", action, ActionKill, ActionRestart)
	}
	found := false
	for i := range list.Items {
		if appOf(&list.Items[i]) != name {
			continue
		}
		found = true
		if err := pods.Delete(ctx, list.Items[i].Name, options); err != nil {
			return fmt.Errorf("%s %s: %w", action, name, err)
		}
	}
	if !found {
		return fmt.Errorf("no component %q: see `isthmus lab status`", name)
	}
	return nil
}

// podTroubles says of every pod of Istio and Isthmus that is not ready why, one line each, for the error of a start that
// waited in vain. It returns "" when there is nothing to say.
func podTroubles(ctx context.Context, client kubernetes.Interface) string {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	list, err := client.CoreV1().Pods(controlplane.IstioNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "the pods cannot be listed: " + err.Error()
	}
	var b strings.Builder
	for i := range list.Items {
		if pod := &list.Items[i]; !podReady(pod) {
			fmt.Fprintf(&b, "\npod %s is %s%s", pod.Name, cmp.Or(string(pod.Status.Phase), "not seen by the node"), troubleOf(pod))
		}
	}
	return b.String()
}

// troubleOf returns the most telling reason why a pod is not ready, led by a colon.
func troubleOf(pod *corev1.Pod) string {
	for _, c := range pod.Status.ContainerStatuses {
		switch {
		case c.State.Waiting != nil:
			return strings.TrimRight(": "+c.Name+" waits: "+c.State.Waiting.Reason+" "+c.State.Waiting.Message, " ")
		case c.State.Terminated != nil:
			return fmt.Sprintf(": %s ended with code %d %s", c.Name, c.State.Terminated.ExitCode, c.State.Terminated.Reason)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue && c.Message != "" {
			return ": " + c.Message
		}
	}
	return ""
}

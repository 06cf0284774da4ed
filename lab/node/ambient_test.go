package node

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWhichPodsAreWanted(t *testing.T) {
	ambientNamespace := map[string]string{dataplaneLabel: dataplaneAmbient}
	for _, test := range []struct {
		name      string
		namespace map[string]string
		pod       corev1.Pod
		want      bool
	}{
		{name: "plain namespace"},
		{name: "ambient namespace", namespace: ambientNamespace, want: true},
		{name: "pod opts out", namespace: ambientNamespace, pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{dataplaneLabel: "none"}}}},
		{name: "pod opts in", pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{dataplaneLabel: dataplaneAmbient}}}, want: true},
		{name: "host network", namespace: ambientNamespace, pod: corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true}}},
		{name: "sidecar", namespace: ambientNamespace, pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{sidecarAnnotation: "{}"}}}},
		{name: "ztunnel", namespace: ambientNamespace, pod: corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Labels: map[string]string{"app": "ztunnel"}}}},
		{name: "other mode", namespace: map[string]string{dataplaneLabel: "none"}},
	} {
		if got := wanted(&test.pod, test.namespace); got != test.want {
			t.Errorf("%s: wanted = %v, want %v", test.name, got, test.want)
		}
	}
}

func annotated(p *corev1.Pod) bool { return p.Annotations[redirectionAnnotation] == redirectionEnabled }

func TestPodJoinsAndLeavesTheMesh(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	spec := podSpec("member", "sleep 1000")
	spec.Namespace = "mesh"
	pod := n.create(t, spec)
	outside := n.create(t, podSpec("outside", "sleep 1000"))
	n.until(t, pod, "annotated and ready", func(p *corev1.Pod) bool { return ready(p) && annotated(p) })
	n.until(t, outside, "ready", ready)
	if !n.cni.has(pod.UID) || n.cni.has(outside.UID) {
		t.Errorf("ztunnel knows of %v", n.cni.pods)
	}
	if got := n.cni.pods[string(pod.UID)]; got.Name != "member" || got.Namespace != "mesh" || got.ServiceAccount != "web" {
		t.Errorf("ztunnel knows %+v", got)
	}
	relabel := func(namespace string, labels map[string]string) {
		t.Helper()
		if _, err := n.kube.CoreV1().Namespaces().Update(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: labels}}, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	relabel("default", map[string]string{dataplaneLabel: dataplaneAmbient})
	n.until(t, outside, "in the mesh", func(p *corev1.Pod) bool { return annotated(p) && n.cni.has(p.UID) })
	relabel("mesh", nil)
	n.until(t, pod, "out of the mesh", func(p *corev1.Pod) bool { return !annotated(p) && !n.cni.has(p.UID) })
	n.remove(t, outside, 0)
	eventually(t, "forgotten by ztunnel", func() bool { return !n.cni.has(outside.UID) }, func() string { return "still known" })
}

func TestPodWaitsForTheMesh(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	n.cni.mu.Lock()
	n.cni.err = errors.New("no ztunnel")
	n.cni.mu.Unlock()
	spec := podSpec("early", "sleep 1000")
	spec.Namespace = "mesh"
	pod := n.create(t, spec)
	eventually(t, "refused", func() bool {
		events, err := n.kube.CoreV1().Events("mesh").List(t.Context(), metav1.ListOptions{})
		return err == nil && len(events.Items) > 0 && events.Items[0].Reason == "FailedMeshEnrolment"
	}, func() string { return "no event" })
	if now := n.get(t, pod); now.Status.Phase == corev1.PodRunning {
		t.Error("a pod of the mesh runs outside of it")
	}
	n.cni.mu.Lock()
	n.cni.err = nil
	n.cni.mu.Unlock()
	n.until(t, pod, "ready", ready)
}

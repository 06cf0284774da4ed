package node

import (
	"context"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/google/go-cmp/cmp"
)

func TestNodeRegisters(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	var node *corev1.Node
	eventually(t, "registered", func() bool {
		var err error
		node, err = n.kube.CoreV1().Nodes().Get(t.Context(), "lab-node", metav1.GetOptions{})
		return err == nil && len(node.Status.Conditions) > 0
	}, func() string { return "no node" })
	for _, c := range node.Status.Conditions {
		if want := c.Type == corev1.NodeReady; (c.Status == corev1.ConditionTrue) != want {
			t.Errorf("condition %s is %s", c.Type, c.Status)
		}
	}
	if got := node.Status.Addresses[0].Address; got != "10.0.0.1" {
		t.Errorf("address %s", got)
	}
	if node.Status.DaemonEndpoints.KubeletEndpoint.Port != 10250 || node.Labels[corev1.LabelTopologyZone] != "us-east-2a" {
		t.Errorf("port %d, zone %q", node.Status.DaemonEndpoints.KubeletEndpoint.Port, node.Labels[corev1.LabelTopologyZone])
	}
	eventually(t, "leased", func() bool {
		lease, err := n.kube.CoordinationV1().Leases(leaseNamespace).Get(t.Context(), "lab-node", metav1.GetOptions{})
		return err == nil && lease.Spec.RenewTime != nil
	}, func() string { return "no lease" })
}

func TestPodLife(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	spec := podSpec("life", `trap 'echo bye > /data/end; exit 0' TERM; cat /data/init; echo ready; while :; do sleep 0.02; done`)
	spec.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	mount := []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	spec.Spec.Containers[0].VolumeMounts = mount
	spec.Spec.InitContainers = []corev1.Container{
		{Name: "first", Image: "busybox", Command: []string{"sh", "-c", "echo one > /data/init"}, VolumeMounts: mount},
		{Name: "second", Image: "busybox", Command: []string{"sh", "-c", "echo two >> /data/init"}, VolumeMounts: mount},
	}
	pod := n.create(t, spec)
	now := n.until(t, pod, "ready", ready)
	if now.Status.Phase != corev1.PodRunning || now.Status.PodIP == "" || now.Status.HostIP != "10.0.0.1" || !*now.Status.ContainerStatuses[0].Started {
		t.Errorf("status %+v", now.Status)
	}
	for _, s := range now.Status.InitContainerStatuses {
		if s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" || !s.Ready {
			t.Errorf("init container %s: %+v", s.Name, s.State)
		}
	}
	eventually(t, "printed", func() bool { return n.output(t, pod, "main") == "one\ntwo\nready\n" }, func() string { return n.output(t, pod, "main") })
	if got := n.run(t, pod, "hostname"); got != "life\n" {
		t.Errorf("hostname %q", got)
	}
	if got := n.run(t, pod, "cat", "/etc/resolv.conf"); got != "nameserver 10.0.0.2\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n" {
		t.Errorf("resolv.conf %q", got)
	}
	begin := time.Now()
	n.remove(t, pod, 25)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("removal of a pod that ends by itself took %v", took)
	}
	if w := n.worker("default", "life", ""); w != nil {
		eventually(t, "forgotten", func() bool { return n.worker("default", "life", "") == nil }, func() string { return "still there" })
	}
}

func TestPodThatEnds(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	good := podSpec("good", "echo done > /dev/termination-log; exit 0")
	good.Spec.RestartPolicy = corev1.RestartPolicyNever
	bad := podSpec("bad", "exit 3")
	bad.Spec.RestartPolicy = corev1.RestartPolicyNever
	n.create(t, good)
	n.create(t, bad)
	now := n.until(t, good, "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if end := now.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 0 || end.Reason != "Completed" || end.Message != "done\n" {
		t.Errorf("end %+v", end)
	}
	now = n.until(t, bad, "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if end := now.Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 3 || end.Reason != "Error" {
		t.Errorf("end %+v", end)
	}
}

func TestRestartsWithBackoff(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	pod := n.create(t, podSpec("crash", "echo run; exit 4"))
	now := n.until(t, pod, "restarted and backing off", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount >= 3 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	if last := now.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 4 {
		t.Errorf("last state %+v", last)
	}
	if c, err := n.container("default", "crash", "", "main", true); err != nil || c == nil {
		t.Errorf("logs of the previous container: %v", err)
	}
	if now.Status.Phase != corev1.PodRunning || ready(now) {
		t.Errorf("phase %s", now.Status.Phase)
	}
}

func TestImageErrors(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	spec := podSpec("image", "")
	spec.Spec.Containers[0].Image = "docker.io/library/nginx:1.27"
	seen := map[string]bool{}
	n.create(t, spec)
	n.until(t, spec, "waiting for the image", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if s.State.Waiting != nil {
				seen[s.State.Waiting.Reason] = true
				if s.State.Waiting.Reason == "ImagePullBackOff" && !strings.Contains(s.State.Waiting.Message, "nginx") {
					t.Errorf("message %q", s.State.Waiting.Message)
				}
			}
		}
		return seen["ErrImagePull"] && seen["ImagePullBackOff"] && p.Status.Phase == corev1.PodPending
	})
	n.remove(t, spec, 30)
	missing := podSpec("missing", "")
	missing.Spec.Containers[0].Command = []string{"/no/such/program"}
	n.create(t, missing)
	n.until(t, missing, "failing to start", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].LastTerminationState.Terminated != nil && s[0].LastTerminationState.Terminated.Reason == "StartError" && s[0].RestartCount > 0
	})
}

func TestEnvironment(t *testing.T) {
	kube := fakeKube()
	for _, create := range []func() error{
		func() error {
			_, err := kube.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"COLOUR": "red", "SIZE": "3"}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := kube.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys"}, Data: map[string][]byte{"password": []byte("hush")}}, metav1.CreateOptions{})
			return err
		},
	} {
		if err := create(); err != nil {
			t.Fatal(err)
		}
	}
	n := startNode(t, kube, nil)
	spec := podSpec("env", "")
	yes := true
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	c := &spec.Spec.Containers[0]
	c.Command = []string{"/bin/sh", "-c", `echo "$NAME $NODE $IP_OK $COLOUR $SIZE $PASSWORD $LABEL ${NONE-unset} $SUM $CPU $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT" $0 $1`, "$(NAME)", "$$(NAME)"}
	c.EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}
	c.Env = []corev1.EnvVar{
		{Name: "NAME", ValueFrom: field("metadata.name")}, {Name: "NODE", ValueFrom: field("spec.nodeName")}, {Name: "IP", ValueFrom: field("status.podIP")},
		{Name: "IP_OK", Value: "ip=$(IP)"}, {Name: "SIZE", Value: "4"}, {Name: "LABEL", ValueFrom: field("metadata.labels['app']")}, {Name: "SUM", Value: "$(NAME)-$(COLOUR)-$(UNKNOWN)"},
		{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}, Key: "password"}}},
		{Name: "NONE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "nothing"}, Key: "x", Optional: &yes}}},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
	}
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: *parseQuantity("1500m")}
	spec.Spec.RestartPolicy = corev1.RestartPolicyNever
	n.create(t, spec)
	now := n.until(t, spec, "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	want := "env lab-node ip=" + now.Status.PodIP + " red 4 hush env unset env-red-$(UNKNOWN) 2 10.96.0.1:443 env $(NAME)\n"
	if diff := cmp.Diff(want, n.output(t, spec, "main")); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	bad := podSpec("bad-env", "true")
	bad.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "absent"}}}}
	n.create(t, bad)
	n.until(t, bad, "waiting for a secret", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError" && strings.Contains(s[0].State.Waiting.Message, "absent")
	})
}

func TestProbes(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	web := podSpec("web", "")
	c := &web.Spec.Containers[0]
	c.Image, c.Command, c.Env = "ealen/echo-server", nil, []corev1.EnvVar{{Name: "PORT", Value: "8080"}}
	c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("http")}}}
	c.StartupProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 30, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}}
	n.create(t, web)
	sick := podSpec("sick", "trap 'exit 0' TERM; while :; do sleep 0.02; done")
	sick.Spec.Containers[0].LivenessProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/tmp/alive"}}}}
	n.create(t, sick)
	unready := podSpec("unready", "sleep 1000")
	unready.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/tmp/ready"}}}}
	n.create(t, unready)
	n.until(t, web, "ready", ready)
	n.until(t, sick, "restarted", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	now := n.until(t, unready, "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	if ready(now) {
		t.Error("ready although its probe fails")
	}
	n.run(t, unready, "touch", "/tmp/ready")
	n.until(t, unready, "ready", ready)
	n.run(t, unready, "rm", "/tmp/ready")
	n.until(t, unready, "unready again", func(p *corev1.Pod) bool { return !ready(p) })
}

func TestSidecar(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	always := corev1.ContainerRestartPolicyAlways
	spec := podSpec("sidecar", "exit 0")
	spec.Spec.RestartPolicy = corev1.RestartPolicyNever
	spec.Spec.InitContainers = []corev1.Container{{Name: "proxy", Image: "busybox", Command: []string{"sleep", "1000"}, RestartPolicy: &always}}
	n.create(t, spec)
	now := n.until(t, spec, "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if s := now.Status.InitContainerStatuses[0]; s.Started == nil {
		t.Errorf("sidecar %+v", s)
	}
}

func TestUnsupported(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	host := podSpec("host", "true")
	host.Spec.HostNetwork = true
	n.create(t, host)
	now := n.until(t, host, "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if !strings.Contains(now.Status.Message, "host networking") {
		t.Errorf("message %q", now.Status.Message)
	}
	n.remove(t, host, 0)
}

func TestForcedDeletion(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	pod := n.create(t, podSpec("forced", "trap '' TERM; sleep 1000"))
	n.until(t, pod, "ready", ready)
	if err := n.kube.CoreV1().Pods("default").Delete(context.Background(), "forced", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ended", func() bool { return n.worker("default", "forced", "") == nil }, func() string { return "still there" })
}

func TestResolverSettings(t *testing.T) {
	n := &Node{cfg: Config{ClusterDNS: netip.MustParseAddr("10.0.0.2"), ClusterDomain: "cluster.local"}}
	two := "2"
	pod := &corev1.Pod{Spec: corev1.PodSpec{DNSConfig: &corev1.PodDNSConfig{
		Nameservers: []string{"10.0.0.9"}, Searches: []string{"example.test"},
		Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}},
	}}}
	pod.Namespace = "shop"
	servers, searches, options := n.dns(pod)
	got := []any{servers, searches, options}
	want := []any{
		[]netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.9")},
		[]string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.test"}, []string{"ndots:2", "edns0"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("dns() = %v, want %v", got, want)
	}
	pod.Spec.DNSPolicy = corev1.DNSNone
	if servers, _, options = n.dns(pod); len(servers) != 1 || len(options) != 2 {
		t.Errorf("dns() with policy None = %v, options %v, want the pod's own alone", servers, options)
	}
}

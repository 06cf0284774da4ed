package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// How often the node says that it is alive, as the kubelet does.
const (
	leaseDuration  = 40 * time.Second
	leaseInterval  = leaseDuration / 4
	statusInterval = time.Minute
)

// leaseNamespace holds the leases of nodes.
const leaseNamespace = "kube-node-lease"

// The capacity of the node. It is larger than most machines, because requests of charts are made for production and
// the lab does not enforce limits: the scheduler shall never have to refuse a pod.
const (
	capacityCPU    = "64"
	capacityMemory = "256Gi"
	capacityDisk   = "256Gi"
	capacityPods   = "250"
)

// register creates the Node, or takes over the one that there is.
func (n *Node) register(ctx context.Context) error {
	if v, err := n.cfg.Kube.Discovery().ServerVersion(); err == nil {
		n.version = v.GitVersion // the agent follows the API server: a kubelet may not be newer
	}
	want := n.object()
	nodes := n.cfg.Kube.CoreV1().Nodes()
	return retry(ctx, func() error {
		_, err := nodes.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			have, getErr := nodes.Get(ctx, want.Name, metav1.GetOptions{})
			if getErr != nil {
				return fmt.Errorf("register node: %w", getErr)
			}
			if have.Labels == nil {
				have.Labels = map[string]string{}
			}
			for k, v := range want.Labels {
				have.Labels[k] = v
			}
			_, err = nodes.Update(ctx, have, metav1.UpdateOptions{})
		}
		if err != nil {
			return fmt.Errorf("register node: %w", err)
		}
		if err := n.patchNodeStatus(ctx); err != nil {
			return err
		}
		return n.admitPods(ctx)
	})
}

// admitPods removes the taint with which the API server marks every new node as not ready. In a cluster a controller
// does that, which the lab's small control plane may leave out.
func (n *Node) admitPods(ctx context.Context) error {
	nodes := n.cfg.Kube.CoreV1().Nodes()
	have, err := nodes.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read node: %w", err)
	}
	kept := slices.DeleteFunc(slices.Clone(have.Spec.Taints), func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady })
	if len(kept) == len(have.Spec.Taints) {
		return nil
	}
	have.Spec.Taints = kept
	if _, err := nodes.Update(ctx, have, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("remove the taint of a new node: %w", err)
	}
	return nil
}

func (n *Node) object() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.cfg.Name,
			Labels: map[string]string{
				corev1.LabelHostname: n.cfg.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: goruntime.GOARCH,
				"beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": goruntime.GOARCH,
				corev1.LabelTopologyRegion: n.cfg.Region, corev1.LabelTopologyZone: n.cfg.Zone, corev1.LabelInstanceTypeStable: "lab",
			},
			Annotations: map[string]string{"node.alpha.kubernetes.io/ttl": "0"},
		},
		Spec:   corev1.NodeSpec{ProviderID: "aws:///" + n.cfg.Zone + "/i-0" + strings.Repeat("0", 15) + "1"},
		Status: n.status(),
	}
}

// status is the status of the node as of now.
func (n *Node) status() corev1.NodeStatus {
	now := metav1.Now()
	list := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(capacityCPU), corev1.ResourceMemory: resource.MustParse(capacityMemory),
		corev1.ResourceEphemeralStorage: resource.MustParse(capacityDisk), corev1.ResourcePods: resource.MustParse(capacityPods),
	}
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, reason, message string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, LastHeartbeatTime: now, LastTransitionTime: now, Reason: reason, Message: message}
	}
	return corev1.NodeStatus{
		Capacity: list, Allocatable: list,
		Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: n.cfg.Address.String()}, {Type: corev1.NodeHostName, Address: n.cfg.Name},
		},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(n.cfg.Port)}},
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion: n.version, ContainerRuntimeVersion: "isthmus-lab://0.1.0", OperatingSystem: "linux", Architecture: goruntime.GOARCH,
			OSImage: osImage(), KernelVersion: firstLine("/proc/sys/kernel/osrelease"), BootID: firstLine("/proc/sys/kernel/random/boot_id"),
			MachineID: strings.Repeat("0", 31) + "1", SystemUUID: "00000000-0000-0000-0000-000000000001",
		},
		Conditions: []corev1.NodeCondition{
			condition(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "the lab does not limit memory"),
			condition(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "the lab does not limit disk space"),
			condition(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "the lab does not limit processes"),
			condition(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "the lab's node agent is running"),
		},
	}
}

// patchNodeStatus writes the status, keeping the times at which conditions changed.
func (n *Node) patchNodeStatus(ctx context.Context) error {
	nodes := n.cfg.Kube.CoreV1().Nodes()
	have, err := nodes.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read node: %w", err)
	}
	status := n.status()
	for i := range status.Conditions {
		for _, old := range have.Status.Conditions {
			if old.Type == status.Conditions[i].Type && old.Status == status.Conditions[i].Status && !old.LastTransitionTime.IsZero() {
				status.Conditions[i].LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return fmt.Errorf("encode node status: %w", err)
	}
	if _, err := nodes.Patch(ctx, n.cfg.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("write node status: %w", err)
	}
	return nil
}

// heartbeat renews the node's lease and, less often, its status.
func (n *Node) heartbeat(ctx context.Context) {
	lastStatus, renewed := time.Now(), true
	for {
		err := n.renewLease(ctx)
		if err != nil && renewed && ctx.Err() == nil { // once, however long the API server is down
			n.log.Warn("node lease not renewed", slog.Any("error", err))
		}
		renewed = err == nil
		if time.Since(lastStatus) >= statusInterval {
			if err := n.patchNodeStatus(ctx); err != nil && ctx.Err() == nil {
				n.log.Warn("node status not written", slog.Any("error", err))
			}
			lastStatus = time.Now()
		}
		if !wait(ctx, leaseInterval) {
			return
		}
	}
}

func (n *Node) renewLease(ctx context.Context) error {
	leases := n.cfg.Kube.CoordinationV1().Leases(leaseNamespace)
	now := metav1.NowMicro()
	seconds := int32(leaseDuration / time.Second)
	have, err := leases.Get(ctx, n.cfg.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name, Namespace: leaseNamespace},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &n.cfg.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, metav1.CreateOptions{})
	case err == nil:
		have.Spec.HolderIdentity, have.Spec.LeaseDurationSeconds, have.Spec.RenewTime = &n.cfg.Name, &seconds, &now
		_, err = leases.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	return nil
}

// osImage is the name of the host's distribution, for kubectl get nodes -o wide.
func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("PRETTY_NAME=")); ok {
			return strings.Trim(string(v), `"`)
		}
	}
	return "Linux"
}

func firstLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

package controlplane

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
)

// IstioNamespace is where Istio and isthmus-controller live.
const IstioNamespace = "istio-system"

// MeshNetwork is the one network of the lab's mesh.
const MeshNetwork = "eks"

// istioOperator is the installation that the guide asks for, with the settings of a lab.
//
//go:embed manifests/istio.yaml
var istioOperator []byte

// Istio holds the objects of Istio's own charts.
type Istio struct {
	// CRDs are Istio's CustomResourceDefinitions.
	CRDs []*unstructured.Unstructured
	// Objects are everything else, the namespace included.
	Objects []*unstructured.Unstructured
}

// RenderIstio renders the charts that are embedded in the isthmus-lab-kube binary. It needs no API server, so that it
// can run while the API server starts.
func RenderIstio(ctx context.Context, binary string) (*Istio, error) {
	cmd := exec.CommandContext(ctx, binary, "istioctl", "manifest", "generate", "-f", "-")
	cmd.Stdin = bytes.NewReader(istioOperator)
	// Without these istioctl would look for a cluster of the user's to ask for its version.
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null", "HOME=/nonexistent")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("render Istio's charts: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	objects, err := Parse(out)
	if err != nil {
		return nil, fmt.Errorf("render Istio's charts: %w", err)
	}
	istio := &Istio{}
	istio.CRDs, istio.Objects = SplitCRDs(objects)
	if len(istio.CRDs) == 0 || len(istio.Objects) == 0 {
		return nil, errors.New("render Istio's charts: istioctl printed no objects")
	}
	namespace := NewNamespace(IstioNamespace, map[string]string{"topology.istio.io/network": MeshNetwork})
	istio.Objects = append([]*unstructured.Unstructured{namespace}, istio.Objects...)
	return istio, nil
}

// WaitDeployment returns when every replica of the Deployment is available.
func WaitDeployment(ctx context.Context, client kubernetes.Interface, namespace, name string) error {
	err := Poll(ctx, func(ctx context.Context) error {
		d, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		if d.Status.ObservedGeneration < d.Generation || d.Status.AvailableReplicas < want {
			return fmt.Errorf("%d of %d replicas are available", d.Status.AvailableReplicas, want)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for deployment %s/%s: %w", namespace, name, err)
	}
	return nil
}

// WaitDaemonSet returns when the DaemonSet has a ready pod on every node that wants one, and on one at least.
func WaitDaemonSet(ctx context.Context, client kubernetes.Interface, namespace, name string) error {
	err := Poll(ctx, func(ctx context.Context) error {
		d, err := client.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := max(1, d.Status.DesiredNumberScheduled)
		if d.Status.ObservedGeneration < d.Generation || d.Status.NumberReady < want {
			return fmt.Errorf("%d of %d pods are ready", d.Status.NumberReady, want)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for daemon set %s/%s: %w", namespace, name, err)
	}
	return nil
}

// validator is the webhook configuration that refuses objects which Istio does not understand.
const validator = "istiod-default-validator"

// WaitValidation returns when istiod's webhook refuses what is wrong. Until then istiod leaves it open, and a policy with
// a mistake, which protects nothing, would be accepted.
func WaitValidation(ctx context.Context, client kubernetes.Interface) error {
	err := Poll(ctx, func(ctx context.Context) error {
		c, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, validator, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i := range c.Webhooks {
			if p := c.Webhooks[i].FailurePolicy; p == nil || *p != admissionv1.Fail {
				return fmt.Errorf("webhook %s is open", c.Webhooks[i].Name)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for the validation of Istio's objects: %w", err)
	}
	return nil
}

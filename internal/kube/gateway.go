package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Gateway is a Gateway API Gateway as far as the east-west gateway needs it.
type Gateway struct {
	Metadata struct {
		Name       string            `json:"name"`
		Namespace  string            `json:"namespace"`
		UID        string            `json:"uid"`
		Generation int64             `json:"generation"`
		Labels     map[string]string `json:"labels"`
		Deleted    *time.Time        `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		GatewayClassName string            `json:"gatewayClassName"`
		Listeners        []GatewayListener `json:"listeners"`
		Infrastructure   struct {
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"infrastructure"`
	} `json:"spec"`
	Status GatewayStatus `json:"status"`
}

// GatewayListener is one listener of a Gateway.
type GatewayListener struct {
	Name     string `json:"name"`
	Hostname string `json:"hostname"`
	Port     int32  `json:"port"`
	Protocol string `json:"protocol"`
	TLS      *struct {
		Mode string `json:"mode"`
	} `json:"tls"`
}

// GatewayStatus is what a Gateway's controller reports.
type GatewayStatus struct {
	Addresses  []GatewayAddress        `json:"addresses,omitempty"`
	Conditions []Condition             `json:"conditions"`
	Listeners  []GatewayListenerStatus `json:"listeners"`
}

// GatewayAddress is an address at which a Gateway is reached: an IPAddress or a Hostname.
type GatewayAddress struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// GatewayListenerStatus is the status of one listener.
type GatewayListenerStatus struct {
	Name           string              `json:"name"`
	SupportedKinds []map[string]string `json:"supportedKinds"`
	AttachedRoutes int32               `json:"attachedRoutes"`
	Conditions     []Condition         `json:"conditions"`
}

// Condition is a Kubernetes condition.
type Condition struct {
	Type               string `json:"type"`
	Status             string `json:"status"`
	Reason             string `json:"reason"`
	Message            string `json:"message"`
	ObservedGeneration int64  `json:"observedGeneration"`
	LastTransitionTime string `json:"lastTransitionTime"`
}

// KeepTimes gives each of want's conditions that says the same as before the time of the change before, and now to the
// others, so that a status that did not change is not written.
func KeepTimes(want, have []Condition, now time.Time) {
	for i := range want {
		want[i].LastTransitionTime = now.UTC().Format(time.RFC3339)
		for _, h := range have {
			if h.Type == want[i].Type && h.Status == want[i].Status && h.LastTransitionTime != "" {
				want[i].LastTransitionTime = h.LastTransitionTime
			}
		}
	}
}

// WriteStatus replaces the status of an object by server-side apply.
func (c *Client) WriteStatus(ctx context.Context, o *Object, status any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := c.resource(o.GroupVersionKind(), o.GetNamespace())
	if err != nil {
		return fmt.Errorf("write status of %s: %w", Ref(o), err)
	}
	metadata := map[string]any{"name": o.GetName()}
	if o.GetNamespace() != "" {
		metadata["namespace"] = o.GetNamespace()
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "metadata": metadata, "status": status,
	})
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", Ref(o), err)
	}
	force := true
	opt := metav1.PatchOptions{FieldManager: FieldManager, Force: &force}
	if _, err := res.Patch(ctx, o.GetName(), types.ApplyPatchType, body, opt, "status"); err != nil {
		return fmt.Errorf("write status of %s: %w", Ref(o), err)
	}
	return nil
}

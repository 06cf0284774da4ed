package kube

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Object is one Kubernetes object: decoded JSON with accessors.
type Object = unstructured.Unstructured

// Kind names a kind of object by its API group, version and plural name.
type Kind = schema.GroupVersionResource

// The kinds Isthmus works with.
var (
	ServiceEntries  = Kind{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
	WorkloadEntries = Kind{Group: "networking.istio.io", Version: "v1", Resource: "workloadentries"}
	AuthzPolicies   = Kind{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	Gateways        = Kind{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	GatewayClasses  = Kind{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gatewayclasses"}
	Namespaces      = Kind{Version: "v1", Resource: "namespaces"}
	Services        = Kind{Version: "v1", Resource: "services"}
	ServiceAccounts = Kind{Version: "v1", Resource: "serviceaccounts"}
	Secrets         = Kind{Version: "v1", Resource: "secrets"}
	ConfigMaps      = Kind{Version: "v1", Resource: "configmaps"}
	Events          = Kind{Version: "v1", Resource: "events"}
	Pods            = Kind{Version: "v1", Resource: "pods"}
	Deployments     = Kind{Group: "apps", Version: "v1", Resource: "deployments"}
	Leases          = Kind{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
	ECSAccounts     = Kind{Group: "isthmus.dev", Version: "v1alpha1", Resource: "ecsaccounts"}
	TokenReviews    = Kind{Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"}
)

// maxDocument bounds one YAML document, as the API server bounds one request.
const maxDocument = 3 << 20

// ParseYAML decodes a stream of YAML or JSON documents into objects. Empty documents are skipped and a List is
// unfolded; a document without apiVersion, kind or name is an error that says which one it is.
func ParseYAML(text []byte) ([]*Object, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var out []*Object
	for n := 1; ; n++ {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read document %d: %w", n, err)
		}
		if len(doc) > maxDocument {
			return nil, fmt.Errorf("read document %d: larger than %d bytes", n, maxDocument)
		}
		var fields map[string]any
		if err := yaml.Unmarshal(doc, &fields); err != nil {
			return nil, fmt.Errorf("parse document %d: %w", n, err)
		}
		if len(fields) == 0 {
			continue
		}
		objs, err := unfold(&Object{Object: fields})
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		out = append(out, objs...)
	}
}

func unfold(o *Object) ([]*Object, error) {
	if o.GetAPIVersion() == "" || o.GetKind() == "" {
		return nil, errors.New("apiVersion and kind are required")
	}
	if o.IsList() {
		list, err := o.ToList()
		if err != nil {
			return nil, fmt.Errorf("read list: %w", err)
		}
		out := make([]*Object, 0, len(list.Items))
		for i := range list.Items {
			out = append(out, &list.Items[i])
		}
		return out, nil
	}
	if o.GetName() == "" {
		return nil, fmt.Errorf("%s has no metadata.name", o.GetKind())
	}
	return []*Object{o}, nil
}

// Ref returns "Kind namespace/name" for messages.
func Ref(o *Object) string {
	if o.GetNamespace() == "" {
		return o.GetKind() + " " + o.GetName()
	}
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

// ownedPrefixes are the prefixes of the labels and annotations that belong to Isthmus alone: one of those that an
// object has and should not have is a difference, while anybody else's are left in peace.
var ownedPrefixes = [...]string{"ecs.solo.io/", "isthmus.dev/"}

// Same reports whether applying want would leave have as it is: every field of want is in have with the same value, the
// specs of Istio's ServiceEntry and WorkloadEntry are equal, and have carries no label or annotation of ours that want
// lacks. It is what makes a sweep that finds nothing new write nothing.
func Same(want, have *Object) bool {
	if want == nil || have == nil {
		return want == have
	}
	if !contains(have.Object, want.Object) {
		return false
	}
	if strings.HasPrefix(want.GetAPIVersion(), ServiceEntries.Group+"/") && !reflect.DeepEqual(normal(want.Object["spec"]), normal(have.Object["spec"])) {
		return false
	}
	return !hasForeignOurs(want.GetLabels(), have.GetLabels()) && !hasForeignOurs(want.GetAnnotations(), have.GetAnnotations())
}

func hasForeignOurs(want, have map[string]string) bool {
	for k := range have {
		for _, p := range ownedPrefixes {
			if _, ok := want[k]; !ok && strings.HasPrefix(k, p) {
				return true
			}
		}
	}
	return false
}

// contains reports whether every field of want is in have. Lists must have equal length: an element more is a change.
func contains(have, want any) bool {
	switch w := want.(type) {
	case map[string]any:
		h, ok := have.(map[string]any)
		if !ok {
			return len(w) == 0 && have == nil
		}
		for k, v := range w {
			if !contains(h[k], v) {
				return false
			}
		}
		return true
	case []any:
		h, ok := have.([]any)
		if !ok || len(h) != len(w) {
			return len(w) == 0 && have == nil
		}
		for i := range w {
			if !contains(h[i], w[i]) {
				return false
			}
		}
		return true
	case nil:
		return true
	}
	return reflect.DeepEqual(normal(want), normal(have))
}

// normal gives numbers one type, because JSON from the API decodes to int64 or float64 and ours may be any integer.
func normal(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			if n := normal(e); n != nil {
				out[k] = n
			}
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i, e := range x {
			out[i] = normal(e)
		}
		return out
	case int:
		return float64(x)
	case int32:
		return float64(x)
	case int64:
		return float64(x)
	case uint16:
		return float64(x)
	case uint32:
		return float64(x)
	}
	return v
}

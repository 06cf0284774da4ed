package kubetest

import (
	"fmt"
	"strings"
)

// CRDs returns definitions of the kinds of Istio and the Gateway API that Isthmus works with: their names and
// subresources, without their schemas. The real ones are in the lab.
func CRDs() string {
	var b strings.Builder
	for _, k := range []struct{ group, kind, plural, scope string }{
		{"networking.istio.io", "ServiceEntry", "serviceentries", "Namespaced"},
		{"networking.istio.io", "WorkloadEntry", "workloadentries", "Namespaced"},
		{"gateway.networking.k8s.io", "Gateway", "gateways", "Namespaced"},
		{"gateway.networking.k8s.io", "GatewayClass", "gatewayclasses", "Cluster"},
	} {
		approved := ""
		if strings.HasSuffix(k.group, "k8s.io") {
			approved = "\n  annotations: {api-approved.kubernetes.io: unapproved}"
		}
		fmt.Fprintf(&b, `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: %s.%s%s
spec:
  group: %s
  scope: %s
  names: {kind: %s, plural: %s, singular: %s}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
`, k.plural, k.group, approved, k.group, k.scope, k.kind, k.plural, strings.ToLower(k.kind))
	}
	return b.String()
}

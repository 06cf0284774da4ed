package kubetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// CRDVariable names the environment variable with the path of Istio's own CRDs (crd-all.gen.yaml of its base chart), for
// a test against the real schemas.
const CRDVariable = "ISTHMUS_TEST_ISTIO_CRDS"

// CRDs returns definitions of the kinds of Istio and the Gateway API that Isthmus works with. Those of the Gateway API
// are the real ones, from the lab's manifests. Of Istio's, the real ones are used where CRDVariable names them; else
// only names and subresources are defined, without the schemas.
func CRDs(t testing.TB, repository string) string {
	t.Helper()
	var b strings.Builder
	for _, kind := range []string{"gatewayclasses", "gateways"} {
		text, err := os.ReadFile(filepath.Join(repository, "lab", "controlplane", "manifests", "gateway-api", "gateway.networking.k8s.io_"+kind+".yaml"))
		if err != nil {
			t.Fatalf("kubetest: %v", err)
		}
		b.WriteString("---\n" + string(text) + "\n")
	}
	if path := os.Getenv(CRDVariable); path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("kubetest: %v", err)
		}
		return b.String() + "---\n" + string(text)
	}
	for _, k := range []struct{ group, kind, plural, scope string }{
		{"networking.istio.io", "ServiceEntry", "serviceentries", "Namespaced"},
		{"networking.istio.io", "WorkloadEntry", "workloadentries", "Namespaced"},
	} {
		fmt.Fprintf(&b, `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: %s.%s
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
`, k.plural, k.group, k.group, k.scope, k.kind, k.plural, strings.ToLower(k.kind))
	}
	return b.String()
}

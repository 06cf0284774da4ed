// Package archtest holds the import rules of the repository as data; its test enforces them.
package archtest

// Rule forbids the packages that match From to reach a package that matches one of MustNot.
// Patterns are import paths; a trailing "/..." matches everything below. Module-local paths start with "./".
type Rule struct {
	From    string
	MustNot []string
	Except  []string // packages that From may reach although MustNot names them
	Direct  bool     // only direct imports count, not what they import in turn
	Why     string
}

var dataPlane = []string{
	"./internal/state", "./internal/policy", "./internal/xds", "./internal/identity/...", "./internal/hbone",
	"./internal/dns", "./internal/capture/...", "./internal/proxy", "./internal/gateway", "./internal/telemetry",
	"./internal/admin", "./internal/ztunnel", "./cmd/ztunnel",
}

// Rules returns every import rule of the repository.
func Rules() []Rule {
	rules := []Rule{
		{From: "./internal/mesh", MustNot: []string{"./internal/...", "external"}, Why: "the nouns are imported by all and import only the standard library"},
		{From: "./...", MustNot: []string{"./lab/..."}, Why: "the product never links the lab"},
	}
	for _, p := range dataPlane {
		rules = append(rules, Rule{From: p, MustNot: []string{"k8s.io/...", "sigs.k8s.io/...", "github.com/spf13/cobra", "github.com/aws/aws-sdk-go-v2/service/..."}, Except: []string{"sigs.k8s.io/yaml", "sigs.k8s.io/yaml/..."},
			Why: "the sidecar stays small: no Kubernetes client, no AWS service client, no CLI framework"})
	}
	for _, p := range []string{"./internal/policy", "./internal/plan", "./internal/discovery", "./internal/enrol"} {
		rules = append(rules, Rule{From: p, Direct: true, MustNot: []string{"os", "net/http", "log/slog", "k8s.io/...", "github.com/aws/..."}, Why: "decisions are pure: no I/O, no clock, no client"})
	}
	leaves := []string{"./internal/hbone", "./internal/dns", "./internal/policy", "./internal/xds", "./internal/capture/socks5", "./internal/capture/httpproxy", "./internal/capture/redirect", "./internal/capture/inpod"}
	for _, p := range leaves {
		var others []string
		for _, o := range leaves {
			if o != p {
				others = append(others, o)
			}
		}
		rules = append(rules, Rule{From: p, MustNot: others, Why: "leaves never import each other; proxy joins them"})
	}
	return append(rules,
		Rule{From: "./internal/...", Direct: true, MustNot: []string{"github.com/spf13/cobra"}, Except: []string{"from:./internal/cli/..."}, Why: "only the command line knows cobra"},
		Rule{From: "./internal/...", Direct: true, MustNot: []string{"k8s.io/client-go/..."}, Except: []string{"from:./internal/kube/..."}, Why: "only kube speaks to the Kubernetes API"},
		Rule{From: "./internal/...", Direct: true, MustNot: []string{"github.com/aws/aws-sdk-go-v2/service/..."}, Except: []string{"from:./internal/awsapi/..."}, Why: "only awsapi speaks to AWS"},
	)
}

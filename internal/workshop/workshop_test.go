package workshop

import (
	"slices"
	"testing"
)

// decide is an independent reading of Istio's rule: DENY first, then ALLOW if any ALLOW stands.
func decide(policies []Policy, source string) bool {
	anyAllow, allowed := false, false
	for _, p := range policies {
		hit := slices.Contains(p.From, source)
		if p.Action == "DENY" && hit {
			return false
		}
		if p.Action != "DENY" {
			anyAllow, allowed = true, allowed || hit
		}
	}
	return !anyAllow || allowed
}

// The expected outcomes of the exercises follow from their policies; a typing error in either shows here.
func TestExercisesAreConsistent(t *testing.T) {
	n := Names{Cluster1: "ecs-demo-1", Cluster2: "ecs-demo-2", Domain: "ecs.local"}
	for _, e := range n.Exercises() {
		for i, p := range n.Paths() {
			source := p.From
			if source == "" {
				source = "default"
			}
			want := p.To != n.Cluster1 || decide(e.Policies, source)
			if e.Open[i] != want {
				t.Errorf("exercise %d, %s: open %v, its policies say %v", e.Number, p.Title, e.Open[i], want)
			}
		}
	}
}

func TestHost(t *testing.T) {
	n := Names{Domain: "ecs.local"}
	if got, want := n.Host("ecs-demo-2"), "echo-service.ecs-demo-2.ecs.local:8080"; got != want {
		t.Errorf("Host = %q, want %q", got, want)
	}
}

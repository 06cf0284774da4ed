// Package policy decides whether an L4 authorization policy lets a connection pass, and which rule says so.
//
// It is Istio's AuthorizationPolicy as a ztunnel enforces it. The package is pure: no clock, no I/O, no state. Which
// policies apply to a workload is not its business (state.Snapshot.PoliciesFor selects them); every policy that it
// is given counts, whatever its scope.
//
// The order of judgement:
//
//  1. an enforced Deny policy matches        -> denied,  "explicitly denied by: namespace/name"
//  2. there is no enforced Allow policy      -> allowed
//  3. an enforced Allow policy matches       -> allowed
//  4. otherwise                              -> denied,  "allow policies exist, but none allowed"
//
// Dry-run policies never decide; what they would have said is reported beside the decision.
//
// What matches what:
//
//	policy  any of its rules     no rules: never   (so an Allow policy without rules denies everything)
//	rule    all of its clauses   no clauses: always
//	clause  any of its matches   no matches: always
//	match   all of its fields    no field at all: never; one empty field: that field holds
//	field   any of its values; a "not" field holds when none of its values does
package policy

import (
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Connection is what a policy can see of a connection.
type Connection struct {
	// Source is the identity in the peer's certificate; the zero value stands for plaintext.
	Source mesh.Identity
	// SourceAddr is the TCP peer: through a gateway it is the gateway.
	SourceAddr netip.AddrPort
	// DestinationAddr is the workload's own address with the port of the application, not of the tunnel.
	DestinationAddr netip.AddrPort
}

// NoRule is the Rule of a decision that no single rule made.
const NoRule = -1

// ReasonNoneAllowed is the reason of a refusal for want of a matching Allow policy.
const ReasonNoneAllowed = "allow policies exist, but none allowed"

// Decision is the outcome of Evaluate.
type Decision struct {
	Allowed bool
	// Policy is the policy that decided. It is the zero value when the absence of policies, or of a match, decided.
	Policy mesh.PolicyKey
	// Rule is the index of the rule of Policy that matched, or NoRule.
	Rule int
	// Reason tells why a connection is denied, in the words of ztunnel's log. It is empty when it is allowed.
	Reason string
	// DryRun holds what each dry-run policy would have said, in the order of the policies.
	DryRun []DryRunResult
}

// DryRunResult is what a dry-run policy would have said.
type DryRunResult struct {
	Policy  mesh.PolicyKey
	Action  mesh.PolicyAction
	Matched bool
	Rule    int // index of the matching rule, or NoRule
}

// Evaluate judges the connection c by the policies ps. It does not allocate, unless it denies or a policy is a dry
// run.
func Evaluate(ps []*mesh.Policy, c Connection) Decision {
	var principal [maxInlinePrincipal]byte
	s := prepare(c, principal[:0])
	if worthHints(ps) {
		s.mark()
	}
	d := Decision{Rule: NoRule}
	constrained, denied := false, false
	for _, p := range ps { // once over all, for looking at a policy costs more than most decisions about it
		switch {
		case p.DryRun:
			rule := matchPolicy(p, &s)
			d.DryRun = append(d.DryRun, DryRunResult{Policy: p.Key, Action: p.Action, Matched: rule != NoRule, Rule: rule})
		case denied:
		case p.Action == mesh.Deny:
			if s.passes(&p.Index) {
				continue
			}
			if rule := matchPolicy(p, &s); rule != NoRule {
				denied = true
				d.Allowed, d.Policy, d.Rule, d.Reason = false, p.Key, rule, "explicitly denied by: "+p.Key.String()
			}
		case p.Action == mesh.Allow:
			constrained = true
			if d.Allowed || s.passes(&p.Index) {
				continue
			}
			if rule := matchPolicy(p, &s); rule != NoRule {
				d.Allowed, d.Policy, d.Rule = true, p.Key, rule
			}
		}
	}
	switch {
	case denied || d.Allowed:
	case constrained:
		d.Reason = ReasonNoneAllowed
	default:
		d.Allowed = true
	}
	return d
}

// Final reports a decision that further policies cannot change: a policy has denied.
func (d Decision) Final() bool { return !d.Allowed && d.Policy != (mesh.PolicyKey{}) }

// Without returns the decision as it is when policies that apply are not known: any of them might deny, so that what
// was allowed is refused.
func (d Decision) Without(missing []mesh.PolicyKey) Decision {
	if !d.Allowed || len(missing) == 0 {
		return d
	}
	return Decision{Rule: NoRule, Policy: missing[0], DryRun: d.DryRun, Reason: "policy of the workload is not known: " + missing[0].String()}
}

package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

func exact(values ...string) (ms []mesh.StringMatch) {
	for _, v := range values {
		ms = append(ms, mesh.StringMatch{Kind: mesh.MatchExact, Value: v})
	}
	return ms
}

func prefixes(values ...string) (ps []netip.Prefix) {
	for _, v := range values {
		ps = append(ps, netip.MustParsePrefix(v))
	}
	return ps
}

func allow(name string, rules ...mesh.Rule) *mesh.Policy {
	return &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ns", Name: name}, Scope: mesh.ScopeNamespace, Rules: rules}
}

func deny(name string, rules ...mesh.Rule) *mesh.Policy {
	p := allow(name, rules...)
	p.Action = mesh.Deny
	return p
}

func dryRun(p *mesh.Policy) *mesh.Policy {
	p.DryRun = true
	return p
}

// rule makes a rule of one clause per match.
func rule(ms ...mesh.Match) mesh.Rule {
	r := mesh.Rule{}
	for _, m := range ms {
		r = append(r, mesh.Clause{m})
	}
	return r
}

func key(name string) mesh.PolicyKey { return mesh.PolicyKey{Namespace: "ns", Name: name} }

var client = policy.Connection{
	Source:          mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "eks-shell"},
	SourceAddr:      netip.MustParseAddrPort("10.0.64.7:40000"),
	DestinationAddr: netip.MustParseAddrPort("10.0.128.9:8080"),
}

func plaintext() policy.Connection {
	c := client
	c.Source = mesh.Identity{}
	return c
}

func TestEvaluate(t *testing.T) {
	presence := []mesh.StringMatch{{Kind: mesh.MatchPresence}}
	strict := deny("istio_converted_static_strict", rule(mesh.Match{NotPrincipals: presence}))
	fromDefault := mesh.Match{Namespaces: exact("default")}
	tests := []struct {
		name string
		ps   []*mesh.Policy
		c    policy.Connection
		want policy.Decision
	}{
		{"no policy", nil, client, policy.Decision{Allowed: true, Rule: policy.NoRule}},
		{"deny-all is an allow policy without rules", []*mesh.Policy{allow("deny-all")}, client,
			policy.Decision{Rule: policy.NoRule, Reason: "allow policies exist, but none allowed"}},
		{"allow-all is a rule without clauses", []*mesh.Policy{allow("all", mesh.Rule{})}, client,
			policy.Decision{Allowed: true, Policy: key("all"), Rule: 0}},
		{"a deny policy without rules has no effect", []*mesh.Policy{deny("nothing")}, client,
			policy.Decision{Allowed: true, Rule: policy.NoRule}},
		{"a clause without matches holds", []*mesh.Policy{allow("c", mesh.Rule{mesh.Clause{}})}, client,
			policy.Decision{Allowed: true, Policy: key("c"), Rule: 0}},
		{"a match without fields does not", []*mesh.Policy{allow("m", rule(mesh.Match{}))}, client,
			policy.Decision{Rule: policy.NoRule, Reason: "allow policies exist, but none allowed"}},
		{"namespace and port", []*mesh.Policy{allow("deny-all"), allow("allow-eks", rule(fromDefault, mesh.Match{DestinationPorts: []uint16{8080}}))}, client,
			policy.Decision{Allowed: true, Policy: key("allow-eks"), Rule: 0}},
		{"the other port", []*mesh.Policy{allow("allow-eks", rule(fromDefault, mesh.Match{DestinationPorts: []uint16{80}}))}, client,
			policy.Decision{Rule: policy.NoRule, Reason: "allow policies exist, but none allowed"}},
		{"deny beats allow and names itself", []*mesh.Policy{allow("all", mesh.Rule{}), deny("d", rule(mesh.Match{Namespaces: exact("other")}), rule(fromDefault))}, client,
			policy.Decision{Policy: key("d"), Rule: 1, Reason: "explicitly denied by: ns/d"}},
		{"strict refuses plaintext", []*mesh.Policy{strict}, plaintext(),
			policy.Decision{Policy: strict.Key, Rule: 0, Reason: "explicitly denied by: ns/istio_converted_static_strict"}},
		{"strict lets mTLS pass", []*mesh.Policy{strict}, client, policy.Decision{Allowed: true, Rule: policy.NoRule}},
		{"plaintext has the empty namespace", []*mesh.Policy{allow("n", rule(mesh.Match{NotNamespaces: exact("default")}))}, plaintext(),
			policy.Decision{Allowed: true, Policy: key("n"), Rule: 0}},
		{"plaintext is no principal of any name", []*mesh.Policy{allow("p", rule(mesh.Match{Principals: []mesh.StringMatch{{Kind: mesh.MatchPrefix}}}))}, plaintext(),
			policy.Decision{Rule: policy.NoRule, Reason: "allow policies exist, but none allowed"}},
		{"plaintext is no service account", []*mesh.Policy{allow("s", rule(mesh.Match{ServiceAccounts: []mesh.ServiceAccountMatch{{}}}))}, plaintext(),
			policy.Decision{Rule: policy.NoRule, Reason: "allow policies exist, but none allowed"}},
		{"a principal has no scheme", []*mesh.Policy{allow("p", rule(mesh.Match{Principals: exact("spiffe://cluster.local/ns/default/sa/eks-shell", "cluster.local/ns/default/sa/eks-shell")}))}, client,
			policy.Decision{Allowed: true, Policy: key("p"), Rule: 0}},
		{"dry runs only report", []*mesh.Policy{dryRun(deny("d", mesh.Rule{})), dryRun(allow("a"))}, client,
			policy.Decision{Allowed: true, Rule: policy.NoRule, DryRun: []policy.DryRunResult{
				{Policy: key("d"), Action: mesh.Deny, Matched: true, Rule: 0},
				{Policy: key("a"), Action: mesh.Allow, Rule: policy.NoRule},
			}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, policy.Evaluate(tt.ps, tt.c)); diff != "" {
				t.Errorf("Evaluate (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEvaluateAddresses(t *testing.T) {
	mapped := client
	mapped.SourceAddr = netip.MustParseAddrPort("[::ffff:10.0.64.7]:1")
	mapped.DestinationAddr = netip.MustParseAddrPort("[::ffff:10.0.128.9]:8080")
	tests := []struct {
		name string
		m    mesh.Match
		want bool
	}{
		{"source in", mesh.Match{SourceIPs: prefixes("10.0.64.0/18")}, true},
		{"source out", mesh.Match{SourceIPs: prefixes("10.0.128.0/20")}, false},
		{"one of two", mesh.Match{SourceIPs: prefixes("10.0.128.0/20", "10.0.64.7/32")}, true},
		{"not source", mesh.Match{NotSourceIPs: prefixes("10.0.64.0/18")}, false},
		{"destination in", mesh.Match{DestinationIPs: prefixes("10.0.128.9/32")}, true},
		{"not destination", mesh.Match{NotDestinationIPs: prefixes("10.0.0.0/8")}, false},
		{"IPv6 does not hold IPv4", mesh.Match{SourceIPs: prefixes("::/0")}, false},
		{"port in", mesh.Match{DestinationPorts: []uint16{80, 8080}}, true},
		{"not port", mesh.Match{NotDestinationPorts: []uint16{8080}}, false},
		{"all fields of a match must hold", mesh.Match{Namespaces: exact("default"), DestinationPorts: []uint16{80}}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, c := range []policy.Connection{client, mapped} {
				if got := policy.Evaluate([]*mesh.Policy{allow("p", rule(tt.m))}, c).Allowed; got != tt.want {
					t.Errorf("Evaluate(%+v) from %v allowed = %v, want %v", tt.m, c.SourceAddr, got, tt.want)
				}
			}
		})
	}
}

func TestEvaluateLongPrincipal(t *testing.T) {
	c := client
	c.Source.ServiceAccount = strings.Repeat("x", 1000)
	p := allow("p", rule(mesh.Match{Principals: exact(strings.TrimPrefix(c.Source.String(), "spiffe://"))}))
	if d := policy.Evaluate([]*mesh.Policy{p}, c); !d.Allowed {
		t.Errorf("Evaluate = %+v, want allowed", d)
	}
}

// compare fails the test if Evaluate and the reference disagree on what was generated from the seed.
func compare(t *testing.T, seed1, seed2 uint64) {
	t.Helper()
	g := generator{rand.New(rand.NewPCG(seed1, seed2))}
	ps, c := g.policies(), g.connection()
	d := policy.Evaluate(ps, c)
	for _, p := range ps {
		policy.Index(p)
	}
	if diff := cmp.Diff(d, policy.Evaluate(ps, c)); diff != "" {
		t.Errorf("seed %d,%d: the index changes the decision (-without +with):\n%s\npolicies %+v\nconnection %+v", seed1, seed2, diff, ps, c)
	}
	allowed, by := reference(ps, c)
	got := ""
	if d.Policy != (mesh.PolicyKey{}) {
		got = d.Policy.String()
	}
	if d.Allowed != allowed || got != by {
		t.Errorf("seed %d,%d: Evaluate = %v by %q, want %v by %q\npolicies %+v\nconnection %+v", seed1, seed2, d.Allowed, got, allowed, by, ps, c)
	}
	if d.Allowed != (d.Reason == "") {
		t.Errorf("seed %d,%d: allowed %v with reason %q", seed1, seed2, d.Allowed, d.Reason)
	}
}

func TestEvaluateAgainstReference(t *testing.T) {
	for i := range uint64(50_000) {
		if compare(t, i, 1); t.Failed() {
			return
		}
	}
}

func FuzzEvaluate(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Add(uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, a, b uint64) { compare(t, a, b) })
}

// consistent checks that an explanation decides what Evaluate decides, that the policies' verdicts lead to that decision,
// and that each miss names a condition that really fails.
func consistent(t *testing.T, a, b uint64) {
	t.Helper()
	g := generator{rand.New(rand.NewPCG(a, b))}
	ps, c := g.policies(), g.connection()
	if a%2 == 0 {
		for _, p := range ps {
			policy.Index(p)
		}
	}
	e := policy.Explain(ps, c)
	if diff := cmp.Diff(policy.Evaluate(ps, c), e.Decision); diff != "" {
		t.Fatalf("Explain decides differently (-Evaluate +Explain):\n%s", diff)
	}
	if len(e.Verdicts) != len(ps) {
		t.Fatalf("%d verdicts of %d policies", len(e.Verdicts), len(ps))
	}
	denied, constrained, allowed, deciders := false, false, false, 0
	for _, v := range e.Verdicts {
		if v.Matched != refPolicy(v.Policy, c) || v.Matched != (v.Rule != policy.NoRule) || v.Matched && len(v.Misses) != 0 {
			t.Errorf("the verdict of %s is wrong: %+v", v.Policy.Key, v)
		}
		if !v.Matched && len(v.Misses)+v.More != len(v.Policy.Rules) {
			t.Errorf("%s: %d rules, %d misses and %d more", v.Policy.Key, len(v.Policy.Rules), len(v.Misses), v.More)
		}
		for _, m := range v.Misses {
			clause := v.Policy.Rules[m.Rule][m.Clause]
			if len(m.Matches)+m.More != len(clause) {
				t.Errorf("%s: clause of %d matches, %d explained", v.Policy.Key, len(clause), len(m.Matches))
			}
			for i, f := range m.Matches {
				if !fails(clause[i], f.Field, c) {
					t.Errorf("%s, rule %d, clause %d, match %d: %s is said to fail: %+v", v.Policy.Key, m.Rule, m.Clause, i, f.Field, clause[i])
				}
			}
		}
		if v.Decided {
			deciders++
			if v.Policy.Key != e.Policy || v.Rule != e.Rule {
				t.Errorf("%s is said to have decided, but %s did", v.Policy.Key, e.Policy)
			}
		}
		if v.Policy.DryRun {
			continue
		}
		denied = denied || v.Policy.Action == mesh.Deny && v.Matched
		constrained = constrained || v.Policy.Action == mesh.Allow
		allowed = allowed || v.Policy.Action == mesh.Allow && v.Matched
	}
	if want := !denied && (!constrained || allowed); e.Allowed != want {
		t.Errorf("the verdicts say allowed = %v, the decision %v", want, e.Allowed)
	}
	if named := e.Policy != (mesh.PolicyKey{}); named != (deciders == 1) {
		t.Errorf("%d deciders, the decision names %q", deciders, e.Policy)
	}
}

// fails reports whether the match without its other fields does not hold.
func fails(m mesh.Match, field string, c policy.Connection) bool {
	alone := map[string]mesh.Match{
		"none": {}, "namespaces": {Namespaces: m.Namespaces}, "notNamespaces": {NotNamespaces: m.NotNamespaces},
		"principals": {Principals: m.Principals}, "notPrincipals": {NotPrincipals: m.NotPrincipals},
		"serviceAccounts": {ServiceAccounts: m.ServiceAccounts}, "notServiceAccounts": {NotServiceAccounts: m.NotServiceAccounts},
		"sourceIps": {SourceIPs: m.SourceIPs}, "notSourceIps": {NotSourceIPs: m.NotSourceIPs},
		"destinationIps": {DestinationIPs: m.DestinationIPs}, "notDestinationIps": {NotDestinationIPs: m.NotDestinationIPs},
		"destinationPorts": {DestinationPorts: m.DestinationPorts}, "notDestinationPorts": {NotDestinationPorts: m.NotDestinationPorts},
	}
	only, ok := alone[field]
	return ok && !refMatch(only, c)
}

func TestExplainIsConsistent(t *testing.T) {
	for i := range uint64(20_000) {
		consistent(t, i, 7)
	}
}

func FuzzExplain(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Add(uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, a, b uint64) { consistent(t, a, b) })
}

func TestExplain(t *testing.T) {
	ps := []*mesh.Policy{
		allow("callers", rule(mesh.Match{Principals: exact("cluster.local/ns/x/sa/y"), SourceIPs: prefixes("10.0.0.0/8")}), rule(mesh.Match{DestinationPorts: []uint16{1, 2}}, mesh.Match{})),
		deny("outsiders", rule(mesh.Match{NotNamespaces: []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: "def"}}})),
		allow("nobody"),
	}
	e := policy.Explain(ps, client)
	var got []string
	for _, v := range e.Verdicts {
		got = append(got, fmt.Sprintf("%s %s %v %d %v", v.Policy.Key.Name, v.Policy.Action, v.Matched, v.Rule, v.Decided))
		for _, m := range v.Misses {
			got = append(got, fmt.Sprintf("- %d.%d %+v", m.Rule, m.Clause, m.Matches))
		}
	}
	want := []string{
		"outsiders Deny false -1 false", "- 0.0 [{Field:notNamespaces Want:[def*] More:0 Have:default}]",
		"callers Allow false -1 false", "- 0.0 [{Field:principals Want:[cluster.local/ns/x/sa/y] More:0 Have:cluster.local/ns/default/sa/eks-shell}]",
		"- 1.0 [{Field:destinationPorts Want:[1 2] More:0 Have:8080}]",
		"nobody Allow false -1 false",
	}
	if diff := cmp.Diff(want, got); diff != "" || e.Allowed || e.Reason != policy.ReasonNoneAllowed {
		t.Errorf("Explain = %+v (-want +got):\n%s", e.Decision, diff)
	}
	// What people read has a limit.
	long := allow("long")
	for i := range 100 {
		m := mesh.Match{}
		for j := range 100 {
			m.DestinationPorts = append(m.DestinationPorts, uint16(10_000+100*i+j))
		}
		var clause mesh.Clause
		for range 100 {
			clause = append(clause, m)
		}
		long.Rules = append(long.Rules, mesh.Rule{clause})
	}
	v := policy.Explain([]*mesh.Policy{long}, client).Verdicts[0]
	if len(v.Misses) != 20 || v.More != 80 || len(v.Misses[0].Matches) != 20 || v.Misses[0].More != 80 || len(v.Misses[0].Matches[0].Want) != 10 || v.Misses[0].Matches[0].More != 90 {
		t.Errorf("a long policy is explained by %d rules, %d matches, %d values", len(v.Misses), len(v.Misses[0].Matches), len(v.Misses[0].Matches[0].Want))
	}
}

func TestEvaluateDoesNotAllocate(t *testing.T) {
	ps := []*mesh.Policy{
		deny("d", rule(mesh.Match{NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}})),
		allow("a", rule(mesh.Match{Principals: exact("x"), SourceIPs: prefixes("10.0.0.0/8")}), rule(mesh.Match{Namespaces: exact("default")})),
	}
	if n := testing.AllocsPerRun(100, func() {
		if !policy.Evaluate(ps, client).Allowed {
			t.Error("denied, want allowed")
		}
	}); n != 0 {
		t.Errorf("Evaluate allocated %v times, want 0", n)
	}
}

// thousand is ten policies of a hundred rules. The last rule alone lets client pass.
func thousand(first func(i int) mesh.Match) []*mesh.Policy {
	var ps []*mesh.Policy
	for i := range 10 {
		p := allow(string(rune('a' + i)))
		for j := range 100 {
			m := first(100*i + j)
			if i == 9 && j == 99 {
				m = mesh.Match{Principals: exact("cluster.local/ns/default/sa/eks-shell")}
			}
			p.Rules = append(p.Rules, rule(m, mesh.Match{DestinationPorts: []uint16{8080}}))
		}
		ps = append(ps, p)
	}
	return ps
}

func thousands() map[string][]*mesh.Policy {
	single := thousand(func(i int) mesh.Match {
		return mesh.Match{Principals: exact(fmt.Sprintf("cluster.local/ns/team-%d/sa/client-%d", i/100, i))}
	})
	var alone []*mesh.Policy
	for _, p := range single {
		for _, r := range p.Rules {
			alone = append(alone, allow(p.Key.Name, r))
		}
	}
	whole := allow("whole")
	for _, p := range single {
		whole.Rules = append(whole.Rules, p.Rules...)
	}
	return map[string][]*mesh.Policy{
		"principal": single,
		"whole":     {whole}, // one policy with all rules
		"alone":     alone,   // a policy for each rule
		"namespace": thousand(func(i int) mesh.Match { return mesh.Match{Namespaces: exact(fmt.Sprintf("team-%d", i))} }),
		"source": thousand(func(i int) mesh.Match {
			return mesh.Match{SourceIPs: prefixes(fmt.Sprintf("10.1.%d.0/24", i%256), fmt.Sprintf("10.%d.0.7/32", 2+i%200))}
		}),
		"suffix": thousand(func(i int) mesh.Match {
			return mesh.Match{Principals: []mesh.StringMatch{{Kind: mesh.MatchSuffix, Value: fmt.Sprintf("/sa/client-%d", i)}}}
		}),
		"prefix": thousand(func(i int) mesh.Match {
			return mesh.Match{Principals: []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: fmt.Sprintf("cluster.local/ns/team-%d/", i)}}}
		}),
	}
}

func TestIndexKeepsTheRule(t *testing.T) {
	for name, ps := range thousands() {
		want := policy.Evaluate(ps, client)
		for _, p := range ps {
			policy.Index(p)
		}
		if diff := cmp.Diff(want, policy.Evaluate(ps, client)); diff != "" || !want.Allowed {
			t.Errorf("%s: decision (-without index +with):\n%s", name, diff)
		}
		if n := testing.AllocsPerRun(100, func() { policy.Evaluate(ps, client) }); n != 0 {
			t.Errorf("%s: Evaluate allocated %v times, want 0", name, n)
		}
	}
}

func BenchmarkThousandRules(b *testing.B) {
	for name, ps := range thousands() {
		b.Run(name+"/scan", func(b *testing.B) {
			for b.Loop() {
				policy.Evaluate(ps, client)
			}
		})
		for _, p := range ps {
			policy.Index(p)
		}
		b.Run(name+"/index", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				policy.Evaluate(ps, client)
			}
		})
	}
}

// BenchmarkIndex is what a push pays for a policy of a hundred rules.
func BenchmarkIndex(b *testing.B) {
	p := thousands()["principal"][0]
	b.ReportAllocs()
	for b.Loop() {
		policy.Index(p)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	var ps []*mesh.Policy
	for range 10 {
		ps = append(ps, allow("a", rule(mesh.Match{Namespaces: exact("x", "y")}, mesh.Match{DestinationPorts: []uint16{8080}})))
	}
	ps = append(ps, allow("b", rule(mesh.Match{Principals: exact("cluster.local/ns/default/sa/eks-shell")})))
	b.ReportAllocs()
	for b.Loop() {
		policy.Evaluate(ps, client)
	}
}

package policy

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// condition is a field of a match.
type condition uint8

const (
	nothing  condition = iota // all fields hold
	noFields                  // the match has no field at all
	destinationPorts
	notDestinationPorts
	namespaces
	notNamespaces
	serviceAccounts
	notServiceAccounts
	principals
	notPrincipals
	sourceIPs
	notSourceIPs
	destinationIPs
	notDestinationIPs
)

// String returns the field's name in config_dump.
func (c condition) String() string {
	return [...]string{"", "none", "destinationPorts", "notDestinationPorts", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts",
		"principals", "notPrincipals", "sourceIps", "notSourceIps", "destinationIps", "notDestinationIps"}[c]
}

// Explanation is a Decision with what each policy had to do with it.
type Explanation struct {
	Decision
	// Verdicts are about each policy, in the order of judgement: Deny before Allow, otherwise as they were given.
	Verdicts []Verdict
}

// Verdict is what one policy says about a connection.
type Verdict struct {
	Policy  *mesh.Policy
	Matched bool
	Rule    int // the first rule that matches, or NoRule
	// Decided says that this policy made the decision. Those after it were not asked.
	Decided bool
	// Misses say of each rule why it does not match; Matched has none. A policy without rules has none either: it
	// never matches.
	Misses []Miss
	More   int // rules beyond the limit, which do not match either
}

// Miss is why a rule does not match: the first of its clauses that does not hold.
type Miss struct {
	Rule, Clause int
	Matches      []FieldMiss // one for each match of the clause, up to the limit
	More         int         // matches beyond the limit, which do not hold either
}

// FieldMiss is the first field of a match that does not hold.
type FieldMiss struct {
	Field string   // as in config_dump; "none" for a match without any field
	Want  []string // the values of the policy, up to the limit; for a "not" field those that it excludes
	More  int      // values beyond the limit
	Have  string   // the value of the connection
}

// Limits of an explanation's length.
const (
	maxMisses = 20
	maxWant   = 10
)

// Explain judges as Evaluate does, whose answer it carries, and says why. It is for people: it allocates.
func Explain(ps []*mesh.Policy, c Connection) Explanation {
	e := Explanation{Decision: Evaluate(ps, c)}
	s := prepare(c, nil)
	s.mark()
	for _, action := range []mesh.PolicyAction{mesh.Deny, mesh.Allow} {
		for _, p := range ps {
			if p.Action != action {
				continue
			}
			v := Verdict{Policy: p, Rule: matchPolicy(p, &s)}
			v.Matched = v.Rule != NoRule
			v.Decided = !p.DryRun && v.Matched && p.Key == e.Decision.Policy && v.Rule == e.Decision.Rule
			if !v.Matched {
				v.explain(&s)
			}
			e.Verdicts = append(e.Verdicts, v)
		}
	}
	return e
}

// explain fills in why no rule matches.
func (v *Verdict) explain(s *subject) {
	for i, r := range v.Policy.Rules {
		if len(v.Misses) == maxMisses {
			v.More = len(v.Policy.Rules) - maxMisses
			return
		}
		j := slices.IndexFunc(r, func(c mesh.Clause) bool { return !matchClause(c, s) })
		m := Miss{Rule: i, Clause: j}
		for k := range r[j] {
			if len(m.Matches) == maxMisses {
				m.More = len(r[j]) - maxMisses
				break
			}
			m.Matches = append(m.Matches, missOf(&r[j][k], s))
		}
		v.Misses = append(v.Misses, m)
	}
}

func missOf(m *mesh.Match, s *subject) FieldMiss {
	f := failing(m, s)
	out := FieldMiss{Field: f.String()}
	switch f {
	case destinationPorts, notDestinationPorts:
		out.Have = strconv.Itoa(int(s.dstPort))
		out.want(values(either(f == destinationPorts, m.DestinationPorts, m.NotDestinationPorts), func(p uint16) string { return strconv.Itoa(int(p)) }))
	case namespaces, notNamespaces:
		out.Have = s.id.Namespace
		out.want(values(either(f == namespaces, m.Namespaces, m.NotNamespaces), stringMatch))
	case principals, notPrincipals:
		out.Have = string(s.principal)
		out.want(values(either(f == principals, m.Principals, m.NotPrincipals), stringMatch))
	case serviceAccounts, notServiceAccounts:
		if !s.anonymous {
			out.Have = s.id.Namespace + "/" + s.id.ServiceAccount
		}
		out.want(values(either(f == serviceAccounts, m.ServiceAccounts, m.NotServiceAccounts), func(a mesh.ServiceAccountMatch) string { return a.Namespace + "/" + a.ServiceAccount }))
	case sourceIPs, notSourceIPs:
		out.Have = address(s.src)
		out.want(values(either(f == sourceIPs, m.SourceIPs, m.NotSourceIPs), netip.Prefix.String))
	case destinationIPs, notDestinationIPs:
		out.Have = address(s.dst)
		out.want(values(either(f == destinationIPs, m.DestinationIPs, m.NotDestinationIPs), netip.Prefix.String))
	}
	return out
}

func (f *FieldMiss) want(all []string) {
	f.Want = all
	if f.More = len(all) - maxWant; f.More > 0 {
		f.Want = all[:maxWant]
		return
	}
	f.More = 0
}

func either[T any](first bool, a, b []T) []T {
	if first {
		return a
	}
	return b
}

func values[T any](in []T, word func(T) string) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = word(v)
	}
	return out
}

// stringMatch writes a value as AuthorizationPolicy has it: * stands for anything, alone for anything but nothing.
func stringMatch(m mesh.StringMatch) string {
	switch m.Kind {
	case mesh.MatchPrefix:
		return m.Value + "*"
	case mesh.MatchSuffix:
		return "*" + m.Value
	case mesh.MatchPresence:
		return "*"
	}
	return m.Value
}

func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

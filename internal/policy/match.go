package policy

import (
	"math/bits"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// maxInlinePrincipal holds any principal of Kubernetes' own limits for names (trust domain 255, namespace 63, service
// account 253, and the fixed parts). A longer one is handled too, at the price of an allocation.
const maxInlinePrincipal = 592

// subject is a Connection prepared for matching. It lives on the stack of Evaluate.
type subject struct {
	id        mesh.Identity
	anonymous bool
	src, dst  netip.Addr
	dstPort   uint16

	principal []byte // "td/ns/NAMESPACE/sa/SERVICE-ACCOUNT"

	// What a rule's hint must have: nothing before mark.
	hint   mesh.RuleHint
	bits   [fields]uint8 // the same as numbers of columns
	marked int           // how many there are
}

// prepare returns the subject of c. The principal is written to b, or elsewhere if b is too small.
func prepare(c Connection, b []byte) subject {
	s := subject{id: c.Source, anonymous: c.Source.IsZero(), dstPort: c.DestinationAddr.Port()}
	// A v4-mapped address would slip past a policy about IPv4.
	s.src, s.dst = c.SourceAddr.Addr().Unmap().WithZone(""), c.DestinationAddr.Addr().Unmap().WithZone("")
	if s.anonymous {
		return s
	}
	b = append(b, c.Source.TrustDomain...)
	b = append(b, "/ns/"...)
	b = append(b, c.Source.Namespace...)
	b = append(b, "/sa/"...)
	s.principal = append(b, c.Source.ServiceAccount...)
	return s
}

// matchPolicy returns the index of the first rule that matches, or NoRule.
func matchPolicy(p *mesh.Policy, s *subject) int {
	x := &p.Index
	switch {
	case s.marked > 0 && x.Any[0] != 0 && s.lacks(&x.Any): // first, for it is all that most of many policies are asked
		return NoRule
	case s.marked > 0 && len(x.Columns) > 0:
		return sift(p, s)
	case len(x.Rows) == 0:
		return scan(p.Rules, s)
	}
	for i := range x.Rows {
		if !s.lacks(&x.Rows[i]) && matchRule(p.Rules[i], s) {
			return i
		}
	}
	return NoRule
}

// sift is matchPolicy for many rules: 64 at a time it finds those that have all bits of the connection.
func sift(p *mesh.Policy, s *subject) int {
	columns := p.Index.Columns
	words := len(columns) / hintBits
	for at := range words {
		set := ^uint64(0)
		for _, bit := range s.bits[:s.marked] {
			if set &= columns[int(bit)*words+at]; set == 0 {
				break
			}
		}
		for ; set != 0; set &= set - 1 {
			if i := 64*at + bits.TrailingZeros64(set); matchRule(p.Rules[i], s) {
				return i
			}
		}
	}
	return NoRule
}

// scan is matchPolicy without an index.
func scan(rules []mesh.Rule, s *subject) int {
	for i, r := range rules {
		if matchRule(r, s) {
			return i
		}
	}
	return NoRule
}

func matchRule(r mesh.Rule, s *subject) bool {
	for _, c := range r {
		if !matchClause(c, s) {
			return false
		}
	}
	return true
}

func matchClause(c mesh.Clause, s *subject) bool {
	if len(c) == 0 {
		return true
	}
	for i := range c {
		if matchMatch(&c[i], s) {
			return true
		}
	}
	return false
}

func matchMatch(m *mesh.Match, s *subject) bool { return failing(m, s) == nothing }

// failing returns the first field of m that does not hold for s, or nothing if all do. The cheap ones are first.
func failing(m *mesh.Match, s *subject) condition {
	switch {
	case empty(m):
		return noFields
	case len(m.DestinationPorts) != 0 && !hasPort(m.DestinationPorts, s.dstPort):
		return destinationPorts
	case hasPort(m.NotDestinationPorts, s.dstPort):
		return notDestinationPorts
	case len(m.Namespaces) != 0 && !hasNamespace(m.Namespaces, s):
		return namespaces
	case hasNamespace(m.NotNamespaces, s):
		return notNamespaces
	case len(m.ServiceAccounts) != 0 && !hasServiceAccount(m.ServiceAccounts, s):
		return serviceAccounts
	case hasServiceAccount(m.NotServiceAccounts, s):
		return notServiceAccounts
	case len(m.Principals) != 0 && !hasPrincipal(m.Principals, s):
		return principals
	case hasPrincipal(m.NotPrincipals, s):
		return notPrincipals
	case len(m.SourceIPs) != 0 && !hasAddr(m.SourceIPs, s.src):
		return sourceIPs
	case hasAddr(m.NotSourceIPs, s.src):
		return notSourceIPs
	case len(m.DestinationIPs) != 0 && !hasAddr(m.DestinationIPs, s.dst):
		return destinationIPs
	case hasAddr(m.NotDestinationIPs, s.dst):
		return notDestinationIPs
	}
	return nothing
}

func empty(m *mesh.Match) bool {
	return len(m.Namespaces) == 0 && len(m.NotNamespaces) == 0 &&
		len(m.Principals) == 0 && len(m.NotPrincipals) == 0 &&
		len(m.ServiceAccounts) == 0 && len(m.NotServiceAccounts) == 0 &&
		len(m.SourceIPs) == 0 && len(m.NotSourceIPs) == 0 &&
		len(m.DestinationIPs) == 0 && len(m.NotDestinationIPs) == 0 &&
		len(m.DestinationPorts) == 0 && len(m.NotDestinationPorts) == 0
}

func hasPort(ports []uint16, port uint16) bool {
	for _, p := range ports {
		if p == port {
			return true
		}
	}
	return false
}

// hasNamespace matches the empty namespace too when there is no identity: an exact match of "" or an empty prefix
// therefore holds for plaintext, as it does in ztunnel.
func hasNamespace(ms []mesh.StringMatch, s *subject) bool {
	for i := range ms {
		if ms[i].Matches(s.id.Namespace) {
			return true
		}
	}
	return false
}

func hasServiceAccount(ms []mesh.ServiceAccountMatch, s *subject) bool {
	if s.anonymous {
		return false
	}
	for i := range ms {
		if ms[i].Namespace == s.id.Namespace && ms[i].ServiceAccount == s.id.ServiceAccount {
			return true
		}
	}
	return false
}

func hasPrincipal(ms []mesh.StringMatch, s *subject) bool {
	if s.anonymous {
		return false
	}
	for i := range ms {
		if matchBytes(&ms[i], s.principal) {
			return true
		}
	}
	return false
}

// matchBytes is StringMatch.Matches for bytes; the conversions do not allocate because they are only compared.
func matchBytes(m *mesh.StringMatch, b []byte) bool {
	n := len(m.Value)
	switch m.Kind {
	case mesh.MatchPrefix:
		return len(b) >= n && string(b[:n]) == m.Value
	case mesh.MatchSuffix:
		return len(b) >= n && string(b[len(b)-n:]) == m.Value
	case mesh.MatchPresence:
		return len(b) != 0
	}
	return string(b) == m.Value
}

func hasAddr(ps []netip.Prefix, a netip.Addr) bool {
	for i := range ps {
		if ps[i].Contains(a) {
			return true
		}
	}
	return false
}

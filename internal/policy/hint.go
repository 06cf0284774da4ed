package policy

import (
	"encoding/binary"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// A hint is a row of small sets, one for each thing that a connection has exactly one of. A connection sets one bit in
// each, chosen by a hash; a rule sets the bits of all values with which it could match, and every bit where it does not
// say. A rule that lacks a bit of the connection cannot match it. One that has them all still must be asked: values
// share bits. So most of many rules are passed over at the price of two words each, their order stays, and a hint can
// be too generous without ever being wrong.
type field struct{ word, shift, width int }

var (
	byPrincipal   = field{0, 0, 32}
	byNamespace   = field{0, 32, 16}
	byAccount     = field{0, 48, 16}
	byPort        = field{1, 0, 16}
	bySource      = field{1, 16, 16}
	bySourceNet   = field{1, 32, 16}
	byDestination = field{1, 48, 16}
)

// The bits below are kept for connections without identity in the fields that ask for one; see hash.
const anonymous = 0

// netBits is how much of an address bySourceNet looks at.
func netBits(a netip.Addr) int {
	if a.Is4() {
		return 24
	}
	return 64
}

func (f field) set(h *mesh.RuleHint, bit int) { h[f.word] |= 1 << (f.shift + bit) }

func (f field) setAll(h *mesh.RuleHint, from int) {
	for i := from; i < f.width; i++ {
		f.set(h, i)
	}
}

// hash chooses a bit other than anonymous.
func (f field) hash(sum uint64) int {
	return 1 + int((sum^sum>>32)&0xffffffff*uint64(f.width-1)>>32)
}

// mix is a step of FNV-1a with a better end: see sumOf. Nobody gains by collisions, which cost time alone, and the
// worst that they can cost is what a rule without hints costs.
const (
	sumStart = 14695981039346656037
	sumPrime = 1099511628211
)

func sumOf[T string | []byte](sum uint64, b T) uint64 {
	for i := range len(b) {
		sum = (sum ^ uint64(b[i])) * sumPrime
	}
	return finish(sum)
}

func finish(sum uint64) uint64 {
	sum ^= sum >> 33
	sum *= 0xff51afd7ed558ccd
	return sum ^ sum>>33
}

func sumOfAddr(a netip.Addr, bits int) uint64 {
	p, err := a.Prefix(bits)
	if err != nil {
		return 0
	}
	b := p.Addr().As16()
	return finish(binary.BigEndian.Uint64(b[:8])*sumPrime ^ binary.BigEndian.Uint64(b[8:]))
}

func sumOfAccount(namespace, account string) uint64 {
	return sumOf(sumOf(sumStart, namespace), account)
}

// fewRules is how many rules are asked sooner than a connection's hint is made.
const fewRules = 12

func worthHints(ps []*mesh.Policy) bool {
	n := 0
	for _, p := range ps {
		if n += len(p.Hints); n > fewRules {
			return true
		}
	}
	return false
}

// bits is the hint of a connection: the one bit per field that a rule must have.
func (s *subject) bits() (h mesh.RuleHint) {
	principal, account := anonymous, anonymous
	if !s.anonymous {
		principal = byPrincipal.hash(sumOf(sumStart, s.principal))
		account = byAccount.hash(sumOfAccount(s.id.Namespace, s.id.ServiceAccount))
	}
	byPrincipal.set(&h, principal)
	byAccount.set(&h, account)
	byNamespace.set(&h, byNamespace.hash(sumOf(sumStart, s.id.Namespace)))
	byPort.set(&h, byPort.hash(finish(uint64(s.dstPort))))
	if s.src.IsValid() {
		bySource.set(&h, bySource.hash(sumOfAddr(s.src, s.src.BitLen())))
		bySourceNet.set(&h, bySourceNet.hash(sumOfAddr(s.src, netBits(s.src))))
	}
	if s.dst.IsValid() {
		byDestination.set(&h, byDestination.hash(sumOfAddr(s.dst, s.dst.BitLen())))
	}
	return h
}

// Index derives the hints of a policy's rules, which must not change any more. A policy without hints is judged the
// same, slower.
func Index(p *mesh.Policy) {
	if len(p.Rules) == 0 {
		return
	}
	hints := make([]mesh.RuleHint, len(p.Rules))
	for i, r := range p.Rules {
		hints[i] = ruleHint(r)
	}
	p.Hints = hints
}

// ruleHint joins the clauses, which must all hold: what one of them lacks the rule lacks.
func ruleHint(r mesh.Rule) mesh.RuleHint {
	h := mesh.RuleHint{^uint64(0), ^uint64(0)}
	for _, c := range r {
		if len(c) == 0 {
			continue
		}
		var any mesh.RuleHint // the matches of a clause are alternatives
		for i := range c {
			m := matchHint(&c[i])
			any[0] |= m[0]
			any[1] |= m[1]
		}
		h[0] &= any[0]
		h[1] &= any[1]
	}
	return h
}

func matchHint(m *mesh.Match) (h mesh.RuleHint) {
	if empty(m) {
		return h
	}
	texts(&h, byPrincipal, m.Principals, anonymous+1)
	texts(&h, byNamespace, m.Namespaces, 0)
	if len(m.ServiceAccounts) == 0 {
		byAccount.setAll(&h, 0)
	}
	for _, a := range m.ServiceAccounts {
		byAccount.set(&h, byAccount.hash(sumOfAccount(a.Namespace, a.ServiceAccount)))
	}
	if len(m.DestinationPorts) == 0 {
		byPort.setAll(&h, 0)
	}
	for _, p := range m.DestinationPorts {
		byPort.set(&h, byPort.hash(finish(uint64(p))))
	}
	addresses(&h, bySource, m.SourceIPs, netip.Addr.BitLen)
	addresses(&h, bySourceNet, m.SourceIPs, netBits)
	addresses(&h, byDestination, m.DestinationIPs, netip.Addr.BitLen)
	return h
}

// texts sets what ms could match. from is the first bit that a value which is not exact could have.
func texts(h *mesh.RuleHint, f field, ms []mesh.StringMatch, from int) {
	if len(ms) == 0 {
		f.setAll(h, 0)
	}
	for _, m := range ms {
		if m.Kind == mesh.MatchPrefix || m.Kind == mesh.MatchSuffix || m.Kind == mesh.MatchPresence {
			f.setAll(h, from)
			return
		}
		f.set(h, f.hash(sumOf(sumStart, m.Value)))
	}
}

// addresses sets what ps could hold, looking at the first bits of addresses. A shorter prefix could hold any.
func addresses(h *mesh.RuleHint, f field, ps []netip.Prefix, bits func(netip.Addr) int) {
	if len(ps) == 0 {
		f.setAll(h, 0)
	}
	for _, p := range ps {
		if n := bits(p.Addr()); p.Bits() >= n {
			f.set(h, f.hash(sumOfAddr(p.Addr(), n)))
		} else {
			f.setAll(h, 0)
		}
	}
}

package policy

import (
	"encoding/binary"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// A hint is a row of small sets, one for each thing that a connection has exactly one of. A connection sets one bit in
// each, chosen by a hash; a rule sets the bits of all values with which it could match, and every bit where it does not
// say. A rule that lacks a bit of the connection cannot match it. One that has them all still must be asked: values
// share bits. So most of many rules are passed over without being looked at, their order stays, and a hint can be too
// generous without ever being wrong.
type field struct{ word, shift, width int }

var (
	byPrincipal   = field{0, 0, 48}
	byAccount     = field{0, 48, 16}
	byHead        = field{1, 0, 32}  // of the principal: up to its third slash, "td/ns/NAMESPACE/"
	byTail        = field{1, 32, 32} // of the principal: after its last slash
	byNamespace   = field{2, 0, 32}
	byPort        = field{2, 32, 16}
	byDestination = field{2, 48, 16}
	bySource      = field{3, 0, 16}
	bySourceNet   = field{3, 16, 32}
	bySourceRange = field{3, 48, 16}
)

const (
	fields   = 10
	hintBits = 256
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

// rangeBits is how much of an address bySourceRange looks at.
func rangeBits(a netip.Addr) int { return netBits(a) - 8 }

// head is a principal, or the beginning of one, up to its third slash. It is nothing if there are fewer, in which case
// principals that begin so differ in it. Whatever a principal is made of, one that begins with s has s's head.
func head[T string | []byte](s T) T {
	slashes := 0
	for i := range len(s) {
		if s[i] == '/' {
			if slashes++; slashes == 3 {
				return s[:i+1]
			}
		}
	}
	return s[:0]
}

// tail is a principal, or the end of one, from its last slash on: nothing if there is none. One that ends with s has s's
// tail.
func tail[T string | []byte](s T) T {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return s[i:]
		}
	}
	return s[:0]
}

func (f field) set(h *mesh.RuleHint, bit int) { h[f.word] |= 1 << (f.shift + bit) }

func (f field) setAll(h *mesh.RuleHint, from int) {
	h[f.word] |= (1<<f.width - 1<<from) << f.shift
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
		if len(p.Index.Rows)+len(p.Index.Columns) > 0 {
			if n += len(p.Rules); n > fewRules {
				return true
			}
		}
	}
	return false
}

// mark sets the bits of a connection: the one per field that a rule must have.
func (s *subject) mark() {
	principal, account, first, last := anonymous, anonymous, anonymous, anonymous
	if !s.anonymous {
		principal = byPrincipal.hash(sumOf(sumStart, s.principal))
		account = byAccount.hash(sumOfAccount(s.id.Namespace, s.id.ServiceAccount))
		first = byHead.hash(sumOf(sumStart, head(s.principal)))
		last = byTail.hash(sumOf(sumStart, tail(s.principal)))
	}
	n := 0
	set := func(f field, bit int) {
		f.set(&s.hint, bit)
		s.bits[n] = uint8(64*f.word + f.shift + bit)
		n++
	}
	set(byPrincipal, principal)
	set(byAccount, account)
	set(byHead, first)
	set(byTail, last)
	set(byNamespace, byNamespace.hash(sumOf(sumStart, s.id.Namespace)))
	set(byPort, byPort.hash(finish(uint64(s.dstPort))))
	if s.src.IsValid() {
		set(bySource, bySource.hash(sumOfAddr(s.src, s.src.BitLen())))
		set(bySourceNet, bySourceNet.hash(sumOfAddr(s.src, netBits(s.src))))
		set(bySourceRange, bySourceRange.hash(sumOfAddr(s.src, rangeBits(s.src))))
	}
	if s.dst.IsValid() {
		set(byDestination, byDestination.hash(sumOfAddr(s.dst, s.dst.BitLen())))
	}
	s.marked = n
}

// lacks reports whether a hint lacks one of the connection's bits.
func (s *subject) lacks(h *mesh.RuleHint) bool {
	return h[0]&s.hint[0] != s.hint[0] || h[1]&s.hint[1] != s.hint[1] || h[2]&s.hint[2] != s.hint[2] || h[3]&s.hint[3] != s.hint[3]
}

// passes reports that no rule of an index matches, from one word of it. It costs no call, which matters for many policies.
func (s *subject) passes(x *mesh.RuleIndex) bool {
	return x.Any[0]&s.hint[0] != s.hint[0] && x.Any[0] != 0
}

// manyRules is from how many rules on their hints are kept in columns: a column takes a whole word.
const manyRules = 33

// Index derives the index of a policy's rules, which must not change any more. A policy without one is judged the same,
// slower.
func Index(p *mesh.Policy) {
	p.Index = mesh.RuleIndex{}
	if len(p.Rules) == 0 {
		return
	}
	rows := make([]mesh.RuleHint, len(p.Rules))
	for i, r := range p.Rules {
		rows[i] = ruleHint(r)
		for w := range rows[i] {
			p.Index.Any[w] |= rows[i][w]
		}
	}
	if len(rows) < manyRules {
		p.Index.Rows = rows
		return
	}
	p.Index.Columns = columns(rows)
}

// columns turns rows of bits into columns. The column of a bit is as many words as 64 rules each take.
func columns(rows []mesh.RuleHint) []uint64 {
	words := (len(rows) + 63) / 64
	out := make([]uint64, hintBits*words)
	var square [64]uint64
	for at := range words {
		part := rows[64*at : min(64*at+64, len(rows))]
		for w := range len(mesh.RuleHint{}) {
			clear(square[:])
			for i := range part {
				square[i] = part[i][w]
			}
			transpose(&square)
			for bit, column := range square {
				out[(64*w+bit)*words+at] = column
			}
		}
	}
	return out
}

// transpose exchanges rows and columns of a square of bits, in halves, quarters and so on.
func transpose(a *[64]uint64) {
	for size, mask := 32, uint64(1<<32-1); size > 0; size, mask = size/2, mask^mask<<(size/2) {
		for i := 0; i < 64; i = (i + size + 1) &^ size {
			t := (a[i]>>size ^ a[i+size]) & mask
			a[i] ^= t << size
			a[i+size] ^= t
		}
	}
}

// ruleHint joins the clauses, which must all hold: what one of them lacks the rule lacks.
func ruleHint(r mesh.Rule) mesh.RuleHint {
	h := mesh.RuleHint{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	for _, c := range r {
		if len(c) == 0 {
			continue
		}
		var any mesh.RuleHint // the matches of a clause are alternatives
		for i := range c {
			m := matchHint(&c[i])
			for w := range m {
				any[w] |= m[w]
			}
		}
		for w := range any {
			h[w] &= any[w]
		}
	}
	return h
}

func matchHint(m *mesh.Match) (h mesh.RuleHint) {
	if empty(m) {
		return h
	}
	texts(&h, byPrincipal, m.Principals, anonymous+1)
	parts(&h, byHead, m.Principals, mesh.MatchPrefix, head[string])
	parts(&h, byTail, m.Principals, mesh.MatchSuffix, tail[string])
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
	addresses(&h, bySourceRange, m.SourceIPs, rangeBits)
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

// parts sets what ms could match of a part of principals. Besides exact values those of one kind tell of it, if they are
// long enough.
func parts(h *mesh.RuleHint, f field, ms []mesh.StringMatch, kind mesh.StringMatchKind, part func(string) string) {
	if len(ms) == 0 {
		f.setAll(h, 0)
	}
	for _, m := range ms {
		known := ""
		if m.Kind == mesh.MatchExact || m.Kind == kind {
			known = part(m.Value)
		}
		if known == "" {
			f.setAll(h, anonymous+1)
			return
		}
		f.set(h, f.hash(sumOf(sumStart, known)))
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

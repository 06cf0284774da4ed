package policy_test

import (
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// reference says the same as policy.Evaluate, slowly and as close to the words of the package comment as code can be.
// It deliberately shares nothing with it.
func reference(ps []*mesh.Policy, c policy.Connection) (allowed bool, by string) {
	var allow, deny []*mesh.Policy
	for _, p := range ps {
		switch {
		case p.DryRun:
		case p.Action == mesh.Deny:
			deny = append(deny, p)
		default:
			allow = append(allow, p)
		}
	}
	for _, p := range deny {
		if refPolicy(p, c) {
			return false, p.Key.String()
		}
	}
	if len(allow) == 0 {
		return true, ""
	}
	for _, p := range allow {
		if refPolicy(p, c) {
			return true, p.Key.String()
		}
	}
	return false, ""
}

func refPolicy(p *mesh.Policy, c policy.Connection) bool {
	any := false
	for _, rule := range p.Rules {
		all := true
		for _, clause := range rule {
			hit := len(clause) == 0
			for _, m := range clause {
				hit = hit || refMatch(m, c)
			}
			all = all && hit
		}
		any = any || all
	}
	return any
}

func refMatch(m mesh.Match, c policy.Connection) bool {
	fields := 0
	holds := true
	check := func(positive, negative int, has func(i int, negated bool) bool) {
		fields += positive + negative
		if positive > 0 {
			hit := false
			for i := range positive {
				hit = hit || has(i, false)
			}
			holds = holds && hit
		}
		for i := range negative {
			holds = holds && !has(i, true)
		}
	}
	uri := c.Source.String()
	pick := func(a, b []mesh.StringMatch, negated bool, i int) mesh.StringMatch {
		if negated {
			return b[i]
		}
		return a[i]
	}
	check(len(m.Namespaces), len(m.NotNamespaces), func(i int, n bool) bool {
		return refText(pick(m.Namespaces, m.NotNamespaces, n, i), c.Source.Namespace)
	})
	check(len(m.Principals), len(m.NotPrincipals), func(i int, n bool) bool {
		name, ok := strings.CutPrefix(uri, "spiffe://")
		return ok && refText(pick(m.Principals, m.NotPrincipals, n, i), name)
	})
	check(len(m.ServiceAccounts), len(m.NotServiceAccounts), func(i int, n bool) bool {
		list := m.ServiceAccounts
		if n {
			list = m.NotServiceAccounts
		}
		return uri != "" && list[i].Namespace+"/"+list[i].ServiceAccount == c.Source.Namespace+"/"+c.Source.ServiceAccount
	})
	cidr := func(a, b []netip.Prefix, addr netip.Addr) {
		check(len(a), len(b), func(i int, n bool) bool {
			p := a
			if n {
				p = b
			}
			return p[i].Contains(addr.Unmap())
		})
	}
	cidr(m.SourceIPs, m.NotSourceIPs, c.SourceAddr.Addr())
	cidr(m.DestinationIPs, m.NotDestinationIPs, c.DestinationAddr.Addr())
	check(len(m.DestinationPorts), len(m.NotDestinationPorts), func(i int, n bool) bool {
		list := m.DestinationPorts
		if n {
			list = m.NotDestinationPorts
		}
		return list[i] == c.DestinationAddr.Port()
	})
	return fields > 0 && holds
}

func refText(m mesh.StringMatch, s string) bool {
	switch m.Kind {
	case mesh.MatchExact:
		return s == m.Value
	case mesh.MatchPrefix:
		return strings.HasPrefix(s, m.Value)
	case mesh.MatchSuffix:
		return strings.HasSuffix(s, m.Value)
	default:
		return len(s) > 0
	}
}

// generator makes policies and connections out of so few different values that they often match.
type generator struct{ *rand.Rand }

func (g generator) pick(values ...string) string { return values[g.IntN(len(values))] }

func (g generator) namespace() string { return g.pick("a", "b", "ab", "") }

func (g generator) connection() policy.Connection {
	c := policy.Connection{
		SourceAddr:      netip.AddrPortFrom(g.addr(), 40000),
		DestinationAddr: netip.AddrPortFrom(g.addr(), g.port()),
	}
	if g.IntN(4) > 0 {
		c.Source = mesh.Identity{TrustDomain: g.pick("td", "cluster.local"), Namespace: g.pick("a", "b", "ab"), ServiceAccount: g.pick("s", "t")}
	}
	return c
}

func (g generator) addr() netip.Addr {
	return netip.MustParseAddr(g.pick("10.0.0.1", "10.0.1.1", "::ffff:10.0.0.1", "fd00::1", "192.168.0.1"))
}

func (g generator) port() uint16 { return [...]uint16{80, 443, 8080}[g.IntN(3)] }

func (g generator) policies() []*mesh.Policy {
	ps := make([]*mesh.Policy, g.IntN(4))
	for i := range ps {
		ps[i] = &mesh.Policy{
			Key:    mesh.PolicyKey{Namespace: "ns", Name: string(rune('p' + i))},
			Action: mesh.PolicyAction(g.IntN(2)),
			DryRun: g.IntN(6) == 0,
		}
		rules := g.IntN(3)
		if g.IntN(3) == 0 {
			rules = g.IntN(150) // enough for each kind of index, and for more than one word in its columns
		}
		for range rules {
			rule := mesh.Rule{}
			for range g.IntN(3) {
				clause := mesh.Clause{}
				for range g.IntN(3) {
					clause = append(clause, g.match())
				}
				rule = append(rule, clause)
			}
			ps[i].Rules = append(ps[i].Rules, rule)
		}
	}
	return ps
}

func (g generator) match() mesh.Match {
	var m mesh.Match
	for range g.IntN(3) {
		switch g.IntN(12) {
		case 0:
			m.Namespaces = append(m.Namespaces, g.text(g.namespace()))
		case 1:
			m.NotNamespaces = append(m.NotNamespaces, g.text(g.namespace()))
		case 2:
			m.Principals = append(m.Principals, g.principal())
		case 3:
			m.NotPrincipals = append(m.NotPrincipals, g.principal())
		case 4:
			m.ServiceAccounts = append(m.ServiceAccounts, g.account())
		case 5:
			m.NotServiceAccounts = append(m.NotServiceAccounts, g.account())
		case 6:
			m.SourceIPs = append(m.SourceIPs, g.prefix())
		case 7:
			m.NotSourceIPs = append(m.NotSourceIPs, g.prefix())
		case 8:
			m.DestinationIPs = append(m.DestinationIPs, g.prefix())
		case 9:
			m.NotDestinationIPs = append(m.NotDestinationIPs, g.prefix())
		case 10:
			m.DestinationPorts = append(m.DestinationPorts, g.port())
		case 11:
			m.NotDestinationPorts = append(m.NotDestinationPorts, g.port())
		}
	}
	return m
}

func (g generator) text(v string) mesh.StringMatch {
	return mesh.StringMatch{Kind: mesh.StringMatchKind(g.IntN(4)), Value: v}
}

func (g generator) principal() mesh.StringMatch {
	return g.text(g.pick("td/ns/a/sa/s", "cluster.local/ns/ab/sa/t", "td/", "/sa/s", "spiffe://td/ns/a/sa/s", "", "td/ns/a/", "cluster.local/ns/a", "td/ns/ab/sa/",
		"ns/a/sa/t", "s", "/"))
}

func (g generator) account() mesh.ServiceAccountMatch {
	return mesh.ServiceAccountMatch{Namespace: g.namespace(), ServiceAccount: g.pick("s", "t", "")}
}

func (g generator) prefix() netip.Prefix {
	return netip.MustParsePrefix(g.pick("10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/16", "10.0.1.1/32", "10.0.0.7/24", "10.0.0.1/32",
		"192.168.0.0/25", "fd00::1/128", "fd00::/64", "::ffff:10.0.0.1/128"))
}

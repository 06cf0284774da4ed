package xds

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	pb "github.com/isthmus-mesh/isthmus/internal/xds/discoverypb"
	spb "github.com/isthmus-mesh/isthmus/internal/xds/securitypb"
)

// decodePolicies decodes a response of AuthorizationType.
func decodePolicies(resources []*pb.Resource) decoded {
	d := decoded{rejected: map[string]error{}}
	for _, r := range resources {
		var a spb.Authorization
		err := unmarshal(r, AuthorizationType, &a)
		if err == nil {
			var p *mesh.Policy
			if p, err = DecodePolicy(&a); err == nil {
				d.update.Policies = append(d.update.Policies, p)
				continue
			}
		}
		d.rejected[r.GetName()] = err
	}
	return d
}

// DecodePolicy checks a policy. Nothing in it is dropped: a condition that cannot be understood would, left out, make
// its rule wider, and so the whole policy is refused and its former version stays in force.
func DecodePolicy(p *spb.Authorization) (*mesh.Policy, error) {
	if p.GetName() == "" {
		return nil, errors.New("policy without a name")
	}
	out := &mesh.Policy{Key: mesh.PolicyKey{Namespace: intern(p.Namespace), Name: intern(p.Name)}, DryRun: p.DryRun}
	switch p.Scope {
	case spb.Scope_GLOBAL:
		out.Scope = mesh.ScopeGlobal
	case spb.Scope_NAMESPACE:
		out.Scope = mesh.ScopeNamespace
	case spb.Scope_WORKLOAD_SELECTOR:
		out.Scope = mesh.ScopeSelector
	default:
		return nil, fmt.Errorf("unknown scope %v", p.Scope)
	}
	switch p.Action {
	case spb.Action_ALLOW:
		out.Action = mesh.Allow
	case spb.Action_DENY:
		out.Action = mesh.Deny
	default:
		return nil, fmt.Errorf("unknown action %v", p.Action)
	}
	for i, g := range p.Groups {
		rule := make(mesh.Rule, 0, len(g.GetRules()))
		for _, r := range g.GetRules() {
			clause := make(mesh.Clause, 0, len(r.GetMatches()))
			for _, m := range r.GetMatches() {
				match, err := decodeMatch(m)
				if err != nil {
					return nil, fmt.Errorf("rule %d: %w", i, err)
				}
				clause = append(clause, match)
			}
			rule = append(rule, clause)
		}
		out.Rules = append(out.Rules, rule)
	}
	return out, nil
}

// matchDecoder remembers the first error, so that the many fields read as a list.
type matchDecoder struct{ err error }

func decodeMatch(p *spb.Match) (mesh.Match, error) {
	var d matchDecoder
	m := mesh.Match{
		Namespaces:          d.texts(p.GetNamespaces()),
		NotNamespaces:       d.texts(p.GetNotNamespaces()),
		Principals:          d.texts(p.GetPrincipals()),
		NotPrincipals:       d.texts(p.GetNotPrincipals()),
		ServiceAccounts:     d.serviceAccounts(p.GetServiceAccounts()),
		NotServiceAccounts:  d.serviceAccounts(p.GetNotServiceAccounts()),
		SourceIPs:           d.prefixes(p.GetSourceIps()),
		NotSourceIPs:        d.prefixes(p.GetNotSourceIps()),
		DestinationIPs:      d.prefixes(p.GetDestinationIps()),
		NotDestinationIPs:   d.prefixes(p.GetNotDestinationIps()),
		DestinationPorts:    d.ports(p.GetDestinationPorts()),
		NotDestinationPorts: d.ports(p.GetNotDestinationPorts()),
	}
	return m, d.err
}

func (d *matchDecoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *matchDecoder) texts(list []*spb.StringMatch) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, p := range list {
		switch t := p.GetMatchType().(type) {
		case *spb.StringMatch_Exact:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchExact, Value: t.Exact})
		case *spb.StringMatch_Prefix:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPrefix, Value: t.Prefix})
		case *spb.StringMatch_Suffix:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchSuffix, Value: t.Suffix})
		case *spb.StringMatch_Presence:
			out = append(out, mesh.StringMatch{Kind: mesh.MatchPresence})
		default:
			d.fail(errors.New("string match of an unknown kind"))
		}
	}
	return out
}

func (d *matchDecoder) serviceAccounts(list []*spb.ServiceAccountMatch) []mesh.ServiceAccountMatch {
	var out []mesh.ServiceAccountMatch
	for _, p := range list {
		out = append(out, mesh.ServiceAccountMatch{Namespace: p.GetNamespace(), ServiceAccount: p.GetServiceAccount()})
	}
	return out
}

func (d *matchDecoder) prefixes(list []*spb.Address) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		raw, ok := netip.AddrFromSlice(p.GetAddress())
		length := p.GetLength()
		if ok && raw.Is4In6() && length >= 96 {
			// A v4-mapped CIDR means the IPv4 one, as sources are compared without the mapping.
			raw, length = raw.Unmap(), length-96
		}
		if !ok || length > uint32(raw.BitLen()) {
			d.fail(fmt.Errorf("CIDR of %d bytes with prefix length %d", len(p.GetAddress()), p.GetLength()))
			continue
		}
		out = append(out, netip.PrefixFrom(raw, int(length)).Masked())
	}
	return out
}

func (d *matchDecoder) ports(list []uint32) []uint16 {
	var out []uint16
	for _, p := range list {
		port, err := decodePort(p)
		if err != nil {
			d.fail(err)
			continue
		}
		out = append(out, port)
	}
	return out
}

package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// TestEveryField has each field of a match, alone, with values that fit the client and with values that do not, against the
// client and against somebody without an identity, in policies of both actions. The expectations are written out.
func TestEveryField(t *testing.T) {
	kind := func(k mesh.StringMatchKind, v string) []mesh.StringMatch {
		return []mesh.StringMatch{{Kind: k, Value: v}}
	}
	account := func(ns, sa string) []mesh.ServiceAccountMatch {
		return []mesh.ServiceAccountMatch{{Namespace: ns, ServiceAccount: sa}}
	}
	const me = "cluster.local/ns/default/sa/eks-shell"
	for name, c := range map[string]struct {
		match       mesh.Match
		client, any bool // whether it matches the client of default/eks-shell, and one without an identity
	}{
		"namespaces, exact":            {mesh.Match{Namespaces: exact("default")}, true, false},
		"namespaces, another":          {mesh.Match{Namespaces: exact("defaul")}, false, false},
		"namespaces, one of two":       {mesh.Match{Namespaces: exact("x", "default")}, true, false},
		"namespaces, prefix":           {mesh.Match{Namespaces: kind(mesh.MatchPrefix, "def")}, true, false},
		"namespaces, suffix":           {mesh.Match{Namespaces: kind(mesh.MatchSuffix, "ault")}, true, false},
		"namespaces, presence":         {mesh.Match{Namespaces: kind(mesh.MatchPresence, "")}, true, false},
		"namespaces, empty prefix":     {mesh.Match{Namespaces: kind(mesh.MatchPrefix, "")}, true, true},
		"not namespaces":               {mesh.Match{NotNamespaces: exact("default")}, false, true},
		"not namespaces, another":      {mesh.Match{NotNamespaces: exact("other")}, true, true},
		"not namespaces, presence":     {mesh.Match{NotNamespaces: kind(mesh.MatchPresence, "")}, false, true},
		"principals, exact":            {mesh.Match{Principals: exact(me)}, true, false},
		"principals, other domain":     {mesh.Match{Principals: exact("elsewhere/ns/default/sa/eks-shell")}, false, false},
		"principals, prefix":           {mesh.Match{Principals: kind(mesh.MatchPrefix, "cluster.local/ns/default/")}, true, false},
		"principals, suffix":           {mesh.Match{Principals: kind(mesh.MatchSuffix, "/sa/eks-shell")}, true, false},
		"principals, other suffix":     {mesh.Match{Principals: kind(mesh.MatchSuffix, "/sa/shell")}, false, false},
		"principals, presence":         {mesh.Match{Principals: kind(mesh.MatchPresence, "")}, true, false},
		"not principals":               {mesh.Match{NotPrincipals: exact(me)}, false, true},
		"not principals, another":      {mesh.Match{NotPrincipals: exact("x")}, true, true},
		"not principals, presence":     {mesh.Match{NotPrincipals: kind(mesh.MatchPresence, "")}, false, true},
		"service accounts":             {mesh.Match{ServiceAccounts: account("default", "eks-shell")}, true, false},
		"service accounts, namespace":  {mesh.Match{ServiceAccounts: account("other", "eks-shell")}, false, false},
		"service accounts, account":    {mesh.Match{ServiceAccounts: account("default", "eks-shel")}, false, false},
		"not service accounts":         {mesh.Match{NotServiceAccounts: account("default", "eks-shell")}, false, true},
		"not service accounts, other":  {mesh.Match{NotServiceAccounts: account("default", "x")}, true, true},
		"source address":               {mesh.Match{SourceIPs: prefixes("10.0.64.7/32")}, true, true},
		"source network":               {mesh.Match{SourceIPs: prefixes("192.0.2.0/24", "10.0.64.0/18")}, true, true},
		"source, next to it":           {mesh.Match{SourceIPs: prefixes("10.0.64.6/32")}, false, false},
		"source, everything":           {mesh.Match{SourceIPs: prefixes("0.0.0.0/0")}, true, true},
		"source, everything of IPv6":   {mesh.Match{SourceIPs: prefixes("::/0")}, false, false},
		"not source":                   {mesh.Match{NotSourceIPs: prefixes("10.0.64.7/32")}, false, false},
		"not source, another":          {mesh.Match{NotSourceIPs: prefixes("10.0.64.6/32", "::/0")}, true, true},
		"destination address":          {mesh.Match{DestinationIPs: prefixes("10.0.128.9/32")}, true, true},
		"destination, another":         {mesh.Match{DestinationIPs: prefixes("10.0.64.7/32")}, false, false},
		"not destination":              {mesh.Match{NotDestinationIPs: prefixes("10.0.0.0/8")}, false, false},
		"not destination, another":     {mesh.Match{NotDestinationIPs: prefixes("10.0.64.0/24")}, true, true},
		"destination port":             {mesh.Match{DestinationPorts: []uint16{80, 8080}}, true, true},
		"destination port, another":    {mesh.Match{DestinationPorts: []uint16{15008, 40000}}, false, false},
		"not destination port":         {mesh.Match{NotDestinationPorts: []uint16{8080}}, false, false},
		"not destination port, others": {mesh.Match{NotDestinationPorts: []uint16{80, 443}}, true, true},
		"all fields, all fitting": {mesh.Match{Namespaces: exact("default"), NotNamespaces: exact("x"), Principals: exact(me), NotPrincipals: exact("x"),
			ServiceAccounts: account("default", "eks-shell"), NotServiceAccounts: account("x", "x"), SourceIPs: prefixes("10.0.64.7/32"), NotSourceIPs: prefixes("10.1.0.0/16"),
			DestinationIPs: prefixes("10.0.128.0/24"), NotDestinationIPs: prefixes("10.1.0.0/16"), DestinationPorts: []uint16{8080}, NotDestinationPorts: []uint16{80}}, true, false},
		"one field of many does not fit": {mesh.Match{Namespaces: exact("default"), DestinationPorts: []uint16{8080}, NotDestinationPorts: []uint16{8080}}, false, false},
	} {
		for who, matches := range map[string]bool{"the client": c.client, "nobody": c.any} {
			conn := client
			if who == "nobody" {
				conn = plaintext()
			}
			for _, p := range []*mesh.Policy{allow("p", rule(c.match)), deny("p", rule(c.match))} {
				want := policy.Decision{Allowed: (p.Action == mesh.Allow) == matches, Rule: policy.NoRule}
				switch {
				case matches:
					want.Policy, want.Rule = p.Key, 0
					if p.Action == mesh.Deny {
						want.Reason = "explicitly denied by: ns/p"
					}
				case p.Action == mesh.Allow:
					want.Reason = "allow policies exist, but none allowed"
				}
				if diff := cmp.Diff(want, policy.Evaluate([]*mesh.Policy{p}, conn)); diff != "" {
					t.Errorf("%s, %s, action %v (-want +got):\n%s", name, who, p.Action, diff)
				}
			}
		}
	}
}

package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

type localPolicy struct {
	Name      string           `json:"name"`
	Namespace string           `json:"namespace"`
	Scope     string           `json:"scope"`
	Action    string           `json:"action"`
	Rules     [][][]localMatch `json:"rules"`
	DryRun    bool             `json:"dryRun"`
}

type localMatch struct {
	Namespaces          []localText                `json:"namespaces"`
	NotNamespaces       []localText                `json:"notNamespaces"`
	Principals          []localText                `json:"principals"`
	NotPrincipals       []localText                `json:"notPrincipals"`
	ServiceAccounts     []mesh.ServiceAccountMatch `json:"serviceAccounts"`
	NotServiceAccounts  []mesh.ServiceAccountMatch `json:"notServiceAccounts"`
	SourceIPs           []netip.Prefix             `json:"sourceIps"`
	NotSourceIPs        []netip.Prefix             `json:"notSourceIps"`
	DestinationIPs      []netip.Prefix             `json:"destinationIps"`
	NotDestinationIPs   []netip.Prefix             `json:"notDestinationIps"`
	DestinationPorts    []uint16                   `json:"destinationPorts"`
	NotDestinationPorts []uint16                   `json:"notDestinationPorts"`
}

// localText is {Exact: x}, {Prefix: x}, {Suffix: x} or {Presence: []}.
type localText mesh.StringMatch

// UnmarshalJSON implements json.Unmarshaler.
func (l *localText) UnmarshalJSON(text []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		return err
	}
	if len(fields) != 1 {
		return errors.New("a string match has exactly one of Exact, Prefix, Suffix and Presence")
	}
	for kind, value := range fields {
		switch kind {
		case "Exact":
			l.Kind = mesh.MatchExact
		case "Prefix":
			l.Kind = mesh.MatchPrefix
		case "Suffix":
			l.Kind = mesh.MatchSuffix
		case "Presence":
			l.Kind = mesh.MatchPresence
			return nil
		default:
			return fmt.Errorf("unknown string match %.64q", kind)
		}
		return json.Unmarshal(value, &l.Value)
	}
	return nil
}

func (l *localPolicy) mesh() (*mesh.Policy, error) {
	if l.Name == "" {
		return nil, errors.New("name is required")
	}
	var d wordDecoder
	p := &mesh.Policy{
		Key: mesh.PolicyKey{Namespace: l.Namespace, Name: l.Name},
		Scope: word(&d, "scope", l.Scope, map[string]mesh.PolicyScope{
			"Global": mesh.ScopeGlobal, "Namespace": mesh.ScopeNamespace, "WorkloadSelector": mesh.ScopeSelector}),
		Action: word(&d, "action", l.Action, map[string]mesh.PolicyAction{"Allow": mesh.Allow, "Deny": mesh.Deny}),
		DryRun: l.DryRun,
	}
	for _, rule := range l.Rules {
		r := make(mesh.Rule, 0, len(rule))
		for _, clause := range rule {
			c := make(mesh.Clause, 0, len(clause))
			for i := range clause {
				c = append(c, clause[i].mesh())
			}
			r = append(r, c)
		}
		p.Rules = append(p.Rules, r)
	}
	return p, d.err
}

func (l *localMatch) mesh() mesh.Match {
	return mesh.Match{
		Namespaces: localTexts(l.Namespaces), NotNamespaces: localTexts(l.NotNamespaces),
		Principals: localTexts(l.Principals), NotPrincipals: localTexts(l.NotPrincipals),
		ServiceAccounts: l.ServiceAccounts, NotServiceAccounts: l.NotServiceAccounts,
		SourceIPs: masked(l.SourceIPs), NotSourceIPs: masked(l.NotSourceIPs),
		DestinationIPs: masked(l.DestinationIPs), NotDestinationIPs: masked(l.NotDestinationIPs),
		DestinationPorts: l.DestinationPorts, NotDestinationPorts: l.NotDestinationPorts,
	}
}

func localTexts(list []localText) []mesh.StringMatch {
	var out []mesh.StringMatch
	for _, t := range list {
		out = append(out, mesh.StringMatch(t))
	}
	return out
}

func masked(list []netip.Prefix) []netip.Prefix {
	for i := range list {
		list[i] = list[i].Masked()
	}
	return list
}

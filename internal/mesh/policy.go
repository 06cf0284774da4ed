package mesh

import (
	"net/netip"
	"strings"
)

// PolicyScope says which workloads a policy applies to.
type PolicyScope uint8

// The scopes of Istio's Authorization.
const (
	ScopeGlobal    PolicyScope = iota // every workload
	ScopeNamespace                    // every workload of the policy's namespace
	ScopeSelector                     // the workloads that list it
)

// String returns the name of config_dump.
func (s PolicyScope) String() string {
	return [...]string{"Global", "Namespace", "WorkloadSelector", "WorkloadSelector"}[s&3]
}

// PolicyAction is what a matching policy does.
type PolicyAction uint8

// The actions of Istio's Authorization.
const (
	Allow PolicyAction = iota
	Deny
)

// String returns the name of config_dump.
func (a PolicyAction) String() string {
	if a == Deny {
		return "Deny"
	}
	return "Allow"
}

// Policy is one L4 authorization policy as istiod serves it. Rules are alternatives; the clauses of a rule must all
// hold; the matches of a clause are alternatives; the fields of a match must all hold.
type Policy struct {
	Key    PolicyKey
	Scope  PolicyScope
	Action PolicyAction
	DryRun bool
	// Index follows from the rules, see policy.Index, and tells nothing of its own. It is empty or that of all rules.
	Index RuleIndex
	Rules []Rule
}

// RuleHint tells at a glance of most connections that a rule does not match that it does not.
type RuleHint [4]uint64

// RuleIndex is the hints of a policy's rules: all in one, and either one after the other or bit by bit.
type RuleIndex struct {
	Any     RuleHint   // the bits that some rule has; nothing without an index
	Rows    []RuleHint // one for each rule
	Columns []uint64   // for each bit of a hint the set of rules that have it, 64 to a word
}

// Rule matches when all of its clauses do; a rule without clauses matches everything.
type Rule []Clause

// Clause matches when any of its matches does; a clause without matches matches everything.
type Clause []Match

// Match is a set of conditions that must all hold; a Match without any condition never matches.
type Match struct {
	Namespaces, NotNamespaces             []StringMatch
	Principals, NotPrincipals             []StringMatch
	ServiceAccounts, NotServiceAccounts   []ServiceAccountMatch
	SourceIPs, NotSourceIPs               []netip.Prefix
	DestinationIPs, NotDestinationIPs     []netip.Prefix
	DestinationPorts, NotDestinationPorts []uint16
}

// StringMatchKind says how a StringMatch compares.
type StringMatchKind uint8

// The kinds of Istio's StringMatch.
const (
	MatchExact StringMatchKind = iota
	MatchPrefix
	MatchSuffix
	MatchPresence // any value but the empty one
)

// StringMatch is one way for a string to match.
type StringMatch struct {
	Kind  StringMatchKind
	Value string // unused for MatchPresence
}

// Matches reports whether s matches.
func (m StringMatch) Matches(s string) bool {
	switch m.Kind {
	case MatchPrefix:
		return strings.HasPrefix(s, m.Value)
	case MatchSuffix:
		return strings.HasSuffix(s, m.Value)
	case MatchPresence:
		return s != ""
	}
	return s == m.Value
}

// ServiceAccountMatch matches an identity's namespace and service account in any trust domain.
type ServiceAccountMatch struct {
	Namespace      string
	ServiceAccount string
}

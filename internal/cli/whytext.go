package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/proxy/why"
)

// writeWhy writes an answer for people: workloads that say the same are told once.
func (a *app) writeWhy(answer *why.Answer) {
	colour := map[string]string{why.Allowed: "32", why.Denied: "31"}[answer.Verdict]
	from := cmp.Or(answer.Source.Identity, "no identity")
	if answer.Source.Address != "" {
		from += " at " + answer.Source.Address
	}
	a.Printf("%s: %s to %s\n", a.Paint(cmp.Or(colour, "33"), answer.Verdict), from, answer.Destination.Asked)
	for _, n := range answer.Notes {
		a.Printf("note: %s\n", n)
	}
	if len(answer.Workloads) == 0 {
		a.Printf("note: no healthy workload is behind %s\n", cmp.Or(answer.Destination.Service, answer.Destination.Asked))
	}
	var told []why.Workload
	for i, w := range answer.Workloads {
		alike := func(o why.Workload) bool { return sameVerdict(o, w) }
		if slices.ContainsFunc(told, alike) {
			continue
		}
		told = append(told, w)
		var others []string
		for _, o := range answer.Workloads[i+1:] {
			if alike(o) {
				others = append(others, o.Namespace+"/"+o.Name)
			}
		}
		a.writeWorkload(w, others)
	}
	if answer.More > 0 {
		a.Printf("\n%d more workloads were not looked at\n", answer.More)
	}
}

func (a *app) writeWorkload(w why.Workload, others []string) {
	a.Printf("\n%s/%s at %s: %s: %s\n", w.Namespace, w.Name, w.Address, w.Verdict, w.Reason)
	switch {
	case len(others) > 3:
		a.Printf("the same at %s and %d more\n", strings.Join(others[:3], ", "), len(others)-3)
	case len(others) > 0:
		a.Printf("the same at %s\n", strings.Join(others, ", "))
	}
	for _, k := range w.MissingPolicies {
		a.Printf("policy %s is named by the workload and not known\n", k)
	}
	if len(w.Policies) == 0 {
		return
	}
	var rows [][]string
	for _, p := range w.Policies {
		rows = append(rows, policyRows(p)...)
	}
	a.Printf("\n")
	output.Table(a.Out, []string{"POLICY", "ACTION", "RESULT", "RULE", "WHY NOT"}, rows)
}

// policyRows is a row for the policy, or one for each of its rules that does not match.
func policyRows(p why.Policy) [][]string {
	action := p.Action
	if p.DryRun {
		action += " (dry run)"
	}
	result := "no match"
	switch {
	case p.Decided:
		result = "decided"
	case p.Matched:
		result = "match"
	}
	if p.Matched {
		return [][]string{{p.Policy, action, result, strconv.Itoa(p.Rule), ""}}
	}
	if len(p.Misses) == 0 {
		return [][]string{{p.Policy, action, result, "", map[string]string{"Allow": "it has no rules: it allows nothing", "Deny": "it has no rules: it denies nothing"}[p.Action]}}
	}
	var rows [][]string
	for _, m := range p.Misses {
		rows = append(rows, []string{p.Policy, action, result, strconv.Itoa(m.Rule), missText(m)})
	}
	if p.More > 0 {
		rows = append(rows, []string{p.Policy, action, result, "", fmt.Sprintf("and %d more rules", p.More)})
	}
	return rows
}

// missText says what a rule wanted. Matches of a clause are alternatives.
func missText(m why.Miss) string {
	var parts []string
	for _, f := range m.Fields {
		if f.Field == "none" {
			parts = append(parts, "a match without conditions never holds")
			continue
		}
		want := strings.Join(f.Want, ", ")
		if f.More > 0 {
			want += fmt.Sprintf(" and %d more", f.More)
		}
		verb := "is not"
		if strings.HasPrefix(f.Field, "not") {
			verb = "is"
		}
		parts = append(parts, fmt.Sprintf("%s: %s %s %s", f.Field, cmp.Or(f.Have, "nothing"), verb, want))
	}
	if m.More > 0 {
		parts = append(parts, fmt.Sprintf("%d more", m.More))
	}
	return strings.Join(parts, "; ")
}

// sameVerdict compares what is told of two workloads.
func sameVerdict(a, b why.Workload) bool {
	return a.Verdict == b.Verdict && a.Reason == b.Reason && a.Unenforced == b.Unenforced && slices.Equal(a.MissingPolicies, b.MissingPolicies) &&
		slices.EqualFunc(a.Policies, b.Policies, func(x, y why.Policy) bool {
			return x.Policy == y.Policy && x.Decided == y.Decided && slices.EqualFunc(policyRows(x), policyRows(y), slices.Equal[[]string])
		})
}

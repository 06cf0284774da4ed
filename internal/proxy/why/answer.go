package why

import (
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// The verdicts.
const (
	Allowed = "allowed"
	Denied  = "denied"
	Mixed   = "mixed" // some workloads behind the destination allow, others deny
	Nobody  = "nobody"
)

// Answer is what a Query is answered with, as JSON too.
type Answer struct {
	// Verdict is allowed, denied, mixed, or nobody: there is no workload behind the destination.
	Verdict     string      `json:"verdict"`
	Source      Source      `json:"source"`
	Destination Destination `json:"destination"`
	Notes       []string    `json:"notes,omitempty"`
	// Workloads are those that the connection can end at, each with its own verdict.
	Workloads []Workload `json:"workloads"`
	More      int        `json:"moreWorkloads,omitempty"` // that were not looked at
}

// Source is who connects, as policies see it.
type Source struct {
	Identity string `json:"identity,omitempty"` // empty without a tunnel
	Address  string `json:"address,omitempty"`  // empty when it is not known; policies about addresses then do not match
	Workload string `json:"workload,omitempty"` // uid
}

// Destination is where the connection goes.
type Destination struct {
	Asked   string `json:"asked"`
	Service string `json:"service,omitempty"` // namespace/hostname
}

// Workload is one workload's verdict.
type Workload struct {
	UID       string `json:"uid"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Address   string `json:"address"` // with the port of the application, which policies see
	Protocol  string `json:"protocol"`

	Verdict string `json:"verdict"`
	Reason  string `json:"reason"` // in the words of the access log
	Policy  string `json:"policy,omitempty"`
	Rule    int    `json:"rule"` // of Policy; -1 when no rule decided
	// Unenforced says why the policies have no effect, if they have none.
	Unenforced string `json:"unenforced,omitempty"`

	Policies []Policy `json:"policies,omitempty"` // in the order of judgement
	// MissingPolicies are those that the workload names and that are not known.
	MissingPolicies []string `json:"missingPolicies,omitempty"`
}

// Policy is what one policy says. One that is a dry run never decides.
type Policy struct {
	Policy  string `json:"policy"`
	Scope   string `json:"scope"`
	Action  string `json:"action"`
	DryRun  bool   `json:"dryRun,omitempty"`
	Matched bool   `json:"matched"`
	Rule    int    `json:"rule"` // the first that matches, or -1
	Decided bool   `json:"decided,omitempty"`
	Misses  []Miss `json:"misses,omitempty"` // why its rules do not match
	More    int    `json:"moreRules,omitempty"`
}

// Miss is why a rule does not match: the first of its clauses that does not hold, and of each match of that clause the
// first field that does not.
type Miss struct {
	Rule   int     `json:"rule"`
	Clause int     `json:"clause"`
	Fields []Field `json:"fields"`
	More   int     `json:"moreMatches,omitempty"`
}

// Field is a field that does not hold.
type Field struct {
	Field string   `json:"field"`
	Want  []string `json:"want,omitempty"` // for a field with "not", what must not be
	More  int      `json:"moreValues,omitempty"`
	Have  string   `json:"have"`
}

func newPolicy(v policy.Verdict) Policy {
	p := Policy{
		Policy: v.Policy.Key.String(), Scope: v.Policy.Scope.String(), Action: v.Policy.Action.String(), DryRun: v.Policy.DryRun,
		Matched: v.Matched, Rule: v.Rule, Decided: v.Decided, More: v.More,
	}
	for _, m := range v.Misses {
		miss := Miss{Rule: m.Rule, Clause: m.Clause, More: m.More}
		for _, f := range m.Matches {
			miss.Fields = append(miss.Fields, Field{Field: f.Field, Want: f.Want, More: f.More, Have: f.Have})
		}
		p.Misses = append(p.Misses, miss)
	}
	return p
}

func (s source) view() Source {
	v := Source{Identity: s.id.String()}
	if s.addr.IsValid() {
		v.Address = s.addr.String()
	}
	if s.w != nil {
		v.Workload = s.w.UID
	}
	return v
}

// conclude joins the workloads' verdicts.
func (a *Answer) conclude() {
	for _, w := range a.Workloads {
		switch {
		case a.Verdict == "":
			a.Verdict = w.Verdict
		case a.Verdict != w.Verdict:
			a.Verdict = Mixed
		}
	}
	if a.Verdict == "" {
		a.Verdict = Nobody
	}
}

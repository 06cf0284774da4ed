// Package check judges an installation: facts that were gathered from AWS, Kubernetes and ECS go in, and one result per
// thing looked at comes out, each with its cause and the exact command that puts it right. It is pure; the command line
// gathers the facts and prints the results.
package check

import (
	"fmt"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// State is how a check ended.
type State string

// The states of a result.
const (
	Passed  State = "passed"
	Warning State = "warning"
	Failed  State = "failed"
	Skipped State = "skipped" // it could not be judged, because something before it failed
)

// Result is one thing that was looked at.
type Result struct {
	ID       string    `json:"id"`
	Category string    `json:"category"`
	Title    string    `json:"title"`
	State    State     `json:"state"`
	Cause    string    `json:"cause,omitempty"`
	Fix      string    `json:"fix,omitempty"`
	Code     diag.Code `json:"code,omitempty"`
	See      string    `json:"see,omitempty"`
}

// DocBase is the page that explains every check; the anchor is its id.
const DocBase = "https://github.com/isthmus-mesh/isthmus/blob/main/docs/reference/checks.md"

// Check is one entry of the table of checks.
type Check struct {
	ID       string
	Category string
	// Looks says what is looked at and Why why it matters, for the reference page.
	Looks, Why string
	// needs names the checks without which this one means nothing.
	needs []string
	run   func(*Facts, *verdict)
}

// Categories are the parts of a report, in order.
func Categories() []string { return []string{"aws", "kubernetes", "istio", "isthmus", "ecs"} }

// verdict collects the results of one check.
type verdict struct {
	check   Check
	results []Result
}

func (v *verdict) add(state State, title, cause, fix string) {
	r := Result{ID: v.check.ID, Category: v.check.Category, Title: title, State: state, Cause: cause, Fix: fix}
	if state == Failed || state == Warning {
		r.See = DocBase + "#" + r.ID
	}
	v.results = append(v.results, r)
}

func (v *verdict) pass(format string, args ...any) {
	v.add(Passed, fmt.Sprintf(format, args...), "", "")
}

func (v *verdict) fail(title, cause, fix string) { v.add(Failed, title, cause, fix) }
func (v *verdict) warn(title, cause, fix string) { v.add(Warning, title, cause, fix) }

// error fails with an error, whose code and fix it takes over.
func (v *verdict) error(title string, err error) {
	v.add(Failed, title, err.Error(), "")
	r := &v.results[len(v.results)-1]
	if e, ok := coded(err); ok {
		r.Cause, r.Fix, r.Code = e.Cause, e.Fix, e.Code
	}
}

// Run judges the facts. The results are in the order of Checks.
func Run(f *Facts) []Result {
	var all []Result
	bad := map[string]bool{} // ids of checks that failed or were skipped
	for _, c := range Checks() {
		v := &verdict{check: c}
		if i := slices.IndexFunc(c.needs, func(id string) bool { return bad[id] }); i >= 0 {
			v.add(Skipped, c.Looks, "it depends on "+c.needs[i], "")
		} else {
			c.run(f, v)
		}
		for _, r := range v.results {
			if r.State == Failed || r.State == Skipped {
				bad[c.ID] = true
			}
		}
		all = append(all, v.results...)
	}
	return all
}

// Count counts the results in a state.
func Count(results []Result, s State) int {
	n := 0
	for _, r := range results {
		if r.State == s {
			n++
		}
	}
	return n
}

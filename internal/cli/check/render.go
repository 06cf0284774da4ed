package check

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Style is how a report looks.
type Style struct {
	Short bool // leave out what passed
	UTF8  bool
	// Paint colours a text; nil means no colour.
	Paint func(color, text string) string
}

// The colours of a report.
const (
	Green  = "32"
	Red    = "31"
	Yellow = "33"
	Dim    = "2"
)

// Write prints results for people. A duration of 0 is left out.
func Write(w io.Writer, results []Result, took time.Duration, style Style) {
	if style.Paint == nil {
		style.Paint = func(_, text string) string { return text }
	}
	for i, category := range Categories() {
		var lines strings.Builder
		for _, r := range results {
			if r.Category == category && !(style.Short && (r.State == Passed || r.State == Skipped)) {
				style.result(&lines, r)
			}
		}
		if lines.Len() == 0 {
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s\n%s\n%s", category, strings.Repeat("-", len(category)), lines.String())
	}
	fmt.Fprintf(w, "\n%s", Summary(results))
	if took > 0 {
		fmt.Fprintf(w, " in %.1fs", took.Seconds())
	}
	fmt.Fprintln(w)
}

// Summary says in one line how many checks ended how.
func Summary(results []Result) string {
	parts := []string{}
	count := func(s State, one, many string) {
		switch n := Count(results, s); n {
		case 0:
		case 1:
			parts = append(parts, "1 "+one)
		default:
			parts = append(parts, fmt.Sprintf("%d %s", n, many))
		}
	}
	count(Failed, "problem", "problems")
	count(Warning, "warning", "warnings")
	count(Passed, "passed", "passed")
	count(Skipped, "skipped", "skipped")
	return strings.Join(parts, ", ")
}

func (s Style) result(w io.Writer, r Result) {
	mark := map[State][3]string{
		Passed: {"✓", "ok  ", Green}, Warning: {"!", "warn", Yellow}, Failed: {"✗", "FAIL", Red}, Skipped: {"-", "skip", Dim},
	}[r.State]
	symbol := mark[1]
	if s.UTF8 {
		symbol = mark[0]
	}
	title := r.Title
	if r.State == Failed || r.State == Warning {
		id := r.ID
		if r.Code != "" {
			id += " " + string(r.Code)
		}
		title += s.Paint(Dim, "  ["+id+"]")
	}
	fmt.Fprintf(w, "%s %s\n", s.Paint(mark[2], symbol), title)
	if r.State == Passed || r.State == Skipped && s.Short {
		return
	}
	detail(w, "", r.Cause)
	detail(w, "fix: ", r.Fix)
	detail(w, "see: ", r.See)
}

func detail(w io.Writer, label, text string) {
	if text == "" {
		return
	}
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i > 0 {
			label = strings.Repeat(" ", len(label))
		}
		fmt.Fprintf(w, "    %s%s\n", label, line)
	}
}

// Markdown returns the reference page of every check.
func Markdown() []byte {
	var b strings.Builder
	b.WriteString("# Checks\n\n`isthmus check` looks at an installation from the AWS account to the single task. This page is made from the table in\n" +
		"`internal/cli/check` (`UPDATE=1 go test ./internal/cli/check`); do not edit by hand.\n\n" +
		"Each result has a state: passed, warning, failed, or skipped when something before it failed. The exit code is 3 if\nanything failed. Every failure names its cause and the command that puts it right.\n")
	for _, category := range Categories() {
		fmt.Fprintf(&b, "\n## %s\n", category)
		for _, c := range Checks() {
			if c.Category != category {
				continue
			}
			fmt.Fprintf(&b, "\n### %s\n\nLooks at: %s.\n\n%s\n", c.ID, c.Looks, c.Why)
			if len(c.needs) > 0 {
				fmt.Fprintf(&b, "\nSkipped when one of these failed: %s.\n", strings.Join(c.needs, ", "))
			}
		}
	}
	return []byte(b.String())
}

// Package scenario runs the guide's scenarios: steps are data (a command as a user would type it and what must come of
// it), and the runner executes them in order, shows each command with its output, and stops at the first surprise.
package scenario

import (
	"embed"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

//go:embed scenario-*.yaml
var files embed.FS

// Scenario is one guide as steps.
type Scenario struct {
	Title string `json:"title"`
	Steps []Step `json:"steps"`
}

// Step is one command of the guide.
type Step struct {
	// Guide is the number of the guide's step, such as "3.1".
	Guide string `json:"guide"`
	// Title says what the step does.
	Title string `json:"title"`
	// Run is the command, executed by bash with pipefail.
	Run string `json:"run"`
	// Expect is what must come of it; without it the command must exit with 0.
	Expect Expect `json:"expect"`
	// Within repeats the command until the expectation holds, for at most this long; empty means one try.
	Within string `json:"within,omitempty"`
	// Quiet hides the output of a command that went as expected.
	Quiet bool `json:"quiet,omitempty"`
}

// Expect is what a command must do. Output is standard output and standard error together.
type Expect struct {
	// Exit is the wanted exit code.
	Exit int `json:"exit,omitempty"`
	// Contains are texts that the output must have.
	Contains []string `json:"contains,omitempty"`
	// Lacks are texts that the output must not have.
	Lacks []string `json:"lacks,omitempty"`
	// Count maps a regular expression to the number of lines that must match it.
	Count map[string]int `json:"count,omitempty"`
}

// maxWithin bounds how long one step may repeat.
const maxWithin = 5 * time.Minute

// Load returns the scenario with a number, validated.
func Load(number string) (Scenario, error) {
	b, err := files.ReadFile("scenario-" + number + ".yaml")
	if err != nil {
		return Scenario{}, fmt.Errorf("no scenario %q; there are: %s", number, strings.Join(Numbers(), ", "))
	}
	return parse(b)
}

// Numbers returns the scenarios there are.
func Numbers() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimSuffix(strings.TrimPrefix(e.Name(), "scenario-"), ".yaml"))
	}
	return out
}

func parse(b []byte) (Scenario, error) {
	var s Scenario
	if err := yaml.UnmarshalStrict(b, &s); err != nil {
		return Scenario{}, fmt.Errorf("read scenario: %w", err)
	}
	var errs []error
	for i, st := range s.Steps {
		if st.Guide == "" || st.Title == "" || st.Run == "" {
			errs = append(errs, fmt.Errorf("step %d: guide, title and run are required", i+1))
		}
		if _, err := st.within(); err != nil {
			errs = append(errs, fmt.Errorf("step %d: within: %w", i+1, err))
		}
		for re := range st.Expect.Count {
			if _, err := regexp.Compile(re); err != nil {
				errs = append(errs, fmt.Errorf("step %d: count: %w", i+1, err))
			}
		}
	}
	return s, errors.Join(errs...)
}

func (s Step) within() (time.Duration, error) {
	if s.Within == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s.Within)
	if err == nil && (d <= 0 || d > maxWithin) {
		err = fmt.Errorf("%s is not in (0, %s]", d, maxWithin)
	}
	return d, err
}

// Check compares the outcome of a command with e and returns every difference.
func (e Expect) Check(exit int, out string) error {
	var errs []error
	if exit != e.Exit {
		errs = append(errs, fmt.Errorf("exit code %d, want %d", exit, e.Exit))
	}
	for _, want := range e.Contains {
		if !strings.Contains(out, want) {
			errs = append(errs, fmt.Errorf("output lacks %q", want))
		}
	}
	for _, bad := range e.Lacks {
		if strings.Contains(out, bad) {
			errs = append(errs, fmt.Errorf("output has %q", bad))
		}
	}
	for re, want := range e.Count {
		got := 0
		for line := range strings.Lines(out) {
			if regexp.MustCompile(re).MatchString(strings.TrimRight(line, "\r\n")) {
				got++
			}
		}
		if got != want {
			errs = append(errs, fmt.Errorf("%d lines match %q, want %d", got, re, want))
		}
	}
	return errors.Join(errs...)
}

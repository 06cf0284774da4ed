package scenario

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryScenarioLoads(t *testing.T) {
	if len(Numbers()) == 0 {
		t.Fatal("no scenarios embedded")
	}
	for _, n := range Numbers() {
		s, err := Load(n)
		if err != nil || len(s.Steps) == 0 {
			t.Errorf("Load(%s) = %d steps, %v", n, len(s.Steps), err)
		}
	}
	if _, err := Load("99"); err == nil || !strings.Contains(err.Error(), "there are: ") {
		t.Errorf("Load(99) = %v, want an error that lists the scenarios", err)
	}
}

func run(t *testing.T, dir string, steps ...Step) (string, []Timing, error) {
	t.Helper()
	var out bytes.Buffer
	timings, err := Run(t.Context(), Scenario{Steps: steps}, Options{Env: os.Environ(), Dir: dir, Out: &out})
	return out.String(), timings, err
}

func TestRunShowsCommandAndStopsAtTheFirstDifference(t *testing.T) {
	out, timings, err := run(t, t.TempDir(),
		Step{Guide: "1", Title: "fine", Run: "echo hello"},
		Step{Guide: "2", Title: "differs", Run: "echo one; exit 3", Expect: Expect{Exit: 3, Contains: []string{"two"}}},
		Step{Guide: "3", Title: "never", Run: "echo never"})
	var f *Failure
	if !errors.As(err, &f) || f.Step.Guide != "2" || !strings.Contains(err.Error(), `lacks "two"`) {
		t.Errorf("Run = %v, want a failure of step 2", err)
	}
	if len(timings) != 2 || !strings.Contains(out, "== Step 1: fine\n$ echo hello\nhello\n") || strings.Contains(out, "never") {
		t.Errorf("Run showed\n%s", out)
	}
}

func TestStepWaitsForItsCondition(t *testing.T) {
	dir := t.TempDir()
	_, timings, err := run(t, dir, Step{Guide: "1", Title: "third time", Within: "1m",
		Run: "echo x >> tries; wc -l < tries", Expect: Expect{Contains: []string{"3"}}})
	if err != nil || timings[0].Tries != 3 {
		t.Errorf("Run = %v after %+v, want 3 tries", err, timings)
	}
	if _, err := os.Stat(filepath.Join(dir, "tries")); err != nil {
		t.Error(err)
	}
}

func TestExpect(t *testing.T) {
	for _, c := range []struct {
		name string
		e    Expect
		exit int
		out  string
		ok   bool
	}{
		{"default", Expect{}, 0, "", true},
		{"exit", Expect{}, 1, "", false},
		{"lacks", Expect{Lacks: []string{"bad"}}, 0, "bad", false},
		{"count", Expect{Count: map[string]int{`^\[PASS\]`: 2}}, 0, "[PASS] a\n[FAIL] b\n[PASS] c\n", true},
		{"count differs", Expect{Count: map[string]int{`^\[PASS\]`: 2}}, 0, "[PASS] a\n", false},
	} {
		if err := c.e.Check(c.exit, c.out); (err == nil) != c.ok {
			t.Errorf("%s: Check = %v, want ok %v", c.name, err, c.ok)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"title: x\nsteps: [{guide: '1', title: t}]",
		"title: x\nsteps: [{guide: '1', title: t, run: r, within: 9h}]",
		"title: x\nsteps: [{guide: '1', title: t, run: r, expect: {count: {'(': 1}}}]",
		"title: x\nunknown: 1",
	} {
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("parse(%q) succeeded", text)
		}
	}
}

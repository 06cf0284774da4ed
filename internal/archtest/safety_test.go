package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const safetyPage = "../../docs/architecture/deletion-safety.md"

var quoted = regexp.MustCompile("`([^`]+)`")

// TestDeletionSafetyTable checks docs/architecture/deletion-safety.md: each rule of the planner has one row, in the order
// in which they are asked, with what it protects and tests that exist, one of which is about that very rule.
func TestDeletionSafetyTable(t *testing.T) {
	code, err := os.ReadFile(filepath.Join("..", "plan", "rules.go"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(safetyPage)
	if err != nil {
		t.Fatal(err)
	}
	type rule struct{ constant, name string }
	var rules []rule
	for _, m := range regexp.MustCompile(`(?m)^\t(Rule\w+) +Rule = "([a-z-]+)"$`).FindAllStringSubmatch(string(code), -1) {
		rules = append(rules, rule{m[1], m[2]})
	}
	if len(rules) < 10 {
		t.Fatalf("only %d rules were found: has their form changed?", len(rules))
	}
	for i, line := range strings.Split(string(text), "\n") {
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			if strings.Contains(m[1], ".Test") && !testExists(t, m[1]) {
				t.Errorf("line %d: there is no test %s", i+1, m[1])
			}
		}
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Rule |") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		for n, c := range cells {
			if strings.TrimSpace(c) == "" {
				t.Errorf("line %d: cell %d is empty", i+1, n+1)
			}
		}
		tests := quoted.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(tests) == 0 {
			t.Errorf("line %d names no test", i+1)
		}
		name, ok := strings.CutPrefix(strings.TrimSpace(cells[0]), "`")
		if !ok {
			continue // not a rule of the planner
		}
		name = strings.TrimSuffix(name, "`")
		if len(rules) == 0 || rules[0].name != name {
			t.Errorf("line %d: rule %q is not the next in rules.go, where these are left: %v", i+1, name, rules)
			continue
		}
		if len(cells) != 5 {
			t.Errorf("line %d has %d cells, want 5", i+1, len(cells))
		}
		about := regexp.MustCompile(`\b` + rules[0].constant + `\b`)
		found := false
		for _, m := range tests {
			found = found || about.MatchString(bodyOf(t, m[1]))
		}
		if !found {
			t.Errorf("line %d: none of the tests mentions %s", i+1, rules[0].constant)
		}
		rules = rules[1:]
	}
	if len(rules) > 0 {
		t.Errorf("rules without a row: %v", rules)
	}
}

// bodyOf returns the text of "package.TestName", or "".
func bodyOf(t *testing.T, name string) string {
	t.Helper()
	pkg, fn, _ := strings.Cut(name, ".")
	files, err := filepath.Glob(filepath.Join("..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, body, ok := strings.Cut(string(text), "\nfunc "+fn+"("); ok {
			body, _, _ = strings.Cut(body, "\nfunc ")
			return body
		}
	}
	return ""
}

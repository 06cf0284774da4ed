package archtest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const compatPage = "../../docs/reference/ztunnel-compatibility.md"

// TestCompatibilityTable checks docs/reference/ztunnel-compatibility.md: no cell is empty, every row names a test, and
// every file and test that it names exists.
func TestCompatibilityTable(t *testing.T) {
	text, err := os.ReadFile(compatPage)
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`]+)`")
	rows := 0
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| Behaviour |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "|"), " | ")
		if len(cells) != 4 {
			t.Errorf("line %d has %d cells, want 4", i+1, len(cells))
			continue
		}
		for n, c := range cells {
			if strings.TrimSpace(c) == "" {
				t.Errorf("line %d: cell %d is empty", i+1, n+1)
			}
		}
		for _, m := range code.FindAllStringSubmatch(cells[1], -1) {
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("line %d: there is no internal/%s", i+1, m[1])
			}
		}
		tests := code.FindAllStringSubmatch(cells[2], -1)
		for _, m := range tests {
			if !testExists(t, m[1]) {
				t.Errorf("line %d: there is no test %s", i+1, m[1])
			}
		}
		if len(tests) == 0 {
			t.Errorf("line %d has no test", i+1)
		}
		for _, m := range code.FindAllStringSubmatch(cells[3], -1) {
			if strings.Contains(m[1], ".Test") && !testExists(t, m[1]) {
				t.Errorf("line %d: there is no test %s", i+1, m[1])
			}
		}
	}
	if rows < 100 {
		t.Errorf("only %d rows were found: has the form of the table changed?", rows)
	}
}

// TestArchitectureNamesTests: a test that a page of the architecture names exists.
func TestArchitectureNamesTests(t *testing.T) {
	pages, err := filepath.Glob("../../docs/architecture/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`([a-z0-9]+\\.Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1) {
			if !testExists(t, m[1]) {
				t.Errorf("%s: there is no test %s", filepath.Base(page), m[1])
			}
		}
	}
}

// testExists looks for "package.TestName" below internal/ and lab/.
func testExists(t *testing.T, name string) bool {
	t.Helper()
	pkg, fn, ok := strings.Cut(name, ".Test")
	if !ok {
		return false
	}
	var files []string
	for _, dir := range []string{"..", "../identity", "../../lab"} {
		some, err := filepath.Glob(filepath.Join(dir, pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, some...)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc Test"+fn+"(t *testing.T)") {
			return true
		}
	}
	return false
}

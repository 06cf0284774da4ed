package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// sources returns the text of all Go files of the two modules; tests among them or not.
func sources(t *testing.T, tests bool) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, root := range []string{"../../internal", "../../cmd", "../../lab"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") != tests {
				return err
			}
			text, err := os.ReadFile(path)
			all[path] = string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

var (
	codeConstant  = regexp.MustCompile(`\t(\w+)\s+Code = "(IST[0-9]+)"`)
	codeReference = regexp.MustCompile(`diag\.(\w+)\b`)
)

// TestEveryCodeIsGiven: a code that nothing reports is a promise of the reference that nobody keeps.
func TestEveryCodeIsGiven(t *testing.T) {
	given := map[string]bool{}
	for _, text := range sources(t, false) {
		for _, m := range codeReference.FindAllStringSubmatch(text, -1) {
			given[m[1]] = true
		}
	}
	text, err := os.ReadFile("../diag/catalogue.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := codeConstant.FindAllStringSubmatch(string(text), -1)
	if len(constants) < 50 {
		t.Fatalf("%d codes found", len(constants))
	}
	for _, m := range constants {
		if !given[m[1]] {
			t.Errorf("%s (%s) is in the catalogue and nothing reports it", m[2], m[1])
		}
	}
}

package broker

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEveryRefusalIsTested reads the source: each code with which a request can be refused is asserted by a test of this
// package, is in the table of the package comment, and has an entry in the reference. That refusals are counted and
// logged without secrets, TestAttacks and TestMalformedRequests assert of each.
func TestEveryRefusalIsTested(t *testing.T) {
	read := func(paths ...string) (text string) {
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text += string(b)
		}
		return text
	}
	tests := read("attacks_test.go", "broker_test.go", "replicas_test.go", "webidentity_test.go")
	catalogue := read("../diag/catalogue.go")
	reference := read("../../docs/reference/errors.md")
	names := regexp.MustCompile(`refuse\([^,]+, diag\.(\w+)`).FindAllStringSubmatch(read("handler.go", "webidentity.go"), -1)
	if len(names) < 40 {
		t.Fatalf("%d refusals found", len(names))
	}
	for _, m := range names {
		name := m[1]
		if !regexp.MustCompile(`diag\.` + name + `\b`).MatchString(tests) {
			t.Errorf("no test asserts %s", name)
		}
		code := regexp.MustCompile(`\t` + name + `\s+Code = "(IST[0-9]+)"`).FindStringSubmatch(catalogue)
		if code == nil || !strings.Contains(reference, "### "+code[1]+"\n") {
			t.Errorf("%s has no entry in the reference", name)
		}
	}
}

package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// traps are the places where an integration with ECS goes wrong. Each has tests whose names begin with TestTrap and its
// number, in the package where one would fall into it: `grep -rn 'func TestTrap'` is the list.
var traps = map[int]string{
	1:  "pages of 10 where 100 are expected: ListServices, DescribeServices, DescribeTasks",
	2:  "a throttled, partial, denied or empty answer that deletes",
	3:  "an older version after a newer one; events doubled and out of order; two names of a network interface",
	4:  "a task that vanishes from the list while it still runs",
	5:  "a task whose health is UNKNOWN because its application has no health check",
	6:  "an INACTIVE service or cluster of the same name; revisions that change",
	7:  "a task role that RunTask overrides",
	8:  "the role's path that STS drops; the same role in two clusters",
	9:  "proofs for another audience, of another key, old, replayed, of persons and of stopped tasks",
	10: "a task that asks for its identity before discovery has seen it",
	11: "a token that outlives the Secret to which it is bound",
	12: "a token file that ends with a newline",
	13: "enrolment that is not idempotent, loses fields or tags, or makes what ECS cannot run",
	14: "requests for credentials that go through the mesh",
	15: "a denial behind SOCKS, which has said that the connection stands",
	16: "ECS Exec with the official plugin",
	17: "partitions: China and GovCloud",
	18: "a role's trust that lacks sts:TagSession",
}

// TestEveryTrapHasATest fails when a trap has no test, and when a test names a trap that there is none of.
func TestEveryTrapHasATest(t *testing.T) {
	name := regexp.MustCompile(`(?m)^func TestTrap([0-9]+)[A-Z]\w*\(t \*testing\.T\)`)
	found := map[int]int{}
	for _, root := range []string{"..", filepath.Join("..", "..", "lab")} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range name.FindAllStringSubmatch(string(text), -1) {
				n, err := strconv.Atoi(m[1])
				if err != nil || traps[n] == "" {
					t.Errorf("%s: TestTrap%s is about no trap", path, m[1])
				}
				found[n]++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for n, what := range traps {
		if found[n] == 0 {
			t.Errorf("trap %d has no test: %s", n, what)
		}
	}
}

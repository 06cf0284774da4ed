package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

func TestReferencePageIsFresh(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "reference", "cli.md")
	got := Reference()
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil { //nolint:gosec // a page for everybody
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with UPDATE=1)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is stale, make it again with UPDATE=1 (-want +got):\n%s", path, diff)
	}
}

// Every command says what it does and shows how it is called.
func TestEveryCommandIsDocumented(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Runnable() && c.Example == "" && !c.HasSubCommands() && c.Name() != "exit-codes" {
			t.Errorf("%s has no short text or no example", c.CommandPath())
		}
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(newApp(nil, nil, nil, nil).root())
}

func TestShellJoin(t *testing.T) {
	for _, c := range []struct {
		words []string
		want  string
	}{
		{[]string{"curl", "-sS", "http://a.b:80/x"}, "curl -sS http://a.b:80/x"},
		{[]string{"sh", "-c", "echo 'a b'"}, `sh -c 'echo '"'"'a b'"'"''`},
		{[]string{"x", "", "$HOME", "a*"}, "x '' '$HOME' 'a*'"},
	} {
		if got := shellJoin(c.words); got != c.want {
			t.Errorf("shellJoin(%q) = %s, want %s", c.words, got, c.want)
		}
	}
}

func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		raw      string
		known    int
		ok       bool
		wantText string
		wantCode int
		wantErr  bool
	}{
		{"hello\r\n\r\nisthmus-exit:3\r\n", 0, false, "hello", 3, false}, // AWS: the marker tells
		{"hello\r\n\r\nisthmus-exit:3\r\n", 4, true, "hello", 4, false},  // the channel's word wins
		{"no shell here\r\n", 127, true, "no shell here", 127, false},
		{"cut off", 0, false, "cut off", 0, true},
		{"\r\nisthmus-exit:0\r\n", 0, false, "", 0, false},
	} {
		text, code, err := outcome(c.raw, c.known, c.ok)
		if text != c.wantText || code != c.wantCode || (err != nil) != c.wantErr {
			t.Errorf("outcome(%q, %d, %v) = %q, %d, %v, want %q, %d", c.raw, c.known, c.ok, text, code, err, c.wantText, c.wantCode)
		}
	}
}

package output

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var b bytes.Buffer
	Table(&b, []string{"NAME", "ADDRESS", ""}, [][]string{{"echo-service", "10.0.0.1", ""}, {"ä", "10.0.0.22", "x"}})
	want := "NAME          ADDRESS\necho-service  10.0.0.1\nä             10.0.0.22  x\n"
	if b.String() != want {
		t.Errorf("Table wrote\n%s\nwant\n%s", b.String(), want)
	}
}

func TestStepSaysHowItEnded(t *testing.T) {
	var errw bytes.Buffer
	s := New(nil, &bytes.Buffer{}, &errw, []string{"LANG=C"})
	fail := errors.New("no")
	if err := s.Step("one", func() error { return nil }); err != nil {
		t.Error(err)
	}
	if err := s.Step("two", func() error { return fail }); !errors.Is(err, fail) {
		t.Errorf("Step = %v, want %v", err, fail)
	}
	lines := strings.Split(strings.TrimSpace(errw.String()), "\n")
	if len(lines) != 2 || !strings.HasPrefix(strings.TrimSpace(lines[0]), "ok one (") || !strings.HasPrefix(strings.TrimSpace(lines[1]), "FAIL two (") {
		t.Errorf("Step wrote %q", errw.String())
	}
}

func TestColour(t *testing.T) {
	for _, c := range []struct {
		env  []string
		want bool
	}{
		{nil, false},
		{[]string{"CLICOLOR_FORCE=1"}, true},
		{[]string{"CLICOLOR_FORCE=1", "NO_COLOR=1"}, false},
	} {
		if s := New(nil, &bytes.Buffer{}, &bytes.Buffer{}, c.env); s.Color != c.want {
			t.Errorf("New with %v: Color = %v, want %v", c.env, s.Color, c.want)
		}
	}
}

func TestEncode(t *testing.T) {
	var b bytes.Buffer
	if err := Encode(&b, "yaml", map[string]int{"a": 1}); err != nil || b.String() != "a: 1\n" {
		t.Errorf("Encode yaml = %q, %v", b.String(), err)
	}
	if err := Encode(&b, "toml", nil); err == nil {
		t.Error("Encode of an unknown format succeeded")
	}
}

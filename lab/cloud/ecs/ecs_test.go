package ecs

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplitCommand(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line string
		want []string
	}{
		{"/bin/sh", []string{"/bin/sh"}},
		{"  a   b\tc ", []string{"a", "b", "c"}},
		{`sh -c 'curl -s "http://x"'`, []string{"sh", "-c", `curl -s "http://x"`}},
		{`sh -c "echo \"hi\" \$x \n"`, []string{"sh", "-c", `echo "hi" $x \n`}},
		{`a''b "" c\ d`, []string{"ab", "", "c d"}},
		{`'a'"b"c`, []string{"abc"}},
		{"", nil},
	} {
		got, err := splitCommand(c.line)
		if err != nil {
			t.Errorf("splitCommand(%q): %v", c.line, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("splitCommand(%q) (-want +got):\n%s", c.line, diff)
		}
	}
	for _, line := range []string{`'a`, `"a`, `a\`} {
		if got, err := splitCommand(line); err == nil {
			t.Errorf("splitCommand(%q) = %q, want an error", line, got)
		}
	}
}

func TestHealthOfTask(t *testing.T) {
	t.Parallel()
	no := false
	def := func(check, essential bool) *containerDef {
		d := &containerDef{}
		if check {
			d.HealthCheck = &healthCheck{Command: []string{"CMD", "x"}}
		}
		if !essential {
			d.Essential = &no
		}
		return d
	}
	for _, c := range []struct {
		name       string
		containers []*container
		want       string
		serving    bool
	}{
		{"no check", []*container{{def: def(false, true), health: healthUnknown}}, healthUnknown, true},
		{"healthy", []*container{{def: def(true, true), health: healthHealthy}}, healthHealthy, true},
		{"waiting", []*container{{def: def(true, true), health: healthUnknown}}, healthUnknown, false},
		{"one without", []*container{{def: def(true, true), health: healthHealthy}, {def: def(false, true), health: healthUnknown}}, healthUnknown, true},
		{"unhealthy wins", []*container{{def: def(true, true), health: healthUnhealthy}, {def: def(false, true), health: healthUnknown}}, healthUnhealthy, false},
		{"helper does not count", []*container{{def: def(true, true), health: healthHealthy}, {def: def(true, false), health: healthUnhealthy}}, healthHealthy, true},
	} {
		task := &task{last: stateRunning, desired: stateRunning, containers: c.containers}
		if got := task.healthStatus(); got != c.want {
			t.Errorf("%s: healthStatus() = %s, want %s", c.name, got, c.want)
		}
		if got := task.serving(); got != c.serving {
			t.Errorf("%s: serving() = %v, want %v", c.name, got, c.serving)
		}
	}
}

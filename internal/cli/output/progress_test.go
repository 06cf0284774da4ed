package output

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A log gets a line when something changed, and now and then when nothing did; what is quick leaves no line.
func TestProgressInALog(t *testing.T) {
	var out bytes.Buffer
	at := time.Unix(0, 0)
	p := &progress{s: &Streams{Err: &out}, title: "web", start: at, now: func() time.Time { return at }}
	for _, step := range []struct {
		after time.Duration
		state string
	}{
		{1900 * time.Millisecond, "0 of 2"}, {200 * time.Millisecond, "0 of 2"}, {time.Second, "1 of 2"}, {4 * time.Second, "1 of 2"}, {6 * time.Second, "1 of 2"}, {31 * time.Second, "1 of 2"},
	} {
		at = at.Add(step.after)
		p.say(step.state)
	}
	want := " - web (2.1s) 0 of 2\n - web (7.1s) 1 of 2\n - web (44.1s) 1 of 2\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A terminal has one line, redrawn, which never wraps.
func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	s := &Streams{Err: &out, TTY: true}
	at := time.Unix(0, 0)
	p := &progress{s: s, title: "web", start: at, now: func() time.Time { return at }}
	p.say("too early")
	at = at.Add(3 * time.Second)
	p.say(strings.Repeat("x", 200))
	if got := out.String(); strings.Contains(got, "early") || strings.Contains(got, "\n") || !strings.HasPrefix(got, "\r\x1b[K - web (3.0s) xxx") || len(got) > 130 {
		t.Errorf("terminal got %q", got)
	}
	out.Reset()
	_ = s.Follow("quick", func(say func(string)) error { say("no"); return nil })
	if got := out.String(); !strings.HasSuffix(got, " ok quick (0.0s)\n") || strings.Contains(got, "no") {
		t.Errorf("a quick step wrote %q", got)
	}
}

// What has a result of its own says nothing while it is quick, tells after two seconds that it is under way, and leaves
// nothing on a terminal.
func TestPatiently(t *testing.T) {
	failed := errors.New("failed")
	for _, tt := range []struct {
		name string
		tty  bool
		took time.Duration
		want string
	}{
		{"quick", false, 1900 * time.Millisecond, ""},
		{"slow", false, 10 * time.Second, " - reading (2.0s) ...\n"},
		{"very slow", false, 40 * time.Second, " - reading (2.0s) ...\n - reading (32.0s) ...\n"},
		{"quick on a terminal", true, 1900 * time.Millisecond, ""},
		{"slow on a terminal", true, 2500 * time.Millisecond, "\r\x1b[K - reading (2.0s) ...\r\x1b[K"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				err := (&Streams{Err: &out, TTY: tt.tty}).Patiently("reading", func() error { time.Sleep(tt.took + time.Millisecond); return failed }) // virtual
				if !errors.Is(err, failed) || out.String() != tt.want {
					t.Errorf("%v, wrote %q, want %q", err, out.String(), tt.want)
				}
			})
		})
	}
}

func TestNearest(t *testing.T) {
	words := []string{"--dry-run", "--output", "--wait", "--all"}
	for word, want := range map[string]string{"--dry-rnu": "--dry-run", "--dryrun": "--dry-run", "--outptu": "--output", "--out": "--output", "--wiat": "--wait", "--frobnicate": "", "--": "", "--a": "--all"} {
		if got := Nearest(word, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

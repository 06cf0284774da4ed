package runtime_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// syncBuffer is a buffer that one goroutine writes and another watches.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *syncBuffer) waitFor(t *testing.T, text string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(deadline); !strings.Contains(s.String(), text); <-tick.C {
		if time.Now().After(until) {
			t.Fatalf("waited for %q, have %q", text, s.String())
		}
	}
}

// followUntil reads the container's log until a line has text.
func followUntil(t *testing.T, c *runtime.Container, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	r, w := io.Pipe()
	defer r.Close()
	go func() { _ = w.CloseWithError(c.Logs(ctx, runtime.LogOptions{Follow: true, Tail: -1}, w)) }()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	t.Fatalf("container %s never said %q", c.Name(), text)
}

func TestLogFormatAndSelection(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "logs"})
	path := filepath.Join(t.TempDir(), "0.log")
	c := start(t, s, runtime.ContainerSpec{ID: "logs", LogPath: path, Entrypoint: []string{"/bin/sh", "-c", "echo one; echo two >&2; sleep 0.1; printf three"}})
	wait(t, c)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const stamp = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`
	for _, line := range []string{"stdout F one", "stderr F two", "stdout F three"} {
		if !regexp.MustCompile(`(?m)^` + stamp + " " + line + "$").Match(raw) {
			t.Errorf("the log has no entry %q:\n%s", line, raw)
		}
	}
	if got := logs(t, c, runtime.LogOptions{Tail: 1}); got != "three\n" {
		t.Errorf("Tail 1 = %q", got)
	}
	if got := logs(t, c, runtime.LogOptions{Tail: 0}); got != "" {
		t.Errorf("Tail 0 = %q", got)
	}
	if got := logs(t, c, runtime.LogOptions{Tail: -1, Since: c.StartedAt().Add(time.Hour)}); got != "" {
		t.Errorf("Since the future = %q", got)
	}
	if got := logs(t, c, runtime.LogOptions{Tail: 1, Timestamps: true}); !regexp.MustCompile(`^` + stamp + ` three\n$`).MatchString(got) {
		t.Errorf("with timestamps = %q", got)
	}
	if err := c.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the log of a removed container is still there")
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "follow"})
	c := sh(t, s, "follow", "echo ready; while ! test -e /tmp/in; do sleep 0.02; done; echo done")
	out := &syncBuffer{}
	ended := make(chan error, 1)
	go func() { ended <- c.Logs(t.Context(), runtime.LogOptions{Follow: true, Tail: -1}, out) }()
	out.waitFor(t, "ready\n")
	run(t, c, "touch", "/tmp/in") // the container may end before this command has
	out.waitFor(t, "done\n")
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(deadline):
		t.Fatal("Logs did not end with the container")
	}
	ctx, cancel := context.WithCancel(t.Context())
	other := sh(t, s, "other", "sleep 1000")
	go func() { ended <- other.Logs(ctx, runtime.LogOptions{Follow: true}, io.Discard) }()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Logs with a cancelled context = %v, want nil", err)
	}
}

func TestLongLinesAndRotation(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "long"})
	path := filepath.Join(t.TempDir(), "long.log")
	// 24 MB of output in lines of 100,000 bytes: the log turns over, a follower misses nothing of what it sees.
	c := start(t, s, runtime.ContainerSpec{ID: "long", LogPath: path, Entrypoint: []string{"/bin/sh", "-c",
		`line=$(head -c 100000 /dev/zero | tr '\0' x); i=0; while [ $i -lt 240 ]; do echo "$i $line"; i=$((i+1)); done`}})
	wait(t, c)
	for _, p := range []string{path, path + ".1"} {
		st, err := os.Stat(p)
		if err != nil || st.Size() > 10<<20 {
			t.Errorf("%s: %v, want at most 10 MiB", p, err)
		}
	}
	lines := strings.Split(strings.TrimSpace(logs(t, c, runtime.LogOptions{Tail: -1})), "\n")
	last := lines[len(lines)-1]
	if number, rest, _ := strings.Cut(last, " "); number != "239" || len(rest) != 100_000 {
		t.Errorf("last line begins %.20q and has %d bytes", last, len(last))
	}
	for i := 2; i < len(lines); i++ {
		a, _, _ := strings.Cut(lines[i-1], " ")
		b, _, _ := strings.Cut(lines[i], " ")
		if x, y := atoi(a), atoi(b); y != x+1 {
			t.Fatalf("after line %q comes %q", a, b)
		}
	}
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return -1
	}
	return n
}

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// caller calls a host from inside a task, about ten times a second, each time over a new connection, and keeps the
// outcome of every call. It goes on when the AWS endpoint, through which it is started, does not.
type caller struct {
	w    *world
	task types.Task
	dir  string
}

// call is one call of a caller.
type call struct {
	at     time.Time // when it began
	code   int       // curl's exit code
	detail string    // HTTP status and curl's message
	phase  string    // set by reportCalls
}

func (c call) failed() bool { return c.code != 0 || !strings.HasPrefix(c.detail, "200") }

func (w *world) startCaller(t *testing.T, task types.Task, host string) *caller {
	t.Helper()
	c := &caller{w: w, task: task, dir: "/tmp/caller-" + strconv.FormatInt(time.Now().UnixNano(), 36)}
	w.mustExec(t, task, fmt.Sprintf(`mkdir %[1]s && cat > %[1]s/run <<'END'
cd %[1]s
while [ ! -e stop ]; do
  at=$(date +%%s.%%N)
  out=$(curl -sS -o /dev/null --max-time 20 -w '%%{http_code} ' http://%[2]s 2>&1)
  echo "$at $? "$out >> calls
  sleep 0.08
done
touch ended
END
trap '' HUP # which comes when this session ends
setsid sh %[1]s/run < /dev/null > /dev/null 2>&1 &
`, c.dir, host))
	c.awaitCalls(t, 5)
	return c
}

// awaitCalls waits until n more calls have ended.
func (c *caller) awaitCalls(t *testing.T, n int) {
	t.Helper()
	first := len(c.calls(t))
	await(t, long, "the caller has made "+strconv.Itoa(n)+" more calls", func() (bool, string) {
		now := len(c.calls(t))
		return now >= first+n, fmt.Sprintf("%d calls", now-first)
	})
}

// calls returns the calls so far.
func (c *caller) calls(t *testing.T) []call {
	t.Helper()
	var all []call
	for line := range strings.Lines(c.w.mustExec(t, c.task, "cat "+c.dir+"/calls 2>/dev/null || true")) {
		fields := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(fields) < 3 {
			continue // being written
		}
		at, err := strconv.ParseFloat(fields[0], 64)
		code, err2 := strconv.Atoi(fields[1])
		if err != nil || err2 != nil {
			t.Fatalf("the caller wrote %q", line)
		}
		all = append(all, call{at: time.UnixMicro(int64(at * 1e6)), code: code, detail: fields[2]})
	}
	return all
}

// stop ends the caller and returns all of its calls.
func (c *caller) stop(t *testing.T) []call {
	t.Helper()
	c.w.mustExec(t, c.task, "touch "+c.dir+"/stop")
	await(t, short, "the caller has ended", func() (bool, string) {
		out := c.w.mustExec(t, c.task, "ls "+c.dir)
		return strings.Contains(out, "ended"), out
	})
	return c.calls(t)
}

// phase is a part of a test, by its beginning.
type phase struct {
	name string
	at   time.Time
}

// reportCalls logs how many calls failed in which phase, and returns the failed ones.
func reportCalls(t *testing.T, calls []call, phases []phase) []call {
	t.Helper()
	var failed []call
	for i, p := range phases {
		total, bad := 0, 0
		var slowest time.Duration
		for j, c := range calls {
			if c.at.Before(p.at) || i+1 < len(phases) && !c.at.Before(phases[i+1].at) {
				continue
			}
			total++
			if j+1 < len(calls) {
				slowest = max(slowest, calls[j+1].at.Sub(c.at))
			}
			if c.failed() {
				bad++
				c.phase = p.name
				failed = append(failed, c)
				t.Logf("failed in phase %q, %s after its start: code %d, %s", p.name, c.at.Sub(p.at).Round(time.Millisecond), c.code, c.detail)
			}
		}
		t.Logf("phase %q: %d calls, %d failed, longest pause between two %s", p.name, total, bad, slowest.Round(time.Millisecond))
	}
	return failed
}

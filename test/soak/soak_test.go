// Package soak_test lets five whole proxies work at full rate while everything around them changes: connections come
// and go, policies are rewritten and toggled, certificates are renewed every ten seconds, a peer's proxy dies and comes
// back, and istiod restarts. At the end nobody may have got where a policy forbids it, nobody may have been refused or
// cut off who was allowed, no byte may be wrong, and no goroutine, descriptor or memory may be left over.
//
// ISTHMUS_SOAK says for how long, such as 2m or 30m; without it, 20 seconds. ISTHMUS_SOAK_REPORT names a file for the
// figures, which are printed in any case, and ISTHMUS_SOAK_NOTE is a remark for its head.
package soak_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

const defaultDuration = 20 * time.Second

func TestMain(m *testing.M) {
	os.Exit(proxytest.Main(m, aliceIP, bobIP, steadyIP, toggledIP, mortalIP))
}

func duration(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("ISTHMUS_SOAK")
	if text == "" {
		return defaultDuration
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 10*time.Second {
		t.Fatalf("ISTHMUS_SOAK=%q is not a duration of at least 10s", text)
	}
	return d
}

func TestSoak(t *testing.T) {
	length := duration(t)
	r := newReport(length)
	istiod := meshtest.NewIstiod(t, nil)
	goroutines, files, empty := runtime.NumGoroutine(), descriptors(t), heap()
	w := newWorld(t, istiod)
	l := &ledger{counts: map[string]int{}}
	f := newFlows(w, l)
	o := &operator{w: w, l: l, f: f}
	stopFlows := f.start()
	stopOperator := o.start()
	r.heap = watchMemory(length, func() {
		for range istiod.Forget() {
			l.count("certificates")
		}
	})
	stopOperator()
	stopFlows()
	w.stop()
	istiod.Disconnect() // its side of the proxies' connections
	for _, p := range l.problems() {
		t.Error(p)
	}
	l.atLeast(t, length)
	r.kept = max(heap()-empty, 0)
	if early, late := r.growth(); late > early+early/5+2<<20 {
		t.Errorf("the heap grew from %d to %d KiB", early>>10, late>>10)
	}
	r.goroutines = left(t, "goroutines", goroutines+2, func() int { return runtime.NumGoroutine() }) // two of a gRPC server that has no stream
	r.descriptors = left(t, "descriptors", files, func() int { return descriptors(t) })
	r.counts, r.problems, r.failed = l.all(), l.problems(), t.Failed()
	r.write(t)
	if t.Failed() {
		w.dump()
	}
}

// left fails the test unless a number goes back to what it was, and returns how much of it is left over.
func left(t *testing.T, what string, before int, now func() int) int {
	t.Helper()
	deadline := time.Now().Add(meshtest.Wait)
	for tick := time.Tick(20 * time.Millisecond); now() > before; <-tick {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Errorf("%d %s before, %d after; goroutines:\n%s", before, what, now(), buf[:runtime.Stack(buf, true)])
			return now() - before
		}
	}
	return 0
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		// The runtime keeps those for waiting; they are no one's leak.
		to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err == nil && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// samples is how often memory is looked at during a soak.
const samples = 30

// watchMemory waits for length and returns the live heap at each sample, before which it calls f.
func watchMemory(length time.Duration, f func()) []int64 {
	var seen []int64
	tick := time.NewTicker(length / samples)
	defer tick.Stop()
	for range samples {
		<-tick.C
		f()
		seen = append(seen, heap())
	}
	return seen
}

// heap returns the bytes that are in use, stacks included.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what has finalizers goes the second time
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// Package soak_test lets five whole proxies work at full rate while everything around them changes: connections come
// and go, policies are rewritten and toggled, certificates are renewed every few seconds, a peer's proxy dies and comes
// back, and istiod restarts. At the end nobody may have got where a policy forbids it, nobody may have been refused who
// was allowed, no byte may be wrong, and no goroutine, descriptor or memory may be left over.
//
// ISTHMUS_SOAK says for how long, such as 2m or 30m; without it, 20 seconds.
package soak_test

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
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
	istiod := meshtest.NewIstiod(t, nil)
	goroutines, files, empty := runtime.NumGoroutine(), descriptors(t), heap()
	w := newWorld(t, istiod)
	l := &ledger{counts: map[string]int{}}
	f := newFlows(w, l)
	o := &operator{w: w, l: l, f: f}
	stopFlows := f.start()
	stopOperator := o.start()
	early, late := watchMemory(t, length)
	stopOperator()
	stopFlows()
	w.stop()
	istiod.Disconnect() // its side of the proxies' connections
	t.Logf("in %v: %s", length, l)
	for _, p := range l.problems() {
		t.Error(p)
	}
	l.atLeast(t, length)
	// The fake istiod remembers every request. It is what is left when the proxies are gone, and grew steadily.
	kept := max(heap()-empty, 0)
	early, late = early-kept/3, late-kept
	t.Logf("live heap of the proxies after a third: %d KiB, at the end: %d KiB; the control plane's: %d KiB", early>>10, late>>10, kept>>10)
	if late > early+early/5+2<<20 {
		t.Errorf("the heap grew from %d to %d KiB", early>>10, late>>10)
	}
	left(t, "goroutines", goroutines+2, func() int { return runtime.NumGoroutine() }) // two of a gRPC server that has no stream
	left(t, "descriptors", files, func() int { return descriptors(t) })
	if t.Failed() {
		w.dump()
	}
}

// left fails the test unless a number goes back to what it was.
func left(t *testing.T, what string, before int, now func() int) {
	t.Helper()
	deadline := time.Now().Add(meshtest.Wait)
	for tick := time.Tick(20 * time.Millisecond); now() > before; <-tick {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Errorf("%d %s before, %d after; goroutines:\n%s", before, what, now(), buf[:runtime.Stack(buf, true)])
			return
		}
	}
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

// watchMemory waits for length and returns the least live heap of the samples around a third of it, and of the last.
func watchMemory(t *testing.T, length time.Duration) (early, late int64) {
	t.Helper()
	const samples = 30
	var seen []int64
	tick := time.NewTicker(length / samples)
	defer tick.Stop()
	for range samples {
		<-tick.C
		seen = append(seen, heap())
	}
	return slices.Min(seen[samples/3-2 : samples/3+3]), slices.Min(seen[samples-5:])
}

// heap returns the bytes that are in use, stacks included.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what has finalizers goes the second time
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

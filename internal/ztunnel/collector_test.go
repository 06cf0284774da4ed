package ztunnel

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: maxPercent, 1 << 20: maxPercent, 8 << 20: 150, 24 << 20: gcPercent, 1 << 30: gcPercent} {
		if got := percent(live); got != want {
			t.Errorf("percent(%d) = %d, want %d", live, got, want)
		}
	}
}

// TestTuneCollector lets the heap of this process grow and shrink.
func TestTuneCollector(t *testing.T) {
	before := debug.SetGCPercent(100)
	ctx, cancel := context.WithCancel(t.Context())
	defer func() {
		cancel()
		runtime.GC()
		debug.SetGCPercent(before)
	}()
	tuneCollector(ctx)
	now := func() int {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return int(s[0].Value.Uint64())
	}
	until := func(what string, ok func(int) bool) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for !ok(now()) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d percent", what, now())
			}
			runtime.GC()
		}
	}
	until("a small heap", func(p int) bool { return p > gcPercent })
	hold := make([]byte, 64<<20)
	until("a large heap", func(p int) bool { return p == gcPercent })
	runtime.KeepAlive(hold)
	until("a small heap again", func(p int) bool { return p > gcPercent })
}

package ztunnel

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// gcPercent is a little less than Go's default of 100: memory beside an application is dear.
	gcPercent = 50
	// garbageRoom is how much garbage may gather at least before it is collected. A share of a small heap alone would be
	// few connections' worth, and looking at all that lives would cost more than they do.
	garbageRoom = 12 << 20
	// maxPercent bounds what the heap may grow by before the next measure of it.
	maxPercent = 400
)

// tuneCollector lets the collector wait for gcPercent of what lives, or for garbageRoom if that is more, until ctx ends. A
// memory limit holds nevertheless.
func tuneCollector(ctx context.Context) {
	debug.SetGCPercent(gcPercent)
	now := gcPercent
	var arm func()
	arm = func() {
		// What nothing refers to is found by the next collection, which has then measured the heap.
		runtime.AddCleanup(new([4]*byte), func(struct{}) {
			if ctx.Err() != nil {
				return
			}
			if want := percent(liveBytes()); want*10 > now*11 || want*10 < now*9 { // setting it stops the world
				debug.SetGCPercent(want)
				now = want
			}
			arm()
		}, struct{}{})
	}
	arm()
}

func percent(live uint64) int {
	return int(max(gcPercent, min(maxPercent, garbageRoom*100/max(live, 1))))
}

// liveBytes is what the last collection found alive.
func liveBytes() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return garbageRoom
	}
	return s[0].Value.Uint64()
}

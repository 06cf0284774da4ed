package ztunnel

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// raiseDescriptorLimit raises the soft limit of open files to the hard one: each proxied connection takes two.
func raiseDescriptorLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur >= l.Max {
		return
	}
	l.Cur = l.Max
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // if it is refused, accept waits for descriptors
}

// The garbage collector's settings for a small process beside an application: it works a little more often than by
// default, and much harder near the container's limit, instead of being killed there.
const (
	gcPercent          = 50
	memoryLimitPercent = 85
)

func limitMemory(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if getenv("GOMEMLIMIT") != "" {
		return
	}
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && n > 0 && n < 1<<50 { // "max", or a number so large that it means the same
			debug.SetMemoryLimit(n / 100 * memoryLimitPercent)
		}
		return
	}
}

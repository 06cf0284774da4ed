package ztunnel

import (
	"context"
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

// memoryLimitPercent is the share of the container's limit near which the garbage collector works much harder, instead of
// the proxy being killed at the limit.
const memoryLimitPercent = 85

func limitMemory(ctx context.Context, getenv func(string) string) {
	if getenv("GOGC") == "" {
		tuneCollector(ctx)
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

// settle gives back what only the start needed: garbage of the heap at once instead of some minutes later, and the pages
// of the program itself, most of which are initialisation that never runs again. Pages that are needed come back from
// the page cache at their next use.
func settle() {
	debug.FreeOSMemory()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line) // address range, permissions, offset, device, inode, path
		if len(f) != 6 || f[5] != self || f[1] != "r-xp" && f[1] != "r--p" {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		low, err1 := strconv.ParseUint(from, 16, 64)
		high, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil || high <= low {
			continue
		}
		// Nothing can have written to these mappings, so dropping them loses nothing. If it is refused, they stay.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, uintptr(low), uintptr(high-low), unix.MADV_DONTNEED)
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// harness owns what the run made and must undo. It is a testing.TB as far as meshtest needs one: meshtest is a library
// for tests, and this program borrows its istiod.
type harness struct {
	testing.TB
	ctx    context.Context
	dir    string
	stderr io.Writer

	mu       sync.Mutex
	cleanups []func() // guarded by mu
}

// failure is how a deep place gives up; compete turns it into an error.
type failure struct{ err error }

// Helper implements testing.TB.
func (h *harness) Helper() {}

// Context implements testing.TB.
func (h *harness) Context() context.Context { return h.ctx }

// Fatalf implements testing.TB.
func (h *harness) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// Cleanup implements testing.TB.
func (h *harness) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}

// must gives up if there is an error.
func (h *harness) must(what string, err error) {
	if err != nil {
		panic(failure{fmt.Errorf("%s: %w", what, err)})
	}
}

// progress tells the waiting human what is being done.
func (h *harness) progress(format string, args ...any) {
	fmt.Fprintf(h.stderr, format+"\n", args...)
	if h.ctx.Err() != nil {
		panic(failure{context.Cause(h.ctx)})
	}
}

func (h *harness) cleanup() {
	h.mu.Lock()
	fs := h.cleanups
	h.cleanups = nil
	h.mu.Unlock()
	for i := len(fs) - 1; i >= 0; i-- {
		fs[i]()
	}
}

func raiseDescriptorLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l) // where it is refused, fewer idle connections are tried
	}
}

func descriptorLimit() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return int(min(l.Cur, 1<<20))
}

// netns is a network namespace with a thread that lives in it. Processes and sockets made by do belong to it.
type netns struct {
	file *os.File
	work chan func()
}

// newNetns makes a namespace whose loopback is up.
func newNetns(h *harness) *netns {
	ns := &netns{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			ns.file, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
		for f := range ns.work {
			f()
		}
	}()
	h.must("make a network namespace", <-made)
	h.Cleanup(func() {
		close(ns.work)
		ns.file.Close()
	})
	return ns
}

// do runs f on the namespace's thread.
func (ns *netns) do(f func() error) error {
	errc := make(chan error)
	ns.work <- func() { errc <- f() }
	return <-errc
}

// Package meshtest is the shared test library of the data plane: a certificate authority and an xDS server that speak
// the real protocols, and the certificates and messages that tests need. Nothing but tests imports it.
package meshtest

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"
)

// Wait is how long Eventually waits. It is generous: a test that passes does not wait.
const Wait = 10 * time.Second

// Eventually fails the test unless condition becomes true within Wait.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v", what, Wait)
		}
	}
}

// Closes fails the test unless ch closes within Wait.
func Closes(t testing.TB, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(Wait):
		t.Fatalf("%s: not within %v", what, Wait)
	}
}

// Run runs what has a Run method until the test ends, and fails the test if it returns an error.
func Run(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run() = %v, want nil", err)
			}
		case <-time.After(Wait):
			t.Errorf("Run did not return within %v after its context ended", Wait)
		}
	})
}

// Logger returns a logger that writes to the test's log while the test runs.
func Logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Discard returns a logger that drops everything.
func Discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(line []byte) (int, error) {
	// A test that has ended must not be written to.
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", line)
	}
	return len(line), nil
}

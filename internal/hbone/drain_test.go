package hbone

import (
	"context"
	"io"
	"testing"
	"time"
)

func TestPoolCloses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	p, err := NewPool(w.pool.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	s, _, err := p.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, err = s.Write([]byte("x"))
	wantErr(t, err, ErrPoolClosed)
	_, _, err = p.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
	wantErr(t, err, ErrPoolClosed)
}

// TestDrain ends a server gracefully with a tunnel under way.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, echo, options{})
	s := w.connect()
	done := make(chan error, 1)
	go func() { done <- w.server.Drain(t.Context()) }()
	eventually(t, "client heard", func() bool {
		w.pool.mu.Lock()
		defer w.pool.mu.Unlock()
		return len(w.pool.groups) == 0
	})
	if _, err := s.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "still here" {
		t.Fatalf("%q, %v", b, err)
	}
	select {
	case err := <-done:
		t.Fatalf("Drain returned %v before the last stream ended", err)
	default:
	}
	_ = s.CloseWrite()
	if err := <-done; err != nil {
		t.Errorf("Drain = %v", err)
	}
	if b, err := io.ReadAll(s); err != nil || len(b) != 0 {
		t.Errorf("end of the stream: %q, %v", b, err)
	}
	if _, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"}); err == nil {
		t.Error("a drained server took a connection")
	}
}

func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	s := w.connect()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantErr(t, w.server.Drain(ctx), context.DeadlineExceeded)
	_, err := s.Read(make([]byte, 1))
	wantErr(t, err, ErrConnectionLost)
}

package hbone

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// delivered puts what arrives on s on a socket and returns its other end and the outcome.
func delivered(t *testing.T, s *Stream) (*net.TCPConn, <-chan error) {
	t.Helper()
	near, far := tcpPair(t)
	done := make(chan error, 2) // room for a second, wrong call
	s.Deliver(near, func(err error) {
		if err == nil {
			err = near.CloseWrite()
		}
		done <- err
	})
	return far, done
}

func outcome(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Deliver did not end")
		return nil
	}
}

// TestDeliver sends more than the socket takes while nobody reads it, so that both ways of writing have their turn.
func TestDeliver(t *testing.T) {
	t.Parallel()
	data := make([]byte, 24<<20)
	_, _ = rand.Read(data)
	sent := make(chan struct{})
	w := newWorld(t, func(_ context.Context, ss *ServerStream) {
		s, err := ss.Accept(nil)
		if err != nil {
			return
		}
		_, err = s.Write(data[:5])
		if err == nil {
			close(sent)
			_, err = s.Write(data[5:])
		}
		if err == nil {
			_ = s.CloseWrite()
			<-s.Done()
		}
	}, options{})
	s := w.connect()
	<-sent // some of it is there before Deliver, perhaps
	far, done := delivered(t, s)
	eventually(t, "the socket is full", func() bool { s.c.mu.Lock(); defer s.c.mu.Unlock(); return s.q.size > 1<<20 })
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v; want %d, and the same", len(got), err, len(data))
	}
	if err := outcome(t, done); err != nil {
		t.Error(err)
	}
	if n := s.BytesReceived(); n != uint64(len(data)) {
		t.Errorf("BytesReceived = %d, want %d", n, len(data))
	}
	_ = s.CloseWrite()
	<-s.Done()
	if len(done) > 0 {
		t.Error("the end was told twice")
	}
}

// TestDeliverFailures ends a stream in ways other than the peer's end.
func TestDeliverFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fail func(w *world, s *Stream, far *net.TCPConn)
		full bool // the socket does not take what is there
		want error
	}{
		"reset here":        {fail: func(_ *world, s *Stream, _ *net.TCPConn) { s.Reset(ConnectError) }, want: &StreamError{Code: ConnectError}},
		"reset by the peer": {fail: func(_ *world, s *Stream, _ *net.TCPConn) { _, _ = s.Write([]byte("reset")) }, want: &StreamError{InternalError, true}},
		"connection lost":   {fail: func(w *world, _ *Stream, _ *net.TCPConn) { w.accept(0).Close() }, want: ErrConnectionLost},
		"socket gone, full": {fail: func(_ *world, _ *Stream, far *net.TCPConn) { _ = far.SetLinger(0); far.Close() }, full: true},
		"connection lost, full": {fail: func(w *world, _ *Stream, far *net.TCPConn) {
			w.accept(0).Close()
			go func() { _, _ = io.Copy(io.Discard, far) }() // what was received is delivered first
		}, full: true, want: ErrConnectionLost},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(_ context.Context, ss *ServerStream) {
				s, err := ss.Accept(nil)
				if err != nil {
					return
				}
				if c.full {
					_, _ = s.Write(make([]byte, 3<<20))
				}
				if _, err := io.ReadFull(s, make([]byte, 5)); err == nil {
					s.Reset(InternalError)
				}
				<-s.Done()
			}, options{})
			s := w.connect()
			near, far := tcpPair(t)
			_ = near.SetWriteBuffer(64 << 10)
			_ = far.SetReadBuffer(64 << 10)
			done := make(chan error, 2)
			s.Deliver(near, func(err error) { done <- err })
			if c.full {
				eventually(t, "the socket is full", func() bool { s.c.mu.Lock(); defer s.c.mu.Unlock(); return s.busy && s.q.size > 1<<20 })
			}
			c.fail(w, s, far)
			err := outcome(t, done)
			var want, got *StreamError
			switch {
			case err == nil:
				t.Error("no error")
			case errors.As(c.want, &want):
				if !errors.As(err, &got) || *got != *want {
					t.Errorf("error = %v, want %v", err, want)
				}
			case c.want != nil:
				wantErr(t, err, c.want)
			}
			s.Close()
			if len(done) > 0 {
				t.Error("the end was told twice")
			}
		})
	}
}

// TestDeliverNeedsNoGoroutine counts the goroutines that wait for the bytes of idle streams.
func TestDeliverNeedsNoGoroutine(t *testing.T) {
	var accepted sync.WaitGroup
	w := newWorld(t, func(_ context.Context, ss *ServerStream) {
		if s, err := ss.Accept(nil); err == nil {
			accepted.Done()
			<-s.Done()
		}
	}, options{})
	const n = 20
	accepted.Add(n)
	for range n {
		delivered(t, w.connect())
	}
	accepted.Wait()
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if k := strings.Count(string(stacks), "hbone.(*Stream).WriteTo") + strings.Count(string(stacks), "hbone.(*Stream).settle"); k > 0 {
		t.Errorf("%d goroutines wait on behalf of %d idle streams", k, n)
	}
}

// TestTryUncork fills a socket until it takes a part only, and then lets somebody wait for the rest.
func TestTryUncork(t *testing.T) {
	t.Parallel()
	a, b := tcpPair(t)
	_ = a.SetWriteBuffer(16 << 10)
	_ = b.SetReadBuffer(16 << 10)
	w := newWire(a)
	var want []byte
	for i := byte(0); ; i++ {
		p := bytes.Repeat([]byte{i}, 60<<10)
		w.cork()
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		want = append(want, p...)
		if !w.tryUncork() {
			break
		}
	}
	if n := w.pending(); n == 0 {
		t.Error("nothing is left of what the socket did not take")
	}
	got := make(chan []byte)
	go func() { p, _ := io.ReadAll(b); got <- p }()
	if err := w.uncork(); err != nil {
		t.Fatal(err)
	}
	_ = a.CloseWrite()
	if p := <-got; !bytes.Equal(p, want) {
		t.Errorf("%d bytes arrived, want %d, and the same", len(p), len(want))
	}
	b.Close()
	a.Close()
	w.cork()
	_, _ = w.Write([]byte("x"))
	if w.tryUncork() || w.uncork() == nil {
		t.Error("a write to a closed socket succeeded")
	}
}

package hbone

import (
	"context"
	"testing"
	"time"
)

// What a peer may have sent on a connection without its being read has a limit, however many streams it uses.
func TestUnreadBytesAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ context.Context, ss *ServerStream) {
		if s, err := ss.Accept(nil); err == nil {
			<-s.Done()
		}
	}, options{})
	const streams = 2 * maxBuffered / streamWindow
	var all []*Stream
	for range streams {
		s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "stall:1"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		all = append(all, s)
		go func() { _, _ = s.Write(make([]byte, streamWindow)) }() // ends with the stream
	}
	sent := func() (n uint64) {
		for _, s := range all {
			n += s.BytesSent()
		}
		return n
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for sent() < maxBuffered-connWindow/4-maxFrame { // credit is given by quarters of the window
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d bytes were sent, and no more", sent())
		}
	}
	// What HTTP/2 lets a peer send before it was told anything comes on top.
	if n := sent(); n > maxBuffered+defaultWindow {
		t.Errorf("%d bytes are unread, more than %d", n, maxBuffered+defaultWindow)
	}
	if n := w.accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

package hbone

import (
	"bytes"
	"context"
	"strings"
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

// A peer may open so many tunnels on a connection; one more is refused, and the others live on.
func TestServerStreamsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	r := dialRaw(t, w)
	for i := range uint32(serverStreams) {
		r.connect(2*i + 1)
	}
	r.headers(2*serverStreams+1, false, ":method", "CONNECT", ":authority", "x:1")
	r.wantReset(2*serverStreams+1, RefusedStream)
}

// An answer whose fields are larger than any is refused, compressed or not.
func TestAnswerFieldsAreBounded(t *testing.T) {
	t.Parallel()
	many := func(n int) []byte {
		return append(fieldBlock(":status", "200"), bytes.Repeat(fieldBlock("content-type", strings.Repeat("x", 100)), n)...)
	}
	for name, block := range map[string][]byte{
		"fits":        many(clientHeaders / 200),
		"one field":   fieldBlock(":status", "200", "a", strings.Repeat("a", clientHeaders)),
		"many fields": many(clientHeaders / 100),
	} {
		w := rawServer(t, nil, func(r *raw, id uint32) {
			_, _ = r.c.Write(appendHeaderBlock(nil, block, id, false, defaultMaxFrame))
		})
		if _, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"}); (err == nil) != (name == "fits") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

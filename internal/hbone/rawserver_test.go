package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// rawServer is a server made of frames; serve gets its connection once the client's request has come.
func rawServer(t *testing.T, settings []http2.Setting, serve func(r *raw, id uint32)) *world {
	t.Helper()
	w := newWorld(t, hold, options{})
	tc, err := serverTLS(w.ca.issue(t, bob), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.pool.cfg.Dial = func(context.Context, Key) (net.Conn, error) {
		a, b := tcpPair(t)
		go func() {
			r := newRaw(t, tls.Server(b, tc))
			if _, err := io.ReadFull(r.c, make([]byte, len(clientPreface))); err != nil {
				return
			}
			_ = r.fr.WriteSettings(settings...)
			for {
				f, err := r.fr.ReadFrame()
				if err != nil {
					return
				}
				if h, ok := f.(*http2.HeadersFrame); ok {
					serve(r, h.StreamID)
				}
			}
		}()
		return a, nil
	}
	return w
}

func TestClientAgainstRawServer(t *testing.T) {
	t.Parallel()
	ok := fieldBlock(":status", "200")
	headers := func(r *raw, id uint32, b []byte, end bool) {
		_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true, EndStream: end})
	}
	for name, tc := range map[string]struct {
		serve func(r *raw, id uint32)
		want  string // of the error; "" for none
	}{
		"plain": {serve: func(r *raw, id uint32) { headers(r, id, ok, false) }},
		"after 103": {serve: func(r *raw, id uint32) {
			headers(r, id, fieldBlock(":status", "103"), false)
			headers(r, id, ok, false)
		}},
		"refusal and RST": {serve: func(r *raw, id uint32) {
			headers(r, id, fieldBlock(":status", "503"), true)
			_ = r.fr.WriteRSTStream(id, http2.ErrCodeNo)
		}, want: "http status: 503 Service Unavailable"},
		"odd status":         {serve: func(r *raw, id uint32) { headers(r, id, fieldBlock(":status", "abc"), false) }, want: "PROTOCOL_ERROR"},
		"no status":          {serve: func(r *raw, id uint32) { headers(r, id, fieldBlock("a", "b"), false) }, want: "PROTOCOL_ERROR"},
		"DATA before answer": {serve: func(r *raw, id uint32) { _ = r.fr.WriteData(id, false, []byte("x")) }, want: "DATA before the answer"},
		"push": {serve: func(r *raw, id uint32) {
			_ = r.fr.WritePushPromise(http2.PushPromiseParam{StreamID: id, PromiseID: 2, BlockFragment: ok, EndHeaders: true})
		}, want: "PUSH_PROMISE"},
		"unknown stream":        {serve: func(r *raw, id uint32) { headers(r, id+2, ok, false) }, want: "idle stream"},
		"cancelled":             {serve: func(r *raw, id uint32) { _ = r.fr.WriteRSTStream(id, http2.ErrCodeCancel) }, want: "stream reset by peer: CANCEL"},
		"refused for ever":      {serve: func(r *raw, id uint32) { _ = r.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, want: "REFUSED_STREAM"},
		"unserved for ever":     {serve: func(r *raw, _ uint32) { _ = r.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }, want: "request not served"},
		"closed without a word": {serve: func(r *raw, _ uint32) { r.c.Close() }, want: "hbone connection lost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := rawServer(t, nil, tc.serve)
			s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Connect = %v, want %q", err, tc.want)
			}
		})
	}
}

// TestGoAwayWithStreamsInFlight lets one stream go on and has the other one made again elsewhere.
func TestGoAwayWithStreamsInFlight(t *testing.T) {
	t.Parallel()
	w := rawServer(t, nil, func(r *raw, id uint32) {
		if id == 3 {
			_ = r.fr.WriteGoAway(1, http2.ErrCodeNo, nil)
			_ = r.fr.WriteData(1, true, []byte("still"))
			return
		}
		_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(":status", "200"), EndHeaders: true})
	})
	first, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
	if err != nil {
		t.Fatal(err)
	}
	second, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
	if err != nil {
		t.Fatalf("a request that was not served is not made again: %v", err)
	}
	defer second.Close()
	if second.c == first.c {
		t.Error("the second stream is on the connection that is going away")
	}
	if b, err := io.ReadAll(first); err != nil || string(b) != "still" {
		t.Errorf("first stream: %q, %v", b, err)
	}
	_ = first.CloseWrite()
	<-first.c.done // and the connection ends with its last stream
}

// TestRefusedStreamIsMadeElsewhere has a peer refuse all but the first stream of each connection.
func TestRefusedStreamIsMadeElsewhere(t *testing.T) {
	t.Parallel()
	w := rawServer(t, nil, func(r *raw, id uint32) {
		if id > 1 {
			_ = r.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			return
		}
		_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(":status", "200"), EndHeaders: true})
	})
	for range 3 {
		s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
}

// TestSmallFramesAndWindows talks to a peer with the least of everything that HTTP/2 allows.
func TestSmallFramesAndWindows(t *testing.T) {
	t.Parallel()
	const size = 300_000
	got := make(chan int, 1)
	w := rawServer(t, []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 10}, {ID: http2.SettingHeaderTableSize, Val: 0}, {ID: http2.SettingMaxConcurrentStreams, Val: 1}},
		func(r *raw, id uint32) {
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(":status", "200"), EndHeaders: true})
			total, longest := 0, 0
			for {
				f, err := r.fr.ReadFrame()
				if err != nil {
					return
				}
				d, ok := f.(*http2.DataFrame)
				if !ok {
					continue
				}
				total += len(d.Data())
				longest = max(longest, len(d.Data()))
				if d.StreamEnded() {
					if longest > 16384 {
						total = -longest
					}
					got <- total
					return
				}
				if len(d.Data()) > 0 {
					_ = r.fr.WriteWindowUpdate(0, uint32(len(d.Data())))
					_ = r.fr.WriteWindowUpdate(id, uint32(min(2*len(d.Data()), 40000)))
				}
			}
		})
	s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := s.Write(make([]byte, size)); n != size || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	_ = s.CloseWrite()
	if n := <-got; n != size {
		t.Errorf("peer got %d (negative: a frame too long), want %d", n, size)
	}
}

// TestPeerThatDoesNotRead provokes answers without reading any: the connection ends rather than growing.
func TestPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	r := dialRaw(t, w)
	var b []byte
	for range 4096 {
		b = appendPing(b, 0, [8]byte{1})
	}
	for range 10_000 {
		if _, err := r.c.Write(b); err != nil {
			break
		}
	}
	eventually(t, "connection ends", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.served) == 1 })
	var ga *GoAwayError
	if !errors.As(w.served[0], &ga) || ga.Code != EnhanceYourCalm {
		t.Errorf("ServeConn = %v, want ENHANCE_YOUR_CALM", w.served[0])
	}
}

package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// raw is a peer made of golang.org/x/net/http2's Framer, to say what a well-behaved one does not.
type raw struct {
	t  *testing.T
	c  net.Conn
	fr *http2.Framer
}

func newRaw(t *testing.T, c net.Conn) *raw {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	r := &raw{t: t, c: c, fr: http2.NewFramer(c, c)}
	r.fr.AllowIllegalWrites = true
	r.fr.SetMaxReadFrameSize(1 << 20)
	return r
}

// dialRaw shakes hands with a world's server and sends preface and SETTINGS.
func dialRaw(t *testing.T, w *world) *raw {
	t.Helper()
	c, err := net.Dial("tcp", w.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, tls.Client(c, clientTLS(w.ca.issue(t, alice), []mesh.Identity{bob}, nil)))
	_, err = io.WriteString(r.c, clientPreface)
	r.ok(err)
	r.ok(r.fr.WriteSettings())
	return r
}

func (r *raw) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func fieldBlock(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i+1 < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func (r *raw) headers(id uint32, end bool, fields ...string) {
	r.t.Helper()
	r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(fields...), EndStream: end, EndHeaders: true}))
}

func (r *raw) connect(id uint32) { r.headers(id, false, ":method", "CONNECT", ":authority", "x:1") }

// until reads frames until one satisfies f.
func (r *raw) until(what string, f func(http2.Frame) bool) {
	r.t.Helper()
	var seen []string
	for {
		fr, err := r.fr.ReadFrame()
		if err != nil {
			r.t.Fatalf("want %s, got %v after %v", what, err, seen)
		}
		seen = append(seen, fr.Header().String())
		if f(fr) {
			return
		}
	}
}

func (r *raw) wantGoAway(code ErrCode) {
	r.t.Helper()
	r.until("GOAWAY "+code.String(), func(f http2.Frame) bool {
		g, ok := f.(*http2.GoAwayFrame)
		if ok && ErrCode(g.ErrCode) != code {
			r.t.Errorf("GOAWAY %v (%s), want %v", g.ErrCode, g.DebugData(), code)
		}
		return ok
	})
	for {
		if _, err := r.fr.ReadFrame(); err != nil {
			return // and the connection ends
		}
	}
}

func (r *raw) wantReset(id uint32, code ErrCode) {
	r.t.Helper()
	r.until("RST_STREAM "+code.String(), func(f http2.Frame) bool {
		g, ok := f.(*http2.RSTStreamFrame)
		if ok && (ErrCode(g.ErrCode) != code || g.StreamID != id) {
			r.t.Errorf("RST_STREAM %v on %d, want %v on %d", g.ErrCode, g.StreamID, code, id)
		}
		return ok
	})
	r.alive()
}

func (r *raw) wantStatus(id uint32, status string) {
	r.t.Helper()
	dec := hpack.NewDecoder(4096, nil)
	r.until("status "+status, func(f http2.Frame) bool {
		h, ok := f.(*http2.HeadersFrame)
		if ok {
			fields, err := dec.DecodeFull(h.HeaderBlockFragment())
			if err != nil || h.StreamID != id || fields[0].Value != status {
				r.t.Errorf("answer %v, %v on %d, want %s on %d", fields, err, h.StreamID, status, id)
			}
		}
		return ok
	})
}

// alive checks that the connection still answers.
func (r *raw) alive() {
	r.t.Helper()
	r.ok(r.fr.WritePing(false, [8]byte{9}))
	r.until("PING ack", func(f http2.Frame) bool {
		p, ok := f.(*http2.PingFrame)
		return ok && p.IsAck() && p.Data == [8]byte{9}
	})
}

func TestServerAgainstRawClient(t *testing.T) {
	t.Parallel()
	raw4 := func(typ http2.FrameType, flags http2.Flags, id uint32, n int) func(r *raw) {
		return func(r *raw) { r.ok(r.fr.WriteRawFrame(typ, flags, id, make([]byte, n))) }
	}
	for name, tc := range map[string]struct {
		do     func(r *raw)
		goAway ErrCode
		reset  ErrCode
		status string
	}{
		"DATA on stream 0":          {do: raw4(http2.FrameData, 0, 0, 1), goAway: ProtocolError},
		"DATA on idle stream":       {do: raw4(http2.FrameData, 0, 1, 1), goAway: ProtocolError},
		"RST on idle stream":        {do: raw4(http2.FrameRSTStream, 0, 1, 4), goAway: ProtocolError},
		"update on idle stream":     {do: func(r *raw) { r.ok(r.fr.WriteWindowUpdate(1, 1)) }, goAway: ProtocolError},
		"update of 0":               {do: func(r *raw) { r.ok(r.fr.WriteWindowUpdate(0, 0)) }, goAway: ProtocolError},
		"window overflow":           {do: func(r *raw) { r.ok(r.fr.WriteWindowUpdate(0, 1<<31-1)) }, goAway: FlowControlError},
		"even stream":               {do: func(r *raw) { r.connect(2) }, goAway: ProtocolError},
		"lower stream":              {do: func(r *raw) { r.connect(5); r.connect(3) }, goAway: StreamClosed},
		"SETTINGS on a stream":      {do: raw4(http2.FrameSettings, 0, 1, 0), goAway: ProtocolError},
		"SETTINGS of odd length":    {do: raw4(http2.FrameSettings, 0, 0, 5), goAway: FrameSizeError},
		"SETTINGS ack with payload": {do: raw4(http2.FrameSettings, http2.FlagSettingsAck, 0, 6), goAway: FrameSizeError},
		"PING of odd length":        {do: raw4(http2.FramePing, 0, 0, 7), goAway: FrameSizeError},
		"PRIORITY of odd length":    {do: raw4(http2.FramePriority, 0, 1, 4), goAway: FrameSizeError},
		"push promise":              {do: raw4(http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, 8), goAway: ProtocolError},
		"lone CONTINUATION":         {do: raw4(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, 0), goAway: ProtocolError},
		"frame too long": {do: func(r *raw) {
			r.connect(1)
			_, err := r.c.Write(appendFrameHeader(nil, 1<<20+1, typeData, 0, 1))
			r.ok(err)
		}, goAway: FrameSizeError},
		"huge HEADERS": {do: raw4(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, 100<<10), goAway: EnhanceYourCalm},
		"bad compression": {do: func(r *raw) {
			r.ok(r.fr.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}))
		}, goAway: CompressionError},
		"max frame too small": {do: func(r *raw) { r.ok(r.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100})) }, goAway: ProtocolError},
		"window setting too large": {do: func(r *raw) {
			r.ok(r.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}))
		}, goAway: FlowControlError},
		"interrupted header block": {do: func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fieldBlock(":method", "CONNECT")}))
			r.ok(r.fr.WritePing(false, [8]byte{}))
		}, goAway: ProtocolError},
		"endless CONTINUATION": {do: func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{}}))
			for range 8 {
				if r.fr.WriteContinuation(1, false, bytes.Repeat([]byte{0x82}, 16000)) != nil {
					return
				}
			}
		}, goAway: EnhanceYourCalm},
		"empty CONTINUATION": {do: func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{}}))
			r.ok(r.fr.WriteContinuation(1, false, nil))
		}, goAway: EnhanceYourCalm},
		"empty DATA flood": {do: func(r *raw) {
			r.connect(1)
			for range maxEmptyFrames + 1 {
				if r.fr.WriteData(1, false, nil) != nil {
					return
				}
			}
		}, goAway: EnhanceYourCalm},
		"padding too long": {do: func(r *raw) {
			r.connect(1)
			r.ok(r.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 0}))
		}, goAway: ProtocolError},
		"path in CONNECT":      {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", ":authority", "x:1", ":path", "/") }, reset: ProtocolError},
		"upper-case name":      {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", ":authority", "x:1", "Baggage", "x") }, reset: ProtocolError},
		"late pseudo-field":    {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", "a", "b", ":authority", "x:1") }, reset: ProtocolError},
		"doubled pseudo-field": {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", ":method", "CONNECT", ":authority", "x:1") }, reset: ProtocolError},
		"unknown pseudo-field": {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", ":authority", "x:1", ":x", "y") }, reset: ProtocolError},
		"hop-by-hop field":     {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", ":authority", "x:1", "connection", "close") }, reset: ProtocolError},
		"line feed in value":   {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT", ":authority", "x:1", "a", "b\nc") }, reset: ProtocolError},
		"self-dependency": {do: func(r *raw) {
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: fieldBlock(":method", "CONNECT", ":authority", "x:1"), Priority: http2.PriorityParam{StreamDep: 1}}))
		}, reset: ProtocolError},
		"trailers without end": {do: func(r *raw) { r.connect(1); r.headers(1, false, "a", "b") }, reset: ProtocolError},
		"stream update of 0":   {do: func(r *raw) { r.connect(1); r.ok(r.fr.WriteWindowUpdate(1, 0)) }, reset: ProtocolError},
		"stream overflow":      {do: func(r *raw) { r.connect(1); r.ok(r.fr.WriteWindowUpdate(1, 1<<31-1)) }, reset: FlowControlError},
		"DATA after end": {do: func(r *raw) {
			r.connect(1)
			r.ok(r.fr.WriteData(1, true, nil))
			r.ok(r.fr.WriteData(1, false, []byte("x")))
		}, reset: StreamClosed},
		"GET": {do: func(r *raw) {
			r.headers(1, true, ":method", "GET", ":authority", "x:1", ":scheme", "https", ":path", "/")
		}, status: "400"},
		"no authority": {do: func(r *raw) { r.headers(1, false, ":method", "CONNECT") }, status: "400"},
		"fields too large": {do: func(r *raw) {
			r.headers(1, false, ":method", "CONNECT", ":authority", "x:1", "a", strings.Repeat("a", 60<<10), "b", strings.Repeat("b", 6<<10))
		}, status: "431"},
		"good": {do: func(r *raw) {
			r.ok(r.fr.WriteRawFrame(0x55, 0xff, 0, []byte("unknown type")))
			r.ok(r.fr.WriteSettings(http2.Setting{ID: 0x99, Val: 1}))
			r.connect(1)
		}, status: "200"},
		"good in pieces": {do: func(r *raw) {
			b := fieldBlock(":method", "CONNECT", ":authority", "x:1", "a", "b")
			r.ok(r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:3], PadLength: 7, Priority: http2.PriorityParam{StreamDep: 0, Weight: 3}}))
			r.ok(r.fr.WriteContinuation(1, false, b[3:9]))
			r.ok(r.fr.WriteContinuation(1, true, b[9:]))
		}, status: "200"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, hold, options{})
			r := dialRaw(t, w)
			tc.do(r)
			switch {
			case tc.goAway != 0:
				r.wantGoAway(tc.goAway)
			case tc.reset != 0:
				r.wantReset(1, tc.reset)
			default:
				r.wantStatus(1, tc.status)
			}
		})
	}
}

func TestBadPreface(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	c, err := net.Dial("tcp", w.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t, tls.Client(c, clientTLS(w.ca.issue(t, alice), []mesh.Identity{bob}, nil)))
	_, err = io.WriteString(r.c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	r.ok(err)
	r.wantGoAway(ProtocolError)
}

// TestPaddedAndEmptyData checks that only payload reaches the reader, and that padding's credit comes back.
func TestPaddedAndEmptyData(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	w := newWorld(t, func(_ context.Context, ss *ServerStream) {
		if s, err := ss.Accept(nil); err == nil {
			b, err := io.ReadAll(s)
			if err != nil {
				b = []byte(err.Error())
			}
			got <- string(b)
			_ = s.CloseWrite()
			<-s.Done()
		}
	}, options{})
	r := dialRaw(t, w)
	r.connect(1)
	r.ok(r.fr.WriteData(1, false, nil))
	r.ok(r.fr.WriteDataPadded(1, false, []byte("pad"), make([]byte, 200)))
	r.ok(r.fr.WriteDataPadded(1, false, nil, make([]byte, 255)))
	r.ok(r.fr.WriteData(1, false, []byte("ded")))
	back := 0
	for back < 201+256 {
		r.until("WINDOW_UPDATE", func(f http2.Frame) bool {
			u, ok := f.(*http2.WindowUpdateFrame)
			if ok && u.StreamID == 1 {
				back += int(u.Increment)
			}
			return ok && u.StreamID == 1
		})
	}
	r.ok(r.fr.WriteDataPadded(1, true, []byte("!"), make([]byte, 3)))
	if s := <-got; s != "padded!" || back != 201+256 {
		t.Errorf("read %q, %d bytes of credit for padding, want padded! and %d", s, back, 201+256)
	}
}

// TestOneMegabyteFrames receives the longest frames that are advertised, one byte per write at their edges.
func TestOneMegabyteFrames(t *testing.T) {
	t.Parallel()
	sum := make(chan int, 1)
	w := newWorld(t, func(_ context.Context, ss *ServerStream) {
		if s, err := ss.Accept(nil); err == nil {
			b, _ := io.ReadAll(s)
			sum <- bytes.Count(b, []byte{7})
			_ = s.CloseWrite()
			<-s.Done()
		}
	}, options{})
	r := dialRaw(t, w)
	r.connect(1)
	payload := bytes.Repeat([]byte{7}, 1<<20)
	var frame []byte
	for range 3 {
		frame = appendFrameHeader(frame, len(payload), typeData, 0, 1)
		frame = append(frame, payload...)
	}
	frame = appendFrameHeader(frame, 0, typeData, flagEndStream, 1)
	from := 0
	for _, cut := range []int{1, 8, 9, 10, 5000, 1<<20 + 8, 1<<20 + 13, 2 << 20, len(frame) - 3, len(frame)} {
		_, err := r.c.Write(frame[from:cut])
		r.ok(err)
		from = cut
	}
	if n := <-sum; n != 3<<20 {
		t.Errorf("%d bytes arrived, want %d", n, 3<<20)
	}
}

// stub is a connection that swallows what is written, in place of TLS.
type stub struct{ net.Conn }

func (stub) Read([]byte) (int, error)         { return 0, io.EOF }
func (stub) Write(p []byte) (int, error)      { return len(p), nil }
func (stub) Close() error                     { return nil }
func (stub) CloseWrite() error                { return nil }
func (stub) SetDeadline(time.Time) error      { return nil }
func (stub) SetWriteDeadline(time.Time) error { return nil }

// FuzzFrames feeds either role frames in pieces and checks the books afterwards.
func FuzzFrames(f *testing.F) {
	settings := appendSettings(nil, settingInitialWindowSize, 100)
	req := appendHeaderBlock(nil, fieldBlock(":method", "CONNECT", ":authority", "x:1"), 1, false, defaultMaxFrame)
	data := append(appendFrameHeader(nil, 5, typeData, flagPadded, 1), 1, 'a', 'b', 'c', 0)
	f.Add(true, uint8(3), append(append(append([]byte(clientPreface), settings...), req...), data...))
	f.Add(false, uint8(0), append(append(bytes.Clone(settings), appendHeaderBlock(nil, fieldBlock(":status", "200"), 1, false, defaultMaxFrame)...), data...))
	f.Add(false, uint8(9), append(bytes.Clone(settings), appendGoAway(nil, 0, NoError, "x")...))
	f.Add(true, uint8(1), append([]byte(clientPreface), appendRST(settings, 1, Cancel)...))
	f.Fuzz(func(t *testing.T, server bool, step uint8, in []byte) {
		cfg := connConfig{client: !server, maxStreams: 3, maxHeaderBytes: 1 << 10, pingInterval: time.Hour, pingTimeout: time.Hour}
		var c *conn
		n := 0
		cfg.serve = func(s *Stream, _ string) {
			if n++; n%3 == 0 {
				_ = (&ServerStream{stream: s}).Reject(503)
			}
			c.mu.Lock()
			c.handlers--
			c.mu.Unlock()
		}
		c = newConn(stub{}, newWire(stub{}), alice, cfg)
		defer c.fail(io.EOF)
		if !server {
			c.mu.Lock()
			c.reserved++
			c.mu.Unlock()
			if _, _, err := c.open(&Request{Authority: "x:1"}); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		for len(in) > 0 && err == nil {
			k := min(len(in), int(step)+1)
			c.rd.block = newBlock(false)
			copy(c.rd.block.buf, in[:k])
			err = c.rd.feed(c.rd.block.buf[:min(k, blockLen)])
			c.rd.tell()
			c.rd.block.release()
			in = in[k:]
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		var held int64
		for id, s := range c.streams {
			held += int64(s.q.size)
			if s.isEnded || s.id != id {
				t.Errorf("stream %d is known and over", id)
			}
		}
		if held > c.buffered || c.recvWindow < 0 || c.recvWindow > connWindow || len(c.streams) > 3 && server {
			t.Errorf("held %d of %d, window %d, %d streams", held, c.buffered, c.recvWindow, len(c.streams))
		}
	})
}

// FuzzMessage sorts out arbitrary header blocks.
func FuzzMessage(f *testing.F) {
	f.Add(fieldBlock(":method", "CONNECT", ":authority", "x:1", "baggage", "a=b"))
	f.Add(fieldBlock(":status", "200"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var fields []Header
		dec := hpack.NewDecoder(headerTable, func(h hpack.HeaderField) { fields = append(fields, Header{h.Name, h.Value}) })
		if _, err := dec.Write(in); err != nil || dec.Close() != nil {
			return
		}
		m, err := parseMessage(fields)
		if err != nil || m.checkRequest() != nil {
			return
		}
		for _, h := range m.fields {
			if !validName(h.Name) || !validValue(h.Value) {
				t.Errorf("field %q passed", h)
			}
		}
		if m.method == "CONNECT" && m.protocol == "" && (m.scheme != "" || m.path != "") {
			t.Errorf("CONNECT with scheme or path passed: %+v", m)
		}
	})
}

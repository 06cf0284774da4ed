package h2spec_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// These are the cases of h2spec that need a body, asked of a tunnel: what comes back is what was sent.

// peer is a client that does what it is told, frame by frame.
type peer struct {
	t  *testing.T
	fr *xhttp2.Framer
}

// connect opens tunnel 1 after the given settings, and waits for the 200.
func connect(t *testing.T, cfg *config.Config, settings ...xhttp2.Setting) *peer {
	t.Helper()
	tlsConfig, err := cfg.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", cfg.Addr(), tlsConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(meshtest.Wait)); err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, fr: xhttp2.NewFramer(c, c)}
	_, err = io.WriteString(c, xhttp2.ClientPreface)
	p.ok(err)
	p.ok(p.fr.WriteSettings(settings...))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	p.ok(enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"}))
	p.ok(enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.1.0.2:80"}))
	p.ok(p.fr.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}))
	for {
		if f, ok := p.next().(*xhttp2.HeadersFrame); ok {
			fields, err := hpack.NewDecoder(4096, nil).DecodeFull(f.HeaderBlockFragment())
			if err != nil || len(fields) == 0 || fields[0].Value != "200" || f.StreamEnded() {
				t.Fatalf("answer = %v, %v, want 200 and an open tunnel", fields, err)
			}
			return p
		}
	}
}

func (p *peer) ok(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// next returns the next frame that is no housekeeping.
func (p *peer) next() xhttp2.Frame {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		p.ok(err)
		switch f := f.(type) {
		case *xhttp2.SettingsFrame:
			if !f.IsAck() {
				p.ok(p.fr.WriteSettingsAck())
			}
		case *xhttp2.WindowUpdateFrame, *xhttp2.PriorityFrame:
		case *xhttp2.PingFrame:
			if f.IsAck() {
				return f
			}
			p.ok(p.fr.WritePing(true, f.Data))
		default:
			return f
		}
	}
}

// wantData reads exactly want, and fails at anything else.
func (p *peer) wantData(want string) {
	p.t.Helper()
	got := ""
	for got != want {
		f, ok := p.next().(*xhttp2.DataFrame)
		if !ok || len(f.Data()) == 0 {
			p.t.Fatalf("after %q of %q came %v", got, want, f)
		}
		got += string(f.Data())
		if len(got) > len(want) {
			p.t.Fatalf("got %q, want %q: more than the window allows", got, want)
		}
	}
}

// wantSilence checks that the server has nothing to say but the answer to a PING.
func (p *peer) wantSilence() {
	p.t.Helper()
	p.ok(p.fr.WritePing(false, [8]byte{1}))
	if f, ok := p.next().(*xhttp2.PingFrame); !ok {
		p.t.Fatalf("got %v where the window is closed", f)
	}
}

func window(n uint32) xhttp2.Setting {
	return xhttp2.Setting{ID: xhttp2.SettingInitialWindowSize, Val: n}
}

func TestTunnelWindowOfOne(t *testing.T) { // 6.9.1/1, 6.5.3/1
	t.Parallel()
	p := connect(t, serve(t), window(100), window(1))
	p.ok(p.fr.WriteData(1, false, []byte("abc")))
	p.wantData("a")
	p.wantSilence()
	p.ok(p.fr.WriteWindowUpdate(1, 2))
	p.wantData("bc")
}

func TestTunnelWindowGrowsBySettings(t *testing.T) { // 6.9.2/1
	t.Parallel()
	p := connect(t, serve(t), window(0))
	p.ok(p.fr.WriteData(1, false, []byte("abc")))
	p.wantSilence()
	p.ok(p.fr.WriteSettings(window(1)))
	p.wantData("a")
	p.wantSilence()
}

func TestTunnelWindowBelowZero(t *testing.T) { // 6.9.2/2
	t.Parallel()
	p := connect(t, serve(t), window(3))
	p.ok(p.fr.WriteData(1, false, []byte("abcdef")))
	p.wantData("abc")
	p.ok(p.fr.WriteSettings(window(2))) // one less than has been used: the window is -1
	p.ok(p.fr.WriteWindowUpdate(1, 1))  // 0
	p.wantSilence()
	p.ok(p.fr.WriteWindowUpdate(1, 1))
	p.wantData("d")
	p.wantSilence()
}

func TestTunnelHalfClosedRemote(t *testing.T) { // generic/2/2, generic/2/3
	t.Parallel()
	p := connect(t, serve(t), window(0))
	p.ok(p.fr.WriteData(1, true, []byte("abc")))
	p.ok(p.fr.WritePriority(1, xhttp2.PriorityParam{StreamDep: 0, Weight: 255}))
	p.wantSilence()
	p.ok(p.fr.WriteWindowUpdate(1, 10))
	p.wantData("abc")
	if f, ok := p.next().(*xhttp2.DataFrame); !ok || !f.StreamEnded() || len(f.Data()) != 0 {
		t.Errorf("after the echo came %v, want the end of the stream", f)
	}
}

package h2spec_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/summerwind/h2spec/config"
	xhttp2 "golang.org/x/net/http2"
)

// translated returns how to reach the server through a relay that turns requests into CONNECT. Towards h2spec the relay
// speaks plain TCP, towards the server mutual TLS.
func translated(t *testing.T, to *config.Config) *config.Config {
	t.Helper()
	tlsConfig, err := to.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, to.Addr(), tlsConfig)
		}
	}()
	cfg := *to
	cfg.TLS, cfg.Port = false, l.Addr().(*net.TCPAddr).Port
	return &cfg
}

func relay(c net.Conn, addr string, tlsConfig *tls.Config) {
	defer c.Close()
	up, err := tls.Dial("tcp", addr, tlsConfig)
	if err != nil {
		return
	}
	defer up.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = translate(up, bufio.NewReader(c))
		up.Close()
	})
	_, _ = io.Copy(c, up)
	c.Close()
	wg.Wait()
}

// The beginning of the field block that h2spec makes of a GET or POST, before :authority: three fields of HPACK's static
// table, so that the dynamic table is the same without them.
var requests = [][]byte{
	{0x82, 0x86, 0x84}, // :method GET, :scheme http, :path /
	{0x83, 0x86, 0x84}, // :method POST
}

// connect is the literal :method CONNECT, which is not added to the dynamic table.
const connectField = "\x02\x07CONNECT"

// translate copies frames and rewrites the HEADERS among them that begin as a web request does. Whatever is no frame is
// passed on as it is.
func translate(w io.Writer, r *bufio.Reader) error {
	preface := make([]byte, len(xhttp2.ClientPreface))
	n, err := io.ReadFull(r, preface)
	if _, werr := w.Write(preface[:n]); err != nil || werr != nil {
		return err
	}
	if string(preface) != xhttp2.ClientPreface {
		_, err := io.Copy(w, r)
		return err
	}
	for {
		var head [9]byte
		if n, err := io.ReadFull(r, head[:]); err != nil {
			_, _ = w.Write(head[:n])
			return err
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		n, err := io.ReadFull(r, payload)
		if err == nil && xhttp2.FrameType(head[3]) == xhttp2.FrameHeaders {
			payload = asConnect(payload, xhttp2.Flags(head[4]))
			head[0], head[1], head[2] = byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload))
			n = len(payload)
		}
		if _, werr := w.Write(append(head[:], payload[:n]...)); err != nil || werr != nil {
			return err
		}
	}
}

func asConnect(payload []byte, flags xhttp2.Flags) []byte {
	at := 0
	if flags.Has(xhttp2.FlagHeadersPadded) {
		at++
	}
	if flags.Has(xhttp2.FlagHeadersPriority) {
		at += 5
	}
	for _, prefix := range requests {
		if len(payload) > at && bytes.HasPrefix(payload[at:], prefix) {
			return append(append(bytes.Clone(payload[:at]), connectField...), payload[at+len(prefix):]...)
		}
	}
	return payload
}

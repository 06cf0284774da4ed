package httpproxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

type duplex struct {
	io.Reader
	out bytes.Buffer
}

func (d *duplex) Write(p []byte) (int, error) { return d.out.Write(p) }

func TestHandshake(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in     string
		want   Request
		status int
	}{
		"connect":         {in: "CONNECT echo.demo.ecs.local:8080 HTTP/1.1\r\nHost: x\r\n\r\nearly", want: Request{Host: "echo.demo.ecs.local", Port: 8080, Tunnel: true, Early: []byte("early")}},
		"connect no head": {in: "CONNECT 10.0.0.1:443 HTTP/1.0\r\n\r\n", want: Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 443, Tunnel: true, Early: []byte{}}},
		"connect v6":      {in: "CONNECT [fd00::1]:443 HTTP/1.1\r\n\r\n", want: Request{Addr: netip.MustParseAddr("fd00::1"), Port: 443, Tunnel: true, Early: []byte{}}},
		"get": {
			in: "GET http://echo:8080/a%2Fb?c=d HTTP/1.1\r\nHost: other\r\nAccept: */*\r\nProxy-Connection: keep-alive\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n",
			want: Request{Host: "echo", Port: 8080, Early: []byte(
				"GET /a%2Fb?c=d HTTP/1.1\r\nHost: echo:8080\r\nAccept: */*\r\nConnection: close\r\n\r\n")},
		},
		"post with body": {
			in:   "POST http://echo HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo",
			want: Request{Host: "echo", Port: 80, Early: []byte("POST / HTTP/1.1\r\nHost: echo\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbo")},
		},
		"query only": {in: "GET http://echo?x HTTP/1.1\r\n\r\n", want: Request{Host: "echo", Port: 80, Early: []byte("GET /?x HTTP/1.1\r\nHost: echo\r\nConnection: close\r\n\r\n")}},
		"websocket": {
			in:   "GET http://echo/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
			want: Request{Host: "echo", Port: 80, Early: []byte("GET / HTTP/1.1\r\nHost: echo\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")},
		},
		"body framing stays": {
			in:   "GET http://echo/ HTTP/1.1\r\nConnection: content-length\r\nContent-Length: 0\r\n\r\n",
			want: Request{Host: "echo", Port: 80, Early: []byte("GET / HTTP/1.1\r\nHost: echo\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")},
		},
		"origin form":      {in: "GET / HTTP/1.1\r\nHost: echo\r\n\r\n", status: 400},
		"https":            {in: "GET https://echo/ HTTP/1.1\r\n\r\n", status: 400},
		"user":             {in: "GET http://u:p@echo/ HTTP/1.1\r\n\r\n", status: 400},
		"no port":          {in: "CONNECT echo HTTP/1.1\r\n\r\n", status: 400},
		"port 0":           {in: "CONNECT echo:0 HTTP/1.1\r\n\r\n", status: 400},
		"port too high":    {in: "CONNECT echo:65536 HTTP/1.1\r\n\r\n", status: 400},
		"bad host":         {in: "CONNECT ec/ho:80 HTTP/1.1\r\n\r\n", status: 400},
		"bare v6":          {in: "CONNECT fd00::1:80 HTTP/1.1\r\n\r\n", status: 400},
		"zone":             {in: "CONNECT [fe80::1%eth0]:80 HTTP/1.1\r\n\r\n", status: 400},
		"empty brackets":   {in: "CONNECT [ HTTP/1.1\r\n\r\n", status: 400},
		"http 2":           {in: "PRI * HTTP/2.0\r\n\r\n", status: 400},
		"garbage":          {in: "\x16\x03\x01\r\n\r\n", status: 400},
		"folded field":     {in: "CONNECT echo:80 HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n", status: 400},
		"space before":     {in: "CONNECT echo:80 HTTP/1.1\r\nA : b\r\n\r\n", status: 400},
		"line feed inside": {in: "CONNECT echo:80 HTTP/1.1\r\nA: b\nHost: c\r\n\r\n", status: 400},
		"too long":         {in: "GET http://echo/ HTTP/1.1\r\nA: " + strings.Repeat("a", MaxHeadBytes) + "\r\n\r\n", status: 431},
		"too many fields":  {in: "GET http://echo/ HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n", status: 431},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &duplex{Reader: iotest.HalfReader(strings.NewReader(tc.in))}
			got, err := Handshake(d)
			if tc.status == 0 {
				if err != nil {
					t.Fatal(err)
				}
				rest, _ := io.ReadAll(d.Reader)
				got.Early = append(got.Early, rest...)
				if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Transformer("text", func(b []byte) string { return string(b) })); diff != "" {
					t.Error(diff)
				}
				return
			}
			resp, rerr := http.ReadResponse(bufio.NewReader(&d.out), nil)
			if err == nil || rerr != nil || resp.StatusCode != tc.status {
				t.Fatalf("error %v, answer %v %v, want status %d", err, resp, rerr, tc.status)
			}
		})
	}
}

func TestCutOff(t *testing.T) {
	t.Parallel()
	d := &duplex{Reader: strings.NewReader("CONNECT echo:80 HT")}
	if _, err := Handshake(d); err == nil || d.out.Len() != 0 {
		t.Errorf("error %v, answer %q, want an error and silence", err, d.out.String())
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte("CONNECT echo:80 HTTP/1.1\r\nHost: x\r\n\r\nearly"))
	f.Add([]byte("GET http://echo:8080/a?b HTTP/1.1\r\nConnection: x\r\nX: y\r\n\r\n"))
	f.Add([]byte("GET http://[::1]/ HTTP/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		req, err := Handshake(&duplex{Reader: bytes.NewReader(in)})
		if err != nil {
			return
		}
		if (req.Host == "") != req.Addr.IsValid() || req.Port == 0 {
			t.Errorf("request %v is not one of name and address", req)
		}
		if req.Tunnel {
			return
		}
		out, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(req.Early)))
		if err != nil { // net/http refuses more than we do; then so does the origin server
			return
		}
		if out.Host == "" || !out.Close && out.Header.Get("Upgrade") == "" && !strings.Contains(strings.ToLower(string(in)), "upgrade") {
			t.Errorf("rewritten to %q", req.Early)
		}
	})
}

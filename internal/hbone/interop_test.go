package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// TestAgainstNetHTTP2Server has the pool talk to golang.org/x/net/http2 as an independent peer.
func TestAgainstNetHTTP2Server(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	tc, err := serverTLS(ca.issue(t, bob), nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", tc)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := &http2.Server{MaxConcurrentStreams: 5}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.URL.Path != "" || r.Header.Get("baggage") != "a=b" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if r.Host == "denied:80" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(flushed{w}, r.Body)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				if c.(*tls.Conn).HandshakeContext(t.Context()) == nil { // it looks at the result at once
					srv.ServeConn(c, &http2.ServeConnOpts{Handler: h})
				}
			}()
		}
	}()
	cert := ca.issue(t, alice)
	p, err := NewPool(PoolConfig{Certificate: func(context.Context, mesh.Identity) (Certificate, error) { return cert, nil }, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = p.Run(ctx) }()
	key := Key{Source: alice, Peers: []mesh.Identity{bob}, Addr: netip.MustParseAddrPort(l.Addr().String())}
	req := Request{Authority: "10.0.0.1:80", Header: []Header{{"baggage", "a=b"}}}
	var wg sync.WaitGroup
	for i := range 12 { // more than one connection's worth
		wg.Go(func() {
			s, _, err := p.Connect(t.Context(), key, req)
			if err != nil {
				t.Error(err)
				return
			}
			want := bytes.Repeat([]byte{byte(i)}, 3<<20)
			go func() { _, _ = s.Write(want); _ = s.CloseWrite() }()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("echo of %d bytes: %d, %v", len(want), len(got), err)
			}
		})
	}
	wg.Wait()
	req.Authority = "denied:80"
	_, _, err = p.Connect(t.Context(), key, req)
	var se *StatusError
	if !errors.As(err, &se) || se.Status != http.StatusUnauthorized {
		t.Errorf("Connect = %v, want 401", err)
	}
}

type flushed struct{ w http.ResponseWriter }

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	return n, errors.Join(err, http.NewResponseController(f.w).Flush())
}

// TestAgainstNetHTTP2Transport has golang.org/x/net/http2 talk to the server.
func TestAgainstNetHTTP2Transport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(ctx context.Context, ss *ServerStream) {
		if ss.Authority() == "denied:80" {
			_ = ss.Reject(401)
			return
		}
		echo(ctx, ss)
	}, options{})
	cfg := clientTLS(w.ca.issue(t, alice), []mesh.Identity{bob}, nil)
	raw, err := net.Dial("tcp", w.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	cc, err := (&http2.Transport{}).NewClientConn(tls.Client(raw, cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	do := func(method, authority string, body io.Reader) *http.Response {
		t.Helper()
		u := &url.URL{Host: authority}
		if method != http.MethodConnect {
			u.Scheme, u.Path = "https", "/"
		}
		r, err := http.NewRequestWithContext(t.Context(), method, u.String(), body)
		if err != nil {
			t.Fatal(err)
		}
		r.URL = u
		resp, err := cc.RoundTrip(r)
		if err != nil {
			t.Fatalf("%s %s: %v", method, authority, err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	want := bytes.Repeat([]byte("x/net"), 1<<20)
	resp := do(http.MethodConnect, "10.0.0.1:80", bytes.NewReader(want))
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		t.Errorf("status %d, %d bytes, %v", resp.StatusCode, len(got), err)
	}
	pr, pw := io.Pipe()
	defer pw.Close()
	if resp := do(http.MethodConnect, "denied:80", pr); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %d, want 401", resp.StatusCode)
	}
	if resp := do(http.MethodGet, "10.0.0.1:80", nil); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status of GET %d, want 400", resp.StatusCode)
	}
	if err := cc.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

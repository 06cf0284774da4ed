package hbone

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// hold accepts and waits for the client to end.
func hold(_ context.Context, ss *ServerStream) {
	if s, err := ss.Accept(nil); err == nil {
		_, _ = io.Copy(io.Discard, s)
		_ = s.CloseWrite()
		<-s.Done()
	}
}

func TestStreamLimitOpensSecondConnection(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]options{
		"of the peer": {server: func(c *ServerConfig) { c.MaxStreams = 3 }},
		"of the pool": {pool: func(c *PoolConfig) { c.MaxStreams = 3 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, hold, o)
			var open []*Stream
			for range 7 {
				open = append(open, w.connect())
			}
			if n := w.accepted(); n != 3 {
				t.Errorf("%d connections for 7 streams of 3 each, want 3", n)
			}
			for _, s := range open {
				_ = s.CloseWrite()
				<-s.Done()
			}
			for range 5 { // freed streams are used again
				w.connect()
			}
			if n := w.accepted(); n != 3 {
				t.Errorf("%d connections after streams were freed, want 3", n)
			}
		})
	}
}

// TestOneStreamPeer opens many tunnels at once to a peer that takes one per connection.
func TestOneStreamPeer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{server: func(c *ServerConfig) { c.MaxStreams = 1 }})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { s.Close() })
		})
	}
	wg.Wait()
	if n := w.accepted(); n != 8 {
		t.Errorf("%d connections, want 8", n)
	}
}

func TestOneDialForMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
	}
	wg.Wait()
	if n := w.accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestKeysDoNotShare(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	other := mesh.Identity{TrustDomain: "cluster.local", Namespace: "x", ServiceAccount: "y"}
	keys := []Key{
		{Source: alice, Peers: []mesh.Identity{bob}, Addr: w.addr},
		{Source: alice, Peers: []mesh.Identity{bob, other}, Addr: w.addr},
		{Source: alice, Peers: []mesh.Identity{other, bob}, Addr: w.addr},
		{Source: other, Peers: []mesh.Identity{bob}, Addr: w.addr},
		{Source: alice, Peers: []mesh.Identity{bob}, Addr: w.addr, SourceIP: netip.MustParseAddr("10.0.0.1")},
	}
	for range 2 {
		for _, k := range keys {
			s, _, err := w.pool.Connect(t.Context(), k, Request{Authority: "x:1"})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
	}
	if n := w.accepted(); n != len(keys) {
		t.Errorf("%d connections, want %d", n, len(keys))
	}
}

func TestIdleConnectionIsReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t, echo, options{pool: func(c *PoolConfig) { c.IdleTimeout = 30 * time.Millisecond }})
	s := w.connect()
	tick := time.NewTimer(100 * time.Millisecond)
	<-tick.C
	if n := w.served; len(n) != 0 {
		t.Fatal("a connection with a stream was released")
	}
	_ = s.CloseWrite()
	eventually(t, "release", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.served) == 1
	})
	if w.served[0] != nil {
		t.Errorf("the server saw %v, want an orderly end", w.served[0])
	}
	w.pool.mu.Lock()
	left := len(w.pool.groups)
	w.pool.mu.Unlock()
	if left != 0 {
		t.Errorf("%d groups left", left)
	}
	w.connect()
}

func TestExpiredCertificateIsNotReused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	w.connect()
	w.pool.mu.Lock()
	for c := range w.pool.conns {
		c.mu.Lock()
		c.expires = time.Now().Add(-time.Second)
		c.mu.Unlock()
	}
	w.pool.mu.Unlock()
	w.connect()
	if n := w.accepted(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestPeerIdentity(t *testing.T) {
	t.Parallel()
	foreign := newAuthority(t)
	for name, tc := range map[string]struct {
		peers   []mesh.Identity
		client  func(w *world) Certificate
		want    string // of the client's error
		wantSrv string // of the server's
	}{
		"wrong SAN":          {peers: []mesh.Identity{alice, eve}, want: "identity verification error: peer did not present the expected SAN (" + alice.String() + "," + eve.String() + "), got " + bob.String()},
		"nobody expected":    {peers: nil, want: "identity verification error"},
		"other trust domain": {peers: []mesh.Identity{bob}, client: func(w *world) Certificate { return w.ca.issue(w.t, eve) }, want: "remote error: tls", wantSrv: "expected trustdomain (cluster.local), got " + eve.String()},
		"no SPIFFE name":     {peers: []mesh.Identity{bob}, client: func(w *world) Certificate { return w.ca.issue(w.t) }, want: "remote error: tls", wantSrv: "expected trustdomain"},
		"no certificate":     {peers: []mesh.Identity{bob}, client: func(w *world) Certificate { return Certificate{Roots: w.ca.pool} }, want: "remote error: tls", wantSrv: "didn't provide a certificate"},
		"foreign authority of the client": {peers: []mesh.Identity{bob}, client: func(w *world) Certificate {
			c := foreign.issue(w.t, alice)
			c.Roots = w.ca.pool
			return c
		}, want: "remote error: tls", wantSrv: "unknown authority"},
		"foreign authority of the server": {peers: []mesh.Identity{bob}, client: func(w *world) Certificate {
			c := w.ca.issue(w.t, alice)
			c.Roots = foreign.pool
			return c
		}, want: "unknown authority"},
		"no roots": {peers: []mesh.Identity{bob}, client: func(w *world) Certificate {
			c := w.ca.issue(w.t, alice)
			c.Roots = nil
			return c
		}, want: "no roots"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, hold, options{})
			if tc.client != nil {
				cert := tc.client(w)
				w.pool.cfg.Certificate = func(context.Context, mesh.Identity) (Certificate, error) { return cert, nil }
			}
			k := w.key()
			k.Peers = tc.peers
			s, _, err := w.pool.Connect(t.Context(), k, Request{Authority: "x:1"})
			if s != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Connect = %v, want %q", err, tc.want)
			}
			eventually(t, "server's verdict", func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return len(w.served) > 0
			})
			if got := w.served[0]; tc.wantSrv != "" && (got == nil || !strings.Contains(got.Error(), tc.wantSrv)) {
				t.Errorf("ServeConn = %v, want %q", got, tc.wantSrv)
			}
		})
	}
}

func TestVerifyPeerMayRefuse(t *testing.T) {
	t.Parallel()
	revoked := errors.New("revoked")
	w := newWorld(t, hold, options{pool: func(c *PoolConfig) {
		c.VerifyPeer = func(chain []*x509.Certificate) error {
			if len(chain) != 2 {
				return errors.New("chain has no root")
			}
			return revoked
		}
	}})
	_, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
	wantErr(t, err, revoked)
}

// TestCancelledCallerHarmsNobody gives up while another caller waits for the same dial.
func TestCancelledCallerHarmsNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	release, dialling := make(chan struct{}), make(chan struct{})
	var dials atomic.Int32
	w.pool.cfg.Dial = func(_ context.Context, key Key) (net.Conn, error) {
		dials.Add(1)
		close(dialling)
		<-release
		return net.Dial("tcp", key.Addr.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, _, err := w.pool.Connect(ctx, w.key(), Request{Authority: "x:1"}); first <- err }()
	<-dialling
	second := make(chan error, 1)
	go func() {
		s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
		if err == nil {
			s.Close()
		}
		second <- err
	}()
	cancel()
	wantErr(t, <-first, context.Canceled)
	close(release)
	if err := <-second; err != nil {
		t.Errorf("second caller: %v", err)
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d dials, want 1", n)
	}
}

func TestRefusedAndFailing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{pool: func(c *PoolConfig) { c.MaxConns = 1 }})
	k := w.key()
	k.Addr = netip.MustParseAddrPort("127.0.0.1:1")
	_, _, err := w.pool.Connect(t.Context(), k, Request{Authority: "x:1"})
	wantErr(t, err, syscall.ECONNREFUSED)
	for _, req := range []Request{{}, {Authority: "a\nb"}, {Authority: "x:1", Header: []Header{{":path", "/"}}}, {Authority: "x:1", Header: []Header{{"a", "b\r\n"}}}} {
		if _, _, err := w.pool.Connect(t.Context(), w.key(), req); err == nil {
			t.Errorf("Connect(%q) succeeded", req)
		}
	}
	w.connect()
	k = w.key()
	k.SourceIP = netip.MustParseAddr("10.0.0.1")
	if _, _, err := w.pool.Connect(t.Context(), k, Request{Authority: "x:1"}); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("Connect beyond MaxConns = %v", err)
	}
	w.pool.cfg.Certificate = func(context.Context, mesh.Identity) (Certificate, error) { return Certificate{}, io.ErrClosedPipe }
	w.pool.cfg.MaxConns = 9
	_, _, err = w.pool.Connect(t.Context(), k, Request{Authority: "x:1"})
	wantErr(t, err, io.ErrClosedPipe)
}

// TestChurn opens, uses and abandons tunnels from many goroutines, and checks what arrives.
func TestChurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, echo, options{server: func(c *ServerConfig) { c.MaxStreams = 20 }})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 30 {
				s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
				if err != nil {
					t.Error(err)
					return
				}
				want := bytes.Repeat([]byte{byte(i), byte(j)}, 1+(i*j*997)%40000)
				switch j % 5 {
				case 3:
					_, _ = s.Write(want)
					s.Reset(Cancel)
					continue
				case 4:
					s.Close()
					continue
				}
				go func() { _, _ = s.Write(want); _ = s.CloseWrite() }()
				got, err := io.ReadAll(s)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("echo of %d bytes: %d, %v", len(want), len(got), err)
				}
				s.Close()
			}
		})
	}
	wg.Wait()
	w.pool.mu.Lock()
	conns := make([]*conn, 0, len(w.pool.conns))
	for c := range w.pool.conns {
		conns = append(conns, c)
	}
	w.pool.mu.Unlock()
	for _, c := range conns {
		eventually(t, "all streams freed", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.streams) == 0 && c.reserved == 0 && c.buffered == 0
		})
	}
	if n := len(conns); n > 4 {
		t.Errorf("%d connections for 16 streams at a time", n)
	}
}

// TestOnlyTLS13 refuses an older client.
func TestOnlyTLS13(t *testing.T) {
	t.Parallel()
	w := newWorld(t, hold, options{})
	c, err := tls.Dial("tcp", w.addr.String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}})
	if err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

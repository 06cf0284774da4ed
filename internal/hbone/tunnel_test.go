package hbone

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

func TestEcho(t *testing.T) {
	t.Parallel()
	w := newWorld(t, echo, options{})
	s := w.connect()
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "hello" {
		t.Fatalf("ReadAll = %q, %v, want hello", got, err)
	}
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("stream is not done after both ends")
	}
}

func TestRequestAndAnswerFields(t *testing.T) {
	t.Parallel()
	want := []Header{{"baggage", "k8s.cluster.name=Kubernetes"}, {"forwarded", `for="10.0.0.9:1234"`}, {"baggage", "second"}}
	got := make(chan *ServerStream, 1)
	w := newWorld(t, func(_ context.Context, s *ServerStream) {
		got <- s
		st, err := s.Accept([]Header{{"baggage", "k8s.pod.name=x"}})
		if err == nil {
			_ = st.CloseWrite()
			<-st.Done()
		}
	}, options{})
	s, resp, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "echo.demo.ecs.local:8080", Header: want})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ss := <-got
	if diff := cmp.Diff(want, ss.Header()); diff != "" {
		t.Error(diff)
	}
	if ss.Authority() != "echo.demo.ecs.local:8080" || ss.Peer() != alice || resp.Get("baggage") != "k8s.pod.name=x" || resp.Status != 200 {
		t.Errorf("authority %q, peer %v, answer %v", ss.Authority(), ss.Peer(), resp)
	}
	if ss.Get("forwarded") != want[1].Value || ss.LocalAddr().String() != w.addr.String() {
		t.Errorf("forwarded %q, local %v", ss.Get("forwarded"), ss.LocalAddr())
	}
}

func TestReject(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(_ context.Context, s *ServerStream) { _ = s.Reject(401) }, options{})
	for range 3 {
		_, resp, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "10.0.0.1:80"})
		var se *StatusError
		if !errors.As(err, &se) || resp.Status != 401 || err.Error() != "http status: 401 Unauthorized" {
			t.Fatalf("Connect = %v, %v, want 401", resp, err)
		}
	}
	if n := w.accepted(); n != 1 {
		t.Errorf("%d connections, want 1: a refusal keeps the connection", n)
	}
}

// TestHalfCloseOrders ends the two directions in either order and checks that the other one goes on.
func TestHalfCloseOrders(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			heard := make(chan string, 1)
			w := newWorld(t, func(_ context.Context, ss *ServerStream) {
				s, err := ss.Accept(nil)
				if err != nil {
					return
				}
				if first == "client" {
					b, _ := io.ReadAll(s)
					heard <- string(b)
				}
				_, _ = s.Write([]byte("from server"))
				_ = s.CloseWrite()
				if first == "server" {
					b, _ := io.ReadAll(s)
					heard <- string(b)
				}
				<-s.Done()
			}, options{})
			s := w.connect()
			read := func() {
				b, err := io.ReadAll(s)
				if err != nil || string(b) != "from server" {
					t.Errorf("client read %q, %v", b, err)
				}
			}
			if first == "server" {
				read()
			}
			_, _ = s.Write([]byte("from client"))
			if err := s.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write after CloseWrite: %v", err)
			}
			if got := <-heard; got != "from client" {
				t.Errorf("server read %q", got)
			}
			if first == "client" {
				read()
			}
			<-s.Done()
		})
	}
}

// TestFullDuplex moves data both ways at once over the four combinations of fast and plain paths.
func TestFullDuplex(t *testing.T) {
	t.Parallel()
	const size = 24 << 20 // more than all windows
	for _, fast := range []bool{true, false} {
		t.Run(map[bool]string{true: "sockets", false: "readwrite"}[fast], func(t *testing.T) {
			t.Parallel()
			var server sync.WaitGroup
			server.Add(1)
			w := newWorld(t, func(_ context.Context, ss *ServerStream) {
				defer server.Done()
				s, err := ss.Accept(nil)
				if err != nil {
					return
				}
				duplex(t, s, fast, 2, size)
				<-s.Done()
			}, options{})
			duplex(t, w.connect(), fast, 1, size)
			server.Wait()
		})
	}
}

// duplex sends size random bytes of seed to s and expects those of 3-seed; with sockets, both go through a TCP pair.
func duplex(t *testing.T, s *Stream, fast bool, seed byte, size int) {
	t.Helper()
	var wg sync.WaitGroup
	source := func(seed byte) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{seed}), int64(size)) }
	want, got := sha256.New(), sha256.New()
	_, _ = io.Copy(want, source(3-seed))
	if fast {
		app, proxy := tcpPair(t)
		wg.Go(func() {
			if n, err := io.Copy(s, proxy); err != nil || n != int64(size) {
				t.Errorf("sent %d, %v", n, err)
			}
			_ = s.CloseWrite()
		})
		wg.Go(func() {
			if n, err := io.Copy(proxy, s); err != nil || n != int64(size) {
				t.Errorf("received %d, %v", n, err)
			}
			_ = proxy.CloseWrite()
		})
		wg.Go(func() { _, _ = io.Copy(onlyWriter{app}, source(seed)); _ = app.CloseWrite() })
		_, _ = io.Copy(got, app)
	} else {
		wg.Go(func() {
			if n, err := io.Copy(onlyWriter{s}, source(seed)); err != nil || n != int64(size) {
				t.Errorf("sent %d, %v", n, err)
			}
			_ = s.CloseWrite()
		})
		if n, err := io.Copy(got, onlyReader{s}); err != nil || n != int64(size) {
			t.Errorf("received %d, %v", n, err)
		}
	}
	wg.Wait()
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		t.Error("bytes differ")
	}
	if s.BytesSent() != uint64(size) || s.BytesReceived() != uint64(size) {
		t.Errorf("counted %d and %d, want %d", s.BytesSent(), s.BytesReceived(), size)
	}
}

func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// TestStalledStreamsStarveNobody fills streams nobody reads and then uses another of the same connection.
func TestStalledStreamsStarveNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(ctx context.Context, ss *ServerStream) {
		if ss.Authority() == "stall:1" {
			if s, err := ss.Accept(nil); err == nil {
				<-s.Done()
			}
			return
		}
		echo(ctx, ss)
	}, options{})
	for range 5 { // more than the connection window in all
		s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "stall:1"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		go func() { _, _ = s.Write(make([]byte, 8<<20)) }() // ends with the stream
		eventually(t, "window used up", func() bool { return s.BytesSent() == streamWindow })
	}
	s := w.connect()
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := s.Write([]byte("alive")); err != nil {
		t.Fatal(err)
	}
	_ = s.CloseWrite()
	if b, err := io.ReadAll(s); err != nil || string(b) != "alive" {
		t.Fatalf("read %q, %v", b, err)
	}
	if n := w.accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(ctx context.Context, ss *ServerStream) {
		if ss.Authority() == "stall:1" {
			if s, err := ss.Accept(nil); err == nil {
				<-s.Done()
			}
			return
		}
		echo(ctx, ss)
	}, options{})
	stalled, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "stall:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	_ = stalled.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := stalled.Write(make([]byte, 8<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n > streamWindow {
		t.Errorf("stalled Write = %d, %v, want a timeout", n, err)
	}
	s := w.connect()
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Read = %v, want a timeout", err)
	}
	_ = s.SetReadDeadline(time.Time{})
	_, _ = s.Write([]byte("x"))
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatalf("Read after the deadline was lifted: %v", err)
	}
}

// TestResetByServer checks how each code reads and writes at the client.
func TestResetByServer(t *testing.T) {
	t.Parallel()
	for code, want := range map[ErrCode]struct {
		read  error
		write error
	}{
		Cancel:        {io.EOF, syscall.EPIPE},
		NoError:       {io.EOF, syscall.EPIPE},
		StreamClosed:  {syscall.EPIPE, syscall.EPIPE},
		InternalError: {&StreamError{InternalError, true}, &StreamError{InternalError, true}},
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(_ context.Context, ss *ServerStream) {
				if s, err := ss.Accept(nil); err == nil {
					_, _ = s.Write([]byte("last words"))
					s.Reset(code)
				}
			}, options{})
			s := w.connect()
			b := make([]byte, 10)
			if _, err := io.ReadFull(s, b); err != nil || string(b) != "last words" {
				t.Errorf("before the reset: %q, %v", b, err)
			}
			_, rerr := s.Read(b)
			<-s.Done()
			_, werr := s.Write(b)
			same := func(err, want error) bool {
				var se *StreamError
				if errors.As(want, &se) {
					var got *StreamError
					return errors.As(err, &got) && *got == *se
				}
				return errors.Is(err, want)
			}
			if !same(rerr, want.read) || !same(werr, want.write) {
				t.Errorf("read %v, write %v, want %v, %v", rerr, werr, want.read, want.write)
			}
		})
	}
}

// TestResetPhases resets before the answer, from either side, and while a writer waits for flow control.
func TestResetPhases(t *testing.T) {
	t.Parallel()
	t.Run("server before answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(context.Context, *ServerStream) {}, options{})
		_, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "a:1"})
		var se *StreamError
		if !errors.As(err, &se) || se.Code != InternalError || !se.Remote {
			t.Fatalf("Connect = %v, want INTERNAL_ERROR of the peer", err)
		}
	})
	t.Run("client before answer", func(t *testing.T) {
		t.Parallel()
		gone := make(chan error, 1)
		started := make(chan struct{})
		w := newWorld(t, func(ctx context.Context, ss *ServerStream) {
			close(started)
			<-ctx.Done()
			_, err := ss.Accept(nil)
			gone <- err
		}, options{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-started; cancel() }()
		_, _, err := w.pool.Connect(ctx, w.key(), Request{Authority: "a:1"})
		wantErr(t, err, context.Canceled)
		if err := <-gone; err == nil {
			t.Error("Accept succeeded on a stream the client had given up")
		}
	})
	t.Run("while a writer waits", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(_ context.Context, ss *ServerStream) {
			if s, err := ss.Accept(nil); err == nil {
				<-s.Done()
			}
		}, options{})
		s := w.connect()
		done := make(chan error)
		go func() { _, err := s.Write(make([]byte, 32<<20)); done <- err }()
		eventually(t, "window used up", func() bool { return s.BytesSent() == streamWindow })
		s.Reset(Cancel)
		var se *StreamError
		if err := <-done; !errors.As(err, &se) || se.Remote {
			t.Errorf("Write = %v, want a local reset", err)
		}
	})
}

func TestConnectionLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, echo, options{})
	s := w.connect()
	w.mu.Lock()
	for _, c := range w.conns {
		c.Close()
	}
	w.mu.Unlock()
	_, err := s.Read(make([]byte, 1))
	wantErr(t, err, ErrConnectionLost)
	_, err = s.WriteTo(io.Discard)
	wantErr(t, err, ErrConnectionLost)
	w.connect() // on a new connection
}

// TestConnectOver is double HBONE: a tunnel to a gateway, and inside it one to the real peer.
func TestConnectOver(t *testing.T) {
	t.Parallel()
	carol := mesh.Identity{TrustDomain: "cluster.local", Namespace: "far", ServiceAccount: "carol"}
	var carolCert atomic.Pointer[Certificate]
	inner := newWorld(t, echo, options{server: func(c *ServerConfig) {
		c.Certificate = func(context.Context) (Certificate, error) { return *carolCert.Load(), nil }
	}})
	cert := inner.ca.issue(t, carol)
	carolCert.Store(&cert)
	gateway := newWorld(t, func(_ context.Context, ss *ServerStream) {
		up, err := net.Dial("tcp", inner.addr.String())
		if err != nil {
			_ = ss.Reject(503)
			return
		}
		defer up.Close()
		s, err := ss.Accept(nil)
		if err != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(up, s); _ = up.(*net.TCPConn).CloseWrite() })
		_, _ = io.Copy(s, up)
		_ = s.CloseWrite()
		wg.Wait()
	}, options{})
	for _, peers := range [][]mesh.Identity{{carol}, {bob}} {
		outer := gateway.connect()
		s, resp, err := ConnectOver(t.Context(), outer, inner.ca.issue(t, alice), peers, Request{Authority: "svc.far:80"})
		if peers[0] == bob {
			var ie *IdentityError
			if !errors.As(err, &ie) {
				t.Errorf("ConnectOver with the wrong peer = %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if resp.Peer != carol {
			t.Errorf("peer %v, want %v", resp.Peer, carol)
		}
		payload := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
		go func() { _, _ = s.Write(payload); _ = s.CloseWrite() }()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("echo of %d bytes: %d, %v", len(payload), len(got), err)
		}
		select {
		case <-outer.Done():
		case <-time.After(5 * time.Second):
			t.Error("the outer tunnel outlives the inner one")
		}
	}
}

// TestInMemory runs over net.Pipe, which has no descriptor and no buffer.
func TestInMemory(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	cert := ca.issue(t, bob)
	srv, err := NewServer(ServerConfig{Certificate: func(context.Context) (Certificate, error) { return cert, nil }, Handler: echo, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- srv.ServeConn(t.Context(), b) }()
	s, _, err := ConnectOver(t.Context(), a, ca.issue(t, alice), []mesh.Identity{bob}, Request{Authority: "x:1"})
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("pipe", 1<<16)
	go func() { _, _ = io.WriteString(s, want); _ = s.CloseWrite() }()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != want {
		t.Fatalf("read %d bytes, %v, want %d", len(got), err, len(want))
	}
	if err := <-served; err != nil {
		t.Errorf("ServeConn = %v, want an orderly end", err)
	}
}

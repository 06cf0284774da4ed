package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// silent accepts TCP and says nothing.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
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
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestTimeouts(t *testing.T) {
	t.Parallel()
	t.Run("client handshake", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, hold, options{pool: func(c *PoolConfig) { c.HandshakeTimeout = 30 * time.Millisecond }})
		k := w.key()
		k.Addr = silent(t)
		_, _, err := w.pool.Connect(t.Context(), k, Request{Authority: "x:1"})
		wantErr(t, err, context.DeadlineExceeded)
	})
	t.Run("server handshake", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, hold, options{server: func(c *ServerConfig) { c.HandshakeTimeout = 30 * time.Millisecond }})
		c, err := net.Dial("tcp", w.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.ReadAll(c)
		eventually(t, "ServeConn returns", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.served) == 1 })
		wantErr(t, w.served[0], context.DeadlineExceeded)
	})
	t.Run("connect", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, hold, options{pool: func(c *PoolConfig) {
			c.ConnectTimeout = 20 * time.Millisecond
			c.Dial = func(ctx context.Context, _ Key) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}})
		_, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
		wantErr(t, err, ErrConnectTimeout)
	})
	t.Run("answer", func(t *testing.T) {
		t.Parallel()
		gone := make(chan struct{})
		w := newWorld(t, func(ctx context.Context, _ *ServerStream) { <-ctx.Done(); close(gone) }, options{
			pool: func(c *PoolConfig) { c.AnswerTimeout = 30 * time.Millisecond },
		})
		_, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
		if err == nil || !strings.Contains(err.Error(), "no answer to CONNECT x:1") {
			t.Errorf("Connect = %v", err)
		}
		<-gone
	})
	t.Run("ping", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, hold, options{pool: func(c *PoolConfig) { c.PingInterval, c.PingTimeout = 10*time.Millisecond, 500*time.Millisecond }})
		s := w.connect()
		tick := time.NewTimer(800 * time.Millisecond)
		select {
		case <-s.Done():
			t.Error("a connection whose pings are answered was ended")
		case <-tick.C:
		}
	})
}

// TestDeadPeer puts a proxy in between that stops passing anything on: pings find out, at both ends.
func TestDeadPeer(t *testing.T) {
	t.Parallel()
	var cut atomic.Bool
	quick := func(i, o *time.Duration) { *i, *o = 20*time.Millisecond, 60*time.Millisecond }
	w := newWorld(t, hold, options{
		pool:   func(c *PoolConfig) { quick(&c.PingInterval, &c.PingTimeout) },
		server: func(c *ServerConfig) { quick(&c.PingInterval, &c.PingTimeout) },
	})
	w.pool.cfg.Dial = func(_ context.Context, key Key) (net.Conn, error) {
		c, err := net.Dial("tcp", key.Addr.String())
		return &cuttable{Conn: c, cut: &cut}, err
	}
	s := w.connect()
	cut.Store(true)
	select {
	case <-s.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the stream survives its dead connection")
	}
	_, err := s.Read(make([]byte, 1))
	wantErr(t, err, ErrConnectionLost)
}

// cuttable loses what is written once cut.
type cuttable struct {
	net.Conn
	cut *atomic.Bool
}

func (c *cuttable) Write(p []byte) (int, error) {
	if c.cut.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// counted counts the writes to a connection, which are its segments as long as they are small.
type counted struct {
	net.Conn
	n *atomic.Int32
}

func (c counted) Write(p []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(p)
}

func (c counted) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// TestFirstTunnelInFewSegments counts what it takes from nothing to the answer of the first request: the client's hello,
// the server's flight, the end of the handshake with the request, the settings with the answer. What is in no hurry waits
// for a millisecond only, so a slow run proves nothing and is repeated.
func TestFirstTunnelInFewSegments(t *testing.T) {
	t.Parallel()
	var client, server atomic.Int32
	seen := make(chan [2]int32, 1)
	w := newWorld(t, func(_ context.Context, ss *ServerStream) {
		for c, settled := ss.stream.c, false; !settled; runtime.Gosched() { // as if the application had to be reached first
			c.mu.Lock()
			settled = c.late != nil || server.Load() > 1
			c.mu.Unlock()
		}
		if s, err := ss.Accept(nil); err == nil {
			seen <- [2]int32{client.Load(), server.Load()}
			<-s.Done()
		}
	}, options{
		listen: func(c net.Conn) net.Conn { return counted{c, &server} },
		pool: func(c *PoolConfig) {
			c.Dial = func(ctx context.Context, k Key) (net.Conn, error) {
				var d net.Dialer
				raw, err := d.DialContext(ctx, "tcp", k.Addr.String())
				return counted{raw, &client}, err
			}
		},
	})
	var got [2]int32
	for i := range 50 {
		client.Store(0)
		server.Store(0)
		key := w.key()
		key.SourceIP = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) // a connection of its own
		s, _, err := w.pool.Connect(t.Context(), key, Request{Authority: "x:1"})
		if err != nil {
			t.Fatal(err)
		}
		got = <-seen
		_ = s.CloseWrite()
		s.Close()
		if got == [2]int32{2, 2} {
			return
		}
		eventually(t, "nothing is under way", func() bool { s.c.mu.Lock(); defer s.c.mu.Unlock(); return len(s.c.ctl) == 0 })
	}
	t.Errorf("%d writes of the client and %d of the server, want 2 and 2", got[0], got[1])
}

// TestAbandonedDial gives up on a connection before it is made. It is made nevertheless, without the request, and serves
// the next one.
func TestAbandonedDial(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	dialling, release := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(ctx context.Context, ss *ServerStream) {
		asked.Add(1)
		echo(ctx, ss)
	}, options{pool: func(c *PoolConfig) {
		c.Dial = func(ctx context.Context, k Key) (net.Conn, error) {
			close(dialling)
			<-release
			var d net.Dialer
			return d.DialContext(ctx, "tcp", k.Addr.String())
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-dialling; cancel() }()
	if _, _, err := w.pool.Connect(ctx, w.key(), Request{Authority: "left:1"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Connect = %v, want %v", err, context.Canceled)
	}
	close(release)
	eventually(t, "the connection is there and has its settings", func() bool {
		w.pool.mu.Lock()
		defer w.pool.mu.Unlock()
		for c := range w.pool.conns {
			select {
			case <-c.settings:
				return true
			default:
			}
		}
		return false
	})
	if n := asked.Load(); n != 0 {
		t.Errorf("the server was asked %d times by one who had left", n)
	}
	w.connect()
	if n := w.accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

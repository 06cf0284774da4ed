package hbone

import (
	"context"
	"io"
	"net"
	"net/netip"
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

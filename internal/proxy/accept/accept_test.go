package accept

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// failing fails with each of its errors in turn and notes when it was asked.
type failing struct {
	net.Listener
	errs  []error
	asked []time.Duration
	start time.Time
}

func (l *failing) Accept() (net.Conn, error) {
	l.asked = append(l.asked, time.Since(l.start))
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (*failing) Close() error   { return nil }
func (*failing) Addr() net.Addr { return &net.TCPAddr{} }

// While there are no descriptors, the listener is asked less and less often, and at least once a second; what is not
// temporary ends it.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := &net.OpError{Op: "accept", Err: syscall.EMFILE}
		l := &failing{start: time.Now()}
		for range 10 {
			l.errs = append(l.errs, full)
		}
		l.errs = append(l.errs, net.ErrClosed)
		loop := Loop{Name: "test", Listener: l, Log: meshtest.Discard()}
		if err := loop.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run() = %v, want the listener's error", err)
		}
		if first := l.asked[1]; first != minBackoff {
			t.Errorf("the first wait is %v, want %v", first, minBackoff)
		}
		if last := l.asked[10] - l.asked[9]; last != maxBackoff {
			t.Errorf("the last wait is %v, want %v", last, maxBackoff)
		}
	})
}

// More connections than there are slots are reset, a slot is free again when its connection has ended, and a listener
// that stops has given its port back.
func TestSlots(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	var conns sync.WaitGroup
	release, served := make(chan struct{}), make(chan struct{}, 10)
	loop := Loop{Name: "test", Listener: l, Slots: make(chan struct{}, 1), Conns: &conns, Log: meshtest.Discard(), Serve: func(c *net.TCPConn) {
		defer c.Close()
		served <- struct{}{}
		<-release
	}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	dial := func() (net.Conn, error) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
	if _, err := dial(); err != nil {
		t.Fatal(err)
	}
	<-served
	c, err := dial()
	if err == nil { // the reset may be quicker than the kernel's word that the connection stands
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection beyond the limit ended with %v, want a reset", err)
	}
	release <- struct{}{}
	meshtest.Eventually(t, "the slot is free", func() bool { return len(loop.Slots) == 0 })
	if _, err := dial(); err != nil {
		t.Fatal(err)
	}
	<-served
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
	again, err := net.Listen("tcp", addr)
	if err != nil {
		t.Errorf("the port is not free: %v", err)
	} else {
		again.Close()
	}
	close(release)
	conns.Wait()
}

// Package accept hands out the connections of a listener, within a limit, until it is told to stop.
package accept

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Loop accepts connections of one listener.
type Loop struct {
	Name     string        // of the listener, in metrics and log
	Listener net.Listener  // of TCP; Run closes it
	Slots    chan struct{} // one token per connection that is being served; more are reset
	Serve    func(*net.TCPConn)
	Conns    *sync.WaitGroup // of those being served

	Metrics *telemetry.Metrics
	Log     *slog.Logger
}

// The waits after an error that is not the listener's, such as that there are no descriptors left.
const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Run accepts until ctx ends or the listener fails. When it returns the port is free, and connections may be served still.
func (l Loop) Run(ctx context.Context) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { l.Listener.Close(); close(closed) })
	defer func() {
		if stop() {
			l.Listener.Close()
			return
		}
		<-closed // the port is free for a successor only when Close has returned
	}()
	for backoff := time.Duration(0); ; {
		c, err := l.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var ne interface{ Temporary() bool }
			if !errors.As(err, &ne) || !ne.Temporary() {
				return fmt.Errorf("accept on %s: %w", l.Listener.Addr(), err)
			}
			// Out of descriptors, most likely: the listener is fine, so wait for connections to end.
			backoff = min(max(2*backoff, minBackoff), maxBackoff)
			l.Log.Warn("connection could not be accepted", logattr.Listener(l.Name), logattr.Err(err))
			if !wait(ctx, backoff) {
				return nil
			}
			continue
		}
		backoff = 0
		tc, ok := c.(*net.TCPConn)
		if !ok {
			c.Close()
			return fmt.Errorf("accept on %s: not a TCP listener", l.Listener.Addr())
		}
		select {
		case l.Slots <- struct{}{}:
		default:
			l.Metrics.LimitReached("connections")
			_ = tc.SetLinger(0)
			tc.Close()
			continue
		}
		l.Conns.Go(func() { l.serve(tc) })
	}
}

func (l Loop) serve(c *net.TCPConn) {
	l.Metrics.Connections(l.Name, 1)
	defer func() {
		l.Metrics.Connections(l.Name, -1)
		<-l.Slots
	}()
	l.Serve(c)
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

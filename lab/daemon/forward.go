package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

const (
	// maxForwarded bounds the connections that one forwarder carries at a time; more wait in the accept queue.
	maxForwarded = 1024
	// forwardDial is how long the far end may take to accept.
	forwardDial = 5 * time.Second
	// acceptPause is the pause after a passing error of accept, such as no free descriptor.
	acceptPause = 100 * time.Millisecond
)

// forward carries connections from a listener that belongs to the host's network namespace to an address inside the
// lab's, until ctx ends. A socket keeps the namespace it was made in, whoever uses it.
func forward(ctx context.Context, l net.Listener, target string, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	slots := make(chan struct{}, maxForwarded)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			log.Warn("accept on the host's loopback", slog.Any("error", err))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return nil
		}
		wg.Go(func() {
			defer func() { <-slots }()
			forwardOne(ctx, conn, target, log)
		})
	}
}

// forwardOne copies both directions of one connection; the end of one direction is passed on as such.
func forwardOne(ctx context.Context, near net.Conn, target string, log *slog.Logger) {
	defer near.Close()
	dialer := net.Dialer{Timeout: forwardDial}
	far, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		log.Debug("forward a connection", slog.String("target", target), slog.Any("error", err))
		return
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { pass(far, near) })
	wg.Go(func() { pass(near, far) })
	wg.Wait()
}

// pass copies from src to dst and then closes dst for writing. After an error both ends are of no use any more.
func pass(dst, src net.Conn) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		src.Close()
		return
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // the peer may have gone already
	}
}

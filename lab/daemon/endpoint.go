package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// componentAWS is the name of the AWS endpoint among the components.
const componentAWS = "AWS endpoint"

// endpoint is an HTTP server that can be stopped and started again while the lab runs. Clients find a closed port then,
// as when the network to AWS is gone.
type endpoint struct {
	addr    netip.AddrPort
	handler http.Handler
	log     *slog.Logger

	mu      sync.Mutex
	down    bool          // guarded by mu: it is to be down
	changed chan struct{} // guarded by mu; closed when down changes
	state   chan struct{} // guarded by mu; closed when the server has become what down says
}

func newEndpoint(addr netip.AddrPort, h http.Handler, log *slog.Logger) *endpoint {
	return &endpoint{addr: addr, handler: h, log: log, changed: make(chan struct{}), state: make(chan struct{})}
}

// listen opens the port for the first time, so that a port in use is told at once.
func (e *endpoint) listen() (net.Listener, error) { return net.Listen("tcp4", e.addr.String()) }

// run serves until ctx ends, with pauses for as long as it is down.
func (e *endpoint) run(ctx context.Context, l net.Listener) error {
	for {
		e.mu.Lock()
		down, changed := e.down, e.changed
		e.mu.Unlock()
		if !down {
			serving, stop := context.WithCancel(ctx)
			go func() {
				select {
				case <-changed:
					stop()
				case <-serving.Done():
				}
			}()
			e.reached(false)
			err := serveHTTP(serving, l, e.handler, e.log)
			stop()
			if err != nil {
				return err
			}
		} else {
			e.reached(true)
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		e.mu.Lock()
		down = e.down
		e.mu.Unlock()
		if !down {
			var err error
			if l, err = e.listen(); err != nil {
				return fmt.Errorf("listen again: %w", err)
			}
		}
	}
}

// reached tells whoever waits that the server is down or up, if that is still what is wanted.
func (e *endpoint) reached(down bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down != down {
		return
	}
	select {
	case <-e.state:
	default:
		close(e.state)
	}
}

// isDown reports whether it is to be down.
func (e *endpoint) isDown() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.down
}

// set takes the server down or up and returns when it is.
func (e *endpoint) set(ctx context.Context, down bool) error {
	e.mu.Lock()
	if e.down != down {
		e.down, e.state = down, make(chan struct{})
		close(e.changed)
		e.changed = make(chan struct{})
	}
	state := e.state
	e.mu.Unlock()
	select {
	case <-state:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// act does an action to the endpoint. One that is killed comes back at once; its open connections are lost.
func (e *endpoint) act(ctx context.Context, action string) error {
	ctx, cancel := context.WithTimeout(ctx, podTimeout)
	defer cancel()
	switch action {
	case ActionStop:
		return e.set(ctx, true)
	case ActionKill, ActionRestart:
		if err := e.set(ctx, true); err != nil {
			return err
		}
		return e.set(ctx, false)
	}
	return fmt.Errorf("no action %q: there are %s, %s and %s", action, ActionKill, ActionRestart, ActionStop)
}

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// reached waits until a limit was counted once.
func (s *side) reached(t *testing.T, limit string) {
	t.Helper()
	meshtest.Eventually(t, "the limit "+limit+" is counted", func() bool {
		return s.metric(t, "isthmus_proxy_limit_reached_total", `limit="`+limit+`"`) == 1
	})
}

// wantReset fails the test unless the connection has been reset.
func wantReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read = %v, want connection reset", err)
	}
}

// Tunnels are limited beside connections: one connection carries many.
func TestMaxTunnels(t *testing.T) {
	w := newWorld(t, func(_, server *Config) { server.MaxConnections = 1 })
	first, r := keepTalking(t, w)
	wantReset(t, w.dial())
	w.client.logged(t, `error="http status: 503 Service Unavailable"`)
	w.server.logged(t, "connection failed", "too many inbound tunnels")
	w.server.reached(t, "tunnels")
	say(t, first, r, "still here\n")
}

// A pool that is full refuses a tunnel to a new peer, and serves those it has.
func TestPoolLimit(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.Tunnel.MaxConns = 1 })
	other := serverWorkload()
	other.UID, other.Name, other.Addresses, other.Services = "other", "other", []netip.Addr{gatewayIP}, nil
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{other}})
	first, r := keepTalking(t, w)
	w.dst.Store(ptr(netip.AddrPortFrom(gatewayIP, 80)))
	wantReset(t, w.dial())
	w.client.logged(t, "connection complete", "connection limit of the pool reached")
	w.client.reached(t, "hbone-pool")
	say(t, first, r, "still here\n")
}

// Connections that wait for an endpoint are limited; one more fails at once.
func TestEndpointWaitsAreBounded(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.EndpointWait = time.Hour })
	w.app.Close()
	waits := w.client.proxy.waits
	if cap(waits) != maxEndpointWaits {
		t.Fatalf("%d connections may wait, want %d", cap(waits), maxEndpointWaits)
	}
	for range cap(waits) {
		waits <- struct{}{}
	}
	if _, errOut, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...); code != 56 {
		t.Errorf("curl = %d, %q, want 56 at once", code, errOut)
	}
	w.client.reached(t, "endpoint-waits")
}

// One connection tries so many endpoints and no more.
func TestAttemptsAreBounded(t *testing.T) {
	var dialled atomic.Int32
	w := newWorld(t, func(client, _ *Config) {
		client.Dial = func(context.Context, DialRequest) (net.Conn, error) {
			dialled.Add(1)
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
	})
	u := mesh.Update{}
	for i := range 3 * maxAttempts {
		e := serverWorkload()
		e.UID, e.Name, e.Protocol, e.Addresses = fmt.Sprint("gone-", i), fmt.Sprint("gone-", i), mesh.TCP, []netip.Addr{netip.AddrFrom4([4]byte{10, 9, 9, byte(i)})}
		u.Workloads = append(u.Workloads, e)
	}
	w.store.Apply(u)
	wantReset(t, w.dial())
	if n := dialled.Load(); n != maxAttempts {
		t.Errorf("%d endpoints were tried, want %d", n, maxAttempts)
	}
}

// A header of a peer that is longer than any description is not looked at.
func TestHeaderValuesAreBounded(t *testing.T) {
	for _, n := range []int{100, maxHeaderValue} {
		value := "service.name=" + strings.Repeat("x", n)
		if got, want := ParseBaggage(value).Known(), len(value) <= maxHeaderValue; got != want {
			t.Errorf("baggage of %d bytes is read: %v, want %v", len(value), got, want)
		}
		if got := ForwardedHost("host=" + strings.Repeat("x", n)); (got != "") != (n < maxHeaderValue-5) {
			t.Errorf("forwarded of %d bytes = %.10q", n+5, got)
		}
	}
}

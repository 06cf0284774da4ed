package proxy

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
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

package proxy

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// gone is an endpoint of the echo service that nobody serves any more, as a task that has just stopped.
func gone(addr string) *mesh.Workload {
	w := serverWorkload()
	w.UID, w.Name, w.Addresses = "gone-"+addr, "gone-"+addr, []netip.Addr{netip.MustParseAddr(addr)}
	return w
}

func curlEcho(t *testing.T) (out string, code int) {
	t.Helper()
	out, errOut, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...)
	return out + errOut, code
}

// A connection whose endpoint has gone before the mesh knows goes to another one, so no call fails while tasks stop.
func TestFailoverToAnotherEndpoint(t *testing.T) {
	w := newWorld(t)
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{gone("10.1.0.5"), gone("10.1.0.6")}})
	for range 20 { // an endpoint is chosen at random: two in three choices are of one that has gone
		if out, code := curlEcho(t); code != 0 {
			t.Fatalf("curl = %d, %q", code, out)
		}
	}
}

func TestFailoverFromABlackHole(t *testing.T) {
	hole := netip.MustParseAddr("10.1.0.7")
	dialled := make(chan struct{}, 64)
	w := newWorld(t, func(client, _ *Config) {
		dial := client.Dial
		client.Dial = func(ctx context.Context, r DialRequest) (net.Conn, error) {
			if r.Addr.Addr() != hole {
				return dial(ctx, r)
			}
			dialled <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	heavy := gone(hole.String())
	heavy.Capacity = 1000 // all but sure to be chosen first
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{heavy}})
	if out, code := curlEcho(t); code != 0 {
		t.Fatalf("curl = %d, %q", code, out)
	}
	if len(dialled) == 0 {
		t.Error("the black hole was not tried, so the test shows nothing")
	}
}

func TestNoEndpointLeft(t *testing.T) {
	w := newWorld(t)
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{gone("10.1.0.5"), gone("10.1.0.6")}, RemovedAddresses: []string{serverWorkload().UID}})
	if out, code := curlEcho(t); code != 56 {
		t.Errorf("curl = %d, %q; want 56", code, out)
	}
	w.client.logged(t, "connection complete", `dst.workload="gone-10.1.0.`, "reason=CONNECT")
}

// A refusal by policy is an answer: it must not be asked for again elsewhere.
func TestDenialIsNotTriedElsewhere(t *testing.T) {
	w := newWorld(t)
	other := gone("10.1.0.5")
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{other}, Policies: []*mesh.Policy{denyAll()}})
	const calls = 5
	for range calls {
		if out, code := curlEcho(t); code != 56 {
			t.Errorf("curl = %d, %q; want 56", code, out)
		}
	}
	w.client.logged(t, "connection complete", "401 Unauthorized")
	if n := strings.Count(w.server.log.String(), "policy rejection"); n != calls {
		t.Errorf("the server was asked %d times, want %d", n, calls)
	}
}

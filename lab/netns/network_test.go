package netns_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/netns"
)

// reach tries to connect from p and returns what the server said, "" when nothing came within the timeout.
func reach(t *testing.T, p *netns.Port, addr string, timeout time.Duration) string {
	t.Helper()
	var said string
	err := p.Do(func() error {
		c, err := net.DialTimeout("tcp4", addr, timeout)
		if err != nil {
			return nil //nolint:nilerr // not reached is an answer
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		said = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// TestNetworksNeedRoutes is what a VPC peering is about: nothing passes between two networks until both directions have
// a route, and the lab's own services are reached all the time.
func TestNetworksNeedRoutes(t *testing.T) {
	v := newVPC(t)
	other := netip.MustParsePrefix("10.1.0.0/16")
	if _, err := v.Allocate(netip.MustParsePrefix("10.1.4.0/24")); err == nil {
		t.Error("an address of a network that does not exist was allocated")
	}
	if err := v.AddNetwork(other); err != nil {
		t.Fatal(err)
	}
	here, there, neighbour := attach(t, v, netns.SubnetA), attach(t, v, netip.MustParsePrefix("10.1.4.0/24")), attach(t, v, netip.MustParsePrefix("10.1.1.0/24"))
	home, away := serve(t, here), serve(t, there)
	router, err := net.Listen("tcp4", netns.Router.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	go func() {
		for c, err := router.Accept(); err == nil; c, err = router.Accept() {
			_, _ = io.WriteString(c, "router")
			_ = c.Close()
		}
	}()
	const patience, impatience = 5 * time.Second, 300 * time.Millisecond
	if got := reach(t, there, router.Addr().String(), patience); got != "router" {
		t.Errorf("from the other network the router says %q", got)
	}
	if got := reach(t, neighbour, away, patience); got != neighbour.Addr.String() {
		t.Errorf("within the other network the server says %q", got)
	}
	if got := reach(t, there, home, impatience) + reach(t, here, away, impatience); got != "" {
		t.Errorf("the networks reach each other without routes: %q", got)
	}
	out := netns.Route{From: other, To: netns.VPCNetwork, Allow: true}
	back := netns.Route{From: netns.VPCNetwork, To: other, Allow: true}
	if err := v.SetRoutes([]netns.Route{out}); err != nil {
		t.Fatal(err)
	}
	if got := reach(t, there, home, impatience); got != "" {
		t.Errorf("with a route of one direction the server says %q", got)
	}
	if err := v.SetRoutes([]netns.Route{{From: netip.MustParsePrefix("10.1.1.0/24"), To: netns.VPCNetwork}, out, back}); err != nil {
		t.Fatal(err)
	}
	if got := reach(t, there, home, patience) + "," + reach(t, here, away, patience); got != there.Addr.String()+","+here.Addr.String() {
		t.Errorf("with routes of both directions the servers say %q", got)
	}
	if got := reach(t, neighbour, home, impatience); got != "" {
		t.Errorf("from a subnet whose route table lacks the route the server says %q", got)
	}
}

func TestAddNetworkRefuses(t *testing.T) {
	v := newVPC(t)
	for _, p := range []string{"10.0.128.0/24", "10.96.0.0/24"} {
		if err := v.AddNetwork(netip.MustParsePrefix(p)); !errors.Is(err, netns.ErrOverlap) {
			t.Errorf("AddNetwork(%s) = %v, want ErrOverlap", p, err)
		}
	}
	if err := v.AddNetwork(netip.MustParsePrefix("10.0.0.0/8")); err == nil {
		t.Error("AddNetwork of a /8 succeeded")
	}
	p := netip.MustParsePrefix("10.1.0.0/16")
	if err := v.AddNetwork(p); err != nil {
		t.Fatal(err)
	}
	port := attach(t, v, p)
	if err := v.RemoveNetwork(p); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("RemoveNetwork with a sandbox in it = %v", err)
	}
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	if err := v.RemoveNetwork(p); err != nil {
		t.Error(err)
	}
	if _, err := v.Attach(port.Addr); err == nil {
		t.Error("an address of a removed network was attached")
	}
}

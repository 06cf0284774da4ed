package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
)

// Every contestant has two hosts of its own, joined by a virtual cable, so that all can stand ready at once on the same
// addresses and ports.
var (
	clientIP = netip.MustParseAddr("10.9.0.1")
	serverIP = netip.MustParseAddr("10.9.0.2")
	coldNet  = netip.MustParsePrefix("10.9.4.0/22") // the server answers on all of it: one peer per address
	vip      = netip.MustParseAddr("240.240.0.2")
)

const (
	echoPort   = 8080  // sends back what it gets
	sinkPort   = 8081  // reads to the end and closes
	relayShift = 1000  // relays meet on the ports above, plus this
	istiodPort = 15012 // on the loopback of hosts that need a control plane
)

// hosts are the two namespaces of a contestant.
type hosts struct{ client, server *netns }

func newHosts(h *harness) *hosts {
	p := &hosts{client: newNetns(h), server: newNetns(h)}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0", Namespace: netlink.NsFd(p.client.file.Fd())},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(p.server.file.Fd()),
	}
	h.must("make a virtual cable", netlink.LinkAdd(veth))
	onLink := &netlink.Route{Scope: netlink.SCOPE_LINK, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0))}
	// Through one address: the kernel's table of neighbours has room for 1,024, on all hosts together.
	cold := &netlink.Route{Dst: ipNet(coldNet), Gw: serverIP.AsSlice()}
	local := &netlink.Route{Table: 255, Type: 2 /* local */, Scope: netlink.SCOPE_HOST, Dst: ipNet(coldNet)}
	h.must("configure the client host", p.client.configure(clientIP, onLink, cold))
	h.must("configure the server host", p.server.configure(serverIP, onLink, local))
	return p
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// configure gives the host its address and routes. The default route leads to nowhere, but what is redirected needs one.
func (ns *netns) configure(addr netip.Addr, routes ...*netlink.Route) error {
	nl, err := netlink.NewHandleAt(vns.NsHandle(ns.file.Fd()))
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := nl.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, l := range []netlink.Link{lo, eth} {
		if err := nl.LinkSetUp(l); err != nil {
			return err
		}
	}
	if err := nl.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 16))}); err != nil {
		return err
	}
	for _, r := range routes {
		r.LinkIndex = eth.Attrs().Index
		if r.Scope == netlink.SCOPE_HOST {
			r.LinkIndex = lo.Attrs().Index
		}
		if err := nl.RouteAdd(r); err != nil {
			return fmt.Errorf("add route %s: %w", r.Dst, err)
		}
	}
	return ns.do(tune)
}

// tune makes room for many short connections. What a kernel does not have, or a sandbox does not let change, stays.
func tune() error {
	for name, value := range map[string]string{
		"ipv4/ip_local_port_range":                      "1024 65535",
		"ipv4/tcp_tw_reuse":                             "1",
		"netfilter/nf_conntrack_tcp_timeout_time_wait":  "1",
		"netfilter/nf_conntrack_tcp_timeout_close":      "1",
		"netfilter/nf_conntrack_tcp_timeout_close_wait": "1",
	} {
		_ = os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0o644)
	}
	return nil
}

// bring makes the control plane, which lives elsewhere, reachable on the host's loopback.
func (ns *netns) bring(h *harness, istiod string) {
	var l net.Listener
	h.must("listen for the control plane", ns.do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", istiodPort))
		return err
	}))
	h.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go carry(h.ctx, c, istiod)
		}
	}()
}

// carry joins a connection to one made from here.
func carry(ctx context.Context, c net.Conn, to string) {
	defer c.Close()
	var d net.Dialer
	up, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(up, c)
		up.Close()
	}()
	_, _ = io.Copy(c, up)
	c.Close()
	<-done
}

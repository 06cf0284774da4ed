package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InterfaceName is the name of the VPC interface inside every sandbox.
const InterfaceName = "eth0"

// Port is one network namespace attached to the VPC with one address.
type Port struct {
	// Addr is the address of the namespace.
	Addr netip.Addr

	vpc  *VPC
	ns   *os.File
	host string // name of the bridge's end of the veth pair
	once sync.Once
	err  error
}

// Attach makes a network namespace with its loopback up and an interface eth0 of the address addr, which should come
// from Allocate or Reserve. Close of the Port removes both; it does not release the address.
func (v *VPC) Attach(addr netip.Addr) (*Port, error) {
	if !addr.Is4() {
		return nil, fmt.Errorf("attach %s: not an IPv4 address", addr)
	}
	a := addr.As4()
	p := &Port{Addr: addr, vpc: v, host: fmt.Sprintf("veth%02x%02x%02x%02x", a[0], a[1], a[2], a[3])}
	v.mu.Lock()
	switch {
	case v.done:
		v.mu.Unlock()
		return nil, fmt.Errorf("attach %s: the VPC is closed", addr)
	case !v.contains(addr):
		v.mu.Unlock()
		return nil, fmt.Errorf("attach %s: not an address of %s or another network of the lab", addr, VPCNetwork)
	case v.ports[addr] != nil:
		v.mu.Unlock()
		return nil, fmt.Errorf("attach %s: %w", addr, ErrAddressInUse)
	}
	v.ports[addr] = p
	v.mu.Unlock()
	ns, err := newNamespace()
	if err == nil {
		p.ns = ns
		err = p.connect()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach %s: %w", addr, err), p.Close())
	}
	v.log.Debug("network namespace attached", slog.String("addr", addr.String()))
	return p, nil
}

// connect makes the veth pair and sets both ends up.
func (p *Port) connect() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = p.host, mtu, p.vpc.bridge.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: InterfaceName, PeerHardwareAddr: MAC(p.Addr), PeerNamespace: netlink.NsFd(p.ns.Fd()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make interface %s: %w", p.host, err)
	}
	host, err := netlink.LinkByName(p.host)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", p.host, err)
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("bring %s up: %w", p.host, err)
	}
	return Do(p.ns, func() error { return configureInside(p.Addr) })
}

// configureInside sets loopback, address and route of the namespace of the calling thread.
func configureInside(addr netip.Addr) error {
	for _, name := range []string{"lo", InterfaceName} {
		// IPv6 link-local addresses would only add traffic that nobody asked for. Loopback keeps ::1.
		if name == InterfaceName {
			_ = setSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1") // a kernel without IPv6 has no such setting
		}
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
	}
	eth, err := netlink.LinkByName(InterfaceName)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", InterfaceName, err)
	}
	if err := netlink.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 32))}); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	// Default route over a router that no connected network contains, as in EKS: hence "onlink".
	route := &netlink.Route{LinkIndex: eth.Attrs().Index, Gw: Router.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route by %s: %w", Router, err)
	}
	// The router's hardware address is known: the first packet need not wait for an answer to ARP.
	neighbour := &netlink.Neigh{
		LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, Family: netlink.FAMILY_V4,
		IP: Router.AsSlice(), HardwareAddr: MAC(Router),
	}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("set hardware address of %s: %w", Router, err)
	}
	// Users of the sandbox may listen on any port, as in a container.
	_ = setSysctl("net/ipv4/ip_unprivileged_port_start", "0") // only a comfort: everything runs as root of its user namespace
	return nil
}

// NetNS returns a new descriptor of the namespace. The caller closes it.
func (p *Port) NetNS() (*os.File, error) {
	fd, err := unix.FcntlInt(p.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace of %s: %w", p.Addr, err)
	}
	return os.NewFile(uintptr(fd), "netns-"+p.Addr.String()), nil
}

// Do runs f on a thread in the namespace; see the function Do.
func (p *Port) Do(f func() error) error { return Do(p.ns, f) }

// Close removes the interface at once, whoever still holds the namespace open, and lets go of the namespace.
func (p *Port) Close() error {
	p.once.Do(func() {
		if link, err := netlink.LinkByName(p.host); err == nil {
			if err := netlink.LinkDel(link); err != nil {
				p.err = fmt.Errorf("remove interface %s: %w", p.host, err)
			}
		}
		if p.ns != nil {
			_ = p.ns.Close() // nothing was written
		}
		p.vpc.mu.Lock()
		delete(p.vpc.ports, p.Addr)
		p.vpc.mu.Unlock()
	})
	return p.err
}

package netns

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
)

// Config is what a VPC needs.
type Config struct {
	// Log receives one line per interface made or removed, at level debug. Required.
	Log *slog.Logger
}

// VPC is the bridge and the addresses handed out on it. Its methods may be called from several goroutines.
type VPC struct {
	log    *slog.Logger
	bridge netlink.Link
	pool   *pool

	mu    sync.Mutex
	ports map[netip.Addr]*Port // guarded by mu
	done  bool                 // guarded by mu

	networks []netip.Prefix // guarded by mu; beside VPCNetwork
	routes   []Route        // guarded by mu; between networks
}

// New makes the bridge in the network namespace of the process, with all the addresses that the lab answers on, and
// turns on routing. Close removes it.
func New(cfg Config) (*VPC, error) {
	if cfg.Log == nil {
		return nil, errors.New("netns: Config.Log is required")
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring the loopback interface up: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = Bridge, mtu, MAC(Router)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("make bridge %s: %w", Bridge, err)
	}
	v := &VPC{log: cfg.Log, pool: newPool(), ports: map[netip.Addr]*Port{}}
	if err := v.configureBridge(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (v *VPC) configureBridge() error {
	bridge, err := netlink.LinkByName(Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", Bridge, err)
	}
	v.bridge = bridge
	addrs := []netip.Prefix{netip.PrefixFrom(Router, VPCNetwork.Bits())}
	for _, a := range []netip.Addr{Resolver, TaskMetadata, PodIdentityAgent} {
		addrs = append(addrs, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, Bridge, err)
		}
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bring %s up: %w", Bridge, err)
	}
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return fmt.Errorf("turn on routing: %w", err)
	}
	// Sandboxes send everything to the router on purpose: it must not tell them of shorter ways. Sources may be
	// those of other sandboxes (a proxy that keeps the client's address), so the reverse path is not checked.
	for _, s := range []struct{ key, value string }{
		{"net/ipv4/conf/all/send_redirects", "0"}, {"net/ipv4/conf/" + Bridge + "/send_redirects", "0"},
		{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/" + Bridge + "/rp_filter", "0"},
		{"net/ipv6/conf/" + Bridge + "/disable_ipv6", "1"},
		// Every packet is routed, so that the rules see it once as such; seeing it on the bridge as well, as a host with
		// br_netfilter has it, would translate and count it twice.
		{"net/bridge/bridge-nf-call-iptables", "0"}, {"net/bridge/bridge-nf-call-ip6tables", "0"}, {"net/bridge/bridge-nf-call-arptables", "0"},
	} {
		if err := setSysctl(s.key, s.value); err != nil {
			v.log.Debug("kernel setting not changed", slog.String("key", s.key), slog.Any("error", err))
		}
	}
	return nil
}

// Allocate reserves a free address of subnet, which must lie within the VPC or a network that was added. The first four and the last address of
// a subnet are never handed out, as in AWS, and a released address is used again as late as possible.
func (v *VPC) Allocate(subnet netip.Prefix) (netip.Addr, error) { return v.pool.allocate(subnet) }

// Reserve marks one address as used, so that Allocate does not hand it out. It fails when the address is in use.
func (v *VPC) Reserve(addr netip.Addr) error { return v.pool.reserve(addr) }

// Release returns an address. Releasing one that is not in use does nothing.
func (v *VPC) Release(addr netip.Addr) { v.pool.release(addr) }

// Close removes every port and the bridge.
func (v *VPC) Close() error {
	v.mu.Lock()
	if v.done {
		v.mu.Unlock()
		return nil
	}
	v.done = true
	ports := make([]*Port, 0, len(v.ports))
	for _, p := range v.ports {
		ports = append(ports, p)
	}
	v.mu.Unlock()
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.Close())
	}
	v.mu.Lock()
	if v.networks != nil {
		v.networks, v.routes = nil, nil
		errs = append(errs, v.installRoutes())
	}
	v.mu.Unlock()
	if v.bridge != nil {
		if err := netlink.LinkDel(v.bridge); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", Bridge, err))
		}
	}
	return errors.Join(errs...)
}

// ipNet is p in the form that netlink wants.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setSysctl writes a kernel setting of the calling thread's network namespace. A setting that already has the value
// is left alone, because /proc/sys may be read-only where the lab runs.
func setSysctl(key, value string) error {
	path := filepath.Join("/proc/sys", key)
	if have, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", key, value, err)
	}
	return nil
}

package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// ErrSubnetFull says that every address of a subnet is in use.
var ErrSubnetFull = errors.New("no free address")

// ErrAddressInUse says that an address is reserved or attached already.
var ErrAddressInUse = errors.New("address is in use")

// reservedPerSubnet is how many addresses at the start of a subnet AWS keeps for itself.
const reservedPerSubnet = 4

// pool hands out addresses. The zero value is not usable; make one with newPool.
type pool struct {
	mu   sync.Mutex
	used map[netip.Addr]struct{}     // guarded by mu
	last map[netip.Prefix]netip.Addr // guarded by mu; where the search of a subnet goes on
	nets []netip.Prefix              // guarded by mu; what addresses may be of
}

func newPool() *pool {
	return &pool{used: map[netip.Addr]struct{}{}, last: map[netip.Prefix]netip.Addr{}, nets: []netip.Prefix{VPCNetwork}}
}

func (p *pool) add(network netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nets = append(p.nets, network)
}

func (p *pool) remove(network netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nets = slices.DeleteFunc(p.nets, func(n netip.Prefix) bool { return n == network })
}

// holds reports whether subnet is one of a network's. The caller holds mu.
func (p *pool) holds(subnet netip.Prefix) bool {
	return slices.ContainsFunc(p.nets, func(n netip.Prefix) bool { return n.Contains(subnet.Addr()) && subnet.Bits() >= n.Bits() })
}

func (p *pool) allocate(subnet netip.Prefix) (netip.Addr, error) {
	subnet = subnet.Masked()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !subnet.Addr().Is4() || !p.holds(subnet) || subnet.Bits() > 28 {
		return netip.Addr{}, fmt.Errorf("allocate an address: %s is not a subnet of %s, or of another network of the lab, of /28 or larger", subnet, VPCNetwork)
	}
	first := subnet.Addr()
	for range reservedPerSubnet {
		first = first.Next()
	}
	usable := 1<<(32-subnet.Bits()) - reservedPerSubnet - 1
	a, ok := p.last[subnet]
	if !ok {
		a = first.Prev()
	}
	for range usable {
		a = a.Next()
		if !subnet.Contains(a.Next()) { // a is the broadcast address
			a = first
		}
		if _, taken := p.used[a]; !taken {
			p.used[a] = struct{}{}
			p.last[subnet] = a
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("allocate an address of %s: %w", subnet, ErrSubnetFull)
}

func (p *pool) reserve(a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.used[a]; taken {
		return fmt.Errorf("reserve %s: %w", a, ErrAddressInUse)
	}
	p.used[a] = struct{}{}
	return nil
}

func (p *pool) release(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, a)
}

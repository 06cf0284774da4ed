package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forwardTable is the nftables table that decides which networks reach which.
const forwardTable = "isthmus-vpcs"

// ErrOverlap says that a range cannot be a network of the lab, because addresses of it are in use already. AWS allows
// VPCs that overlap; the lab has one routing table for all of them.
var ErrOverlap = errors.New("the range overlaps with another network of the lab")

// Route says whether packets from From reach To. Of several Routes that match a packet the first counts.
type Route struct {
	From, To netip.Prefix
	Allow    bool
}

// AddNetwork makes range p a further VPC of the lab: addresses of it can be allocated and attached. Its sandboxes reach
// each other and the lab's own services on the router, and nothing of another network until SetRoutes says so.
func (v *VPC) AddNetwork(p netip.Prefix) error {
	p = p.Masked()
	if !p.Addr().Is4() || p.Bits() < 16 || p.Bits() > 28 {
		return fmt.Errorf("add network %s: want an IPv4 range between /16 and /28", p)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done {
		return fmt.Errorf("add network %s: the VPC is closed", p)
	}
	for _, n := range append(slices.Clone(v.networks), VPCNetwork, Services) {
		if n.Overlaps(p) {
			return fmt.Errorf("add network %s: %w: %s", p, ErrOverlap, n)
		}
	}
	if err := netlink.RouteReplace(v.routeTo(p)); err != nil {
		return fmt.Errorf("add route to %s: %w", p, err)
	}
	v.networks = append(v.networks, p)
	if err := v.installRoutes(); err != nil {
		v.networks = v.networks[:len(v.networks)-1]
		return errors.Join(err, netlink.RouteDel(v.routeTo(p)))
	}
	v.pool.add(p)
	return nil
}

// RemoveNetwork removes a network that AddNetwork added. It fails while a sandbox has an address of it.
func (v *VPC) RemoveNetwork(p netip.Prefix) error {
	p = p.Masked()
	v.mu.Lock()
	defer v.mu.Unlock()
	i := slices.Index(v.networks, p)
	if i < 0 {
		return fmt.Errorf("remove network %s: there is none", p)
	}
	for a := range v.ports {
		if p.Contains(a) {
			return fmt.Errorf("remove network %s: %s: %w", p, a, ErrAddressInUse)
		}
	}
	v.networks = slices.Delete(v.networks, i, i+1)
	v.pool.remove(p)
	v.routes = slices.DeleteFunc(v.routes, func(r Route) bool { return r.From.Overlaps(p) || r.To.Overlaps(p) })
	if err := v.installRoutes(); err != nil {
		return err
	}
	if err := netlink.RouteDel(v.routeTo(p)); err != nil {
		return fmt.Errorf("remove route to %s: %w", p, err)
	}
	return nil
}

// SetRoutes replaces what packets between networks are let through. What matches no Route is dropped without an
// answer, as a packet is that a VPC has no route for.
func (v *VPC) SetRoutes(routes []Route) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.done {
		return errors.New("set routes: the VPC is closed")
	}
	before := v.routes
	v.routes = slices.Clone(routes)
	if err := v.installRoutes(); err != nil {
		v.routes = before
		return err
	}
	return nil
}

// routeTo is the root namespace's route to a further network.
func (v *VPC) routeTo(p netip.Prefix) *netlink.Route {
	return &netlink.Route{LinkIndex: v.bridge.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(p), Src: Router.AsSlice()}
}

// installRoutes replaces the rules in one transaction. The caller holds mu.
func (v *VPC) installRoutes() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: forwardTable}
	conn.AddTable(table) // so that deleting it cannot fail
	conn.DelTable(table)
	if len(v.networks) > 0 {
		conn.AddTable(table)
		priority := nftables.ChainPriority(*nftables.ChainPriorityFilter - 10)
		chain := conn.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: &priority,
		})
		for _, r := range v.forwardRules() {
			kind := expr.VerdictDrop
			if r.Allow {
				kind = expr.VerdictAccept
			}
			match := append(matchAddress(sourceOffset, r.From), matchAddress(destinationOffset, r.To)...)
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(match, &expr.Verdict{Kind: kind})})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install routes between networks: %w", err)
	}
	return nil
}

// forwardRules are the Routes, and after them the refusal of everything else between two networks.
func (v *VPC) forwardRules() []Route {
	rules := slices.Clone(v.routes)
	all := append([]netip.Prefix{VPCNetwork}, v.networks...)
	for _, from := range all {
		for _, to := range all {
			if from != to {
				rules = append(rules, Route{From: from, To: to})
			}
		}
	}
	return rules
}

const (
	sourceOffset      = 12 // of the source address in an IPv4 header
	destinationOffset = 16 // of the destination address
)

func matchAddress(offset uint32, p netip.Prefix) []expr.Any {
	mask := ipNet(p).Mask
	network := p.Masked().Addr().As4()
	return []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: network[:]},
	}
}

// contains reports whether an address can be attached. The caller holds mu.
func (v *VPC) contains(a netip.Addr) bool {
	return VPCNetwork.Contains(a) || slices.ContainsFunc(v.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

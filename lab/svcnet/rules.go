package svcnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the one nftables table that the service network owns.
const tableName = "isthmus-services"

// install replaces all rules in one transaction: a connection sees the old rules or the new ones, never none.
// Connections that are open keep their backend, which the kernel's connection tracking remembers.
func install(frontends []Frontend, serviceNetwork netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	conn.AddTable(table) // so that deleting it cannot fail
	conn.DelTable(table)
	conn.AddTable(table)

	services := conn.AddChain(&nftables.Chain{Name: "services", Table: table})
	for _, f := range frontends {
		for _, rule := range frontendRules(f) {
			conn.AddRule(&nftables.Rule{Table: table, Chain: services, Exprs: rule})
		}
	}
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: services.Name}}
	for name, hook := range map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput,
	} {
		chain := conn.AddChain(&nftables.Chain{
			Name: "nat-" + name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: jump})
	}

	postrouting := conn.AddChain(&nftables.Chain{
		Name: "nat-postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	for _, a := range backendAddrs(frontends) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: postrouting, Exprs: hairpinRule(a)})
	}

	for name, hook := range map[string]*nftables.ChainHook{
		"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput,
	} {
		chain := conn.AddChain(&nftables.Chain{
			Name: "refuse-" + name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter,
		})
		for _, rule := range refuseRules(serviceNetwork) {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install service rules: %w", err)
	}
	return nil
}

// frontendRules returns one rule per backend. The first is taken with probability 1/n, the next with 1/(n-1) of what
// is left, and the last always: every backend gets the same share.
func frontendRules(f Frontend) [][]expr.Any {
	proto := byte(unix.IPPROTO_TCP)
	if f.UDP {
		proto = unix.IPPROTO_UDP
	}
	var rules [][]expr.Any
	for i, b := range f.Backends {
		rule := append(matchProtocol(proto), matchDestination(netip.PrefixFrom(f.Addr.Addr(), 32))...)
		rule = append(rule,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bigEndian(f.Addr.Port())},
		)
		if left := len(f.Backends) - i; left > 1 {
			rule = append(rule,
				&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: uint32(left)},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
			)
		}
		rules = append(rules, append(rule,
			&expr.Immediate{Register: 1, Data: b.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: bigEndian(b.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
		))
	}
	return rules
}

// hairpinRule hides the client's address when a backend reaches itself by the Service's address: it would otherwise
// answer itself directly, and the answer would not be translated back. The router's own connections to itself need
// none of this, and the loopback interface has no address to hide behind.
func hairpinRule(a netip.Addr) []expr.Any {
	loopback := make([]byte, unix.IFNAMSIZ)
	copy(loopback, "lo")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: loopback},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceOffset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destinationOffset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
		&expr.Masq{},
	}
}

// refuseRules refuse at once what is sent to an address of the service network that no rule has translated: no such
// Service, no such port, or no ready endpoint. A client would otherwise wait until it times out.
func refuseRules(serviceNetwork netip.Prefix) [][]expr.Any {
	tcp := append(matchDestination(serviceNetwork), matchProtocol(unix.IPPROTO_TCP)...)
	return [][]expr.Any{
		append(tcp, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}),
		append(matchDestination(serviceNetwork), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable}),
	}
}

const (
	sourceOffset      = 12 // of the source address in an IPv4 header
	destinationOffset = 16 // of the destination address
	portUnreachable   = 3  // ICMP code
)

func matchProtocol(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

func matchDestination(p netip.Prefix) []expr.Any {
	match := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destinationOffset, Len: 4}}
	if p.Bits() < 32 {
		mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
		match = append(match, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)})
	}
	return append(match, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func bigEndian(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }

// backendAddrs returns the different addresses of all backends.
func backendAddrs(frontends []Frontend) []netip.Addr {
	var all []netip.Addr
	for _, f := range frontends {
		for _, b := range f.Backends {
			all = append(all, b.Addr())
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

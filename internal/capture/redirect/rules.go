package redirect

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Config says what to capture.
type Config struct {
	Outbound bool // outbound TCP to 15001
	Inbound  bool // inbound TCP, except HBONE's, to 15006
	DNS      bool // udp and tcp port 53 to 15053
	// SpoofSource adds the marks and the routing that bring replies to a spoofed client address back to the proxy.
	SpoofSource bool
	// Virtual are interfaces of the namespace behind which there is more of the workload, a virtual machine for example:
	// what comes in from there goes out of the workload, so TCP from there goes to 15001.
	Virtual []string
	// ExcludeInbound are further ports that inbound capture leaves alone.
	ExcludeInbound []uint16
	// ExcludeOutbound are destinations that outbound and DNS capture leave alone.
	ExcludeOutbound []netip.Prefix
	IPv6            bool // capture IPv6 too; otherwise it passes
}

// The names of the tables; each is replaced or removed as a whole.
const (
	natTable    = "isthmus-nat"
	mangleTable = "isthmus-mangle"
)

// probes returns the sources that Istio's CNI agent gives the kubelet's probes, which must reach the application as they
// are.
func (c Config) probes() []netip.Prefix {
	all := []netip.Prefix{netip.MustParsePrefix("169.254.7.127/32")}
	if c.IPv6 {
		all = append(all, netip.MustParsePrefix("fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128"))
	}
	return all
}

// The annotations of a pod that change what is captured of it.
const (
	virtualAnnotation = "istio.io/reroute-virtual-interfaces"
	ingressAnnotation = "ambient.istio.io/bypass-inbound-capture"
	dnsAnnotation     = "ambient.istio.io/dns-capture"
)

// ForPod returns what Istio's CNI agent captures of a pod with these annotations: everything, unless they say otherwise.
// A pod that takes connections from outside of the mesh, an ingress, can have those left alone.
func ForPod(annotations map[string]string) Config {
	c := Config{
		Outbound: true, Inbound: annotations[ingressAnnotation] != "true", DNS: annotations[dnsAnnotation] != "false", SpoofSource: true,
	}
	for name := range strings.SplitSeq(annotations[virtualAnnotation], ",") {
		if name = strings.TrimSpace(name); name != "" {
			c.Virtual = append(c.Virtual, name)
		}
	}
	return c
}

// Install replaces the package's rules in the network namespace ns (nil: the current one). It may be repeated: a
// repetition is one transaction, so that there is no moment without rules.
func Install(ns *os.File, cfg Config) error {
	c, err := connect(ns)
	if err != nil {
		return err
	}
	b := &builder{c: c, cfg: cfg}
	b.nat()
	b.mangle()
	if err := c.Flush(); err != nil {
		return fmt.Errorf("install redirection rules: %w", err)
	}
	if cfg.SpoofSource {
		return installRoutes(ns, cfg.IPv6)
	}
	return removeRoutes(ns)
}

// Remove removes what Install made; there being nothing to remove is no error.
func Remove(ns *os.File) error {
	c, err := connect(ns)
	if err != nil {
		return err
	}
	for _, name := range []string{natTable, mangleTable} {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove redirection rules: %w", err)
	}
	return removeRoutes(ns)
}

func connect(ns *os.File) (*nftables.Conn, error) {
	var opts []nftables.ConnOption
	if ns != nil {
		opts = append(opts, nftables.WithNetNSFd(int(ns.Fd())))
	}
	c, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, nil
}

// builder writes rules; an error of any of them comes with Flush.
type builder struct {
	c   *nftables.Conn
	cfg Config
}

// fresh makes a table that is empty whatever was there before.
func (b *builder) fresh(name string) *nftables.Table {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	b.c.AddTable(t) // so that there is one to delete
	b.c.DelTable(t)
	return b.c.AddTable(t)
}

func (b *builder) chain(t *nftables.Table, name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Table: t, Name: name, Type: typ, Hooknum: hook, Priority: prio})
}

func (b *builder) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	if !b.cfg.IPv6 {
		all = append(all, family(unix.NFPROTO_IPV4)...)
	}
	for _, p := range parts {
		all = append(all, p...)
	}
	b.c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: all})
}

// nat redirects what is to be captured. In order, first match wins:
//
//	prerouting  probes -> accept; tcp from virtual interfaces -> 15001; not tcp, HBONE, excluded or marked -> accept; else -> 15006
//	output      to probes, excluded -> accept; DNS -> 15053; the proxy's replies, loopback, marked -> accept; else tcp -> 15001
func (b *builder) nat() {
	t := b.fresh(natTable)
	pre := b.chain(t, "prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := b.chain(t, "output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, p := range b.cfg.probes() {
		b.rule(pre, address(p, offsetSource), accept())
		b.rule(out, address(p, offsetDestination), accept())
	}
	for _, name := range b.cfg.Virtual {
		b.rule(pre, input(name), protocol(unix.IPPROTO_TCP), redirect(mesh.OutboundPort))
	}
	if b.cfg.Inbound {
		b.rule(pre, input("lo"), accept())
		b.rule(pre, marked(expr.CmpOpEq, Mark), accept())
		for _, port := range append([]uint16{mesh.HBONEPort}, b.cfg.ExcludeInbound...) {
			b.rule(pre, protocol(unix.IPPROTO_TCP), destination(port), accept())
		}
		b.rule(pre, protocol(unix.IPPROTO_TCP), redirect(mesh.InboundPort))
	}
	b.rule(out, marked(expr.CmpOpEq, Mark), accept())
	b.rule(out, output("lo"), accept())
	for _, p := range b.cfg.ExcludeOutbound {
		b.rule(out, address(p.Masked(), offsetDestination), accept())
	}
	if b.cfg.DNS {
		b.rule(out, protocol(unix.IPPROTO_UDP), destination(53), redirect(mesh.DNSPort))
		b.rule(out, protocol(unix.IPPROTO_TCP), destination(53), redirect(mesh.DNSPort))
	}
	b.rule(out, marked(expr.CmpOpEq, ConnMark), accept())
	if b.cfg.Outbound {
		b.rule(out, protocol(unix.IPPROTO_TCP), redirect(mesh.OutboundPort))
	}
}

// mangle remembers on the connection that the proxy opened it, and marks the application's replies with that, so that
// routing can bring them back although they go to a foreign address.
func (b *builder) mangle() {
	t := b.fresh(mangleTable)
	if !b.cfg.SpoofSource {
		return
	}
	pre := b.chain(t, "prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	out := b.chain(t, "output", nftables.ChainTypeRoute, nftables.ChainHookOutput, nftables.ChainPriorityMangle)
	b.rule(pre, marked(expr.CmpOpEq, Mark), []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(ConnMark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	})
	b.rule(out, []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		masked(MarkMask),
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(ConnMark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	})
}

// Byte offsets of the addresses in the IPv4 and IPv6 headers.
const (
	offsetSource      = 12
	offsetDestination = 16
	offsetSource6     = 8
	offsetDest6       = 24
)

func family(f byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

// address matches a prefix at one of the IPv4 offsets, or at the same place of the IPv6 header.
func address(p netip.Prefix, offset uint32) []expr.Any {
	raw := p.Addr().AsSlice()
	fam := byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		fam = unix.NFPROTO_IPV6
		offset = map[uint32]uint32{offsetSource: offsetSource6, offsetDestination: offsetDest6}[offset]
	}
	mask := make([]byte, len(raw))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(family(fam),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(raw))},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(raw)), Mask: mask, Xor: make([]byte, len(raw))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: raw})
}

func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

func destination(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

func masked(mask uint32) expr.Any {
	return &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4),
	}
}

func marked(op expr.CmpOp, mark uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		masked(MarkMask),
		&expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
	}
}

func input(name string) []expr.Any  { return iface(expr.MetaKeyIIFNAME, name) }
func output(name string) []expr.Any { return iface(expr.MetaKeyOIFNAME, name) }

func iface(key expr.MetaKey, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded[:unix.IFNAMSIZ-1], name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: padded},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func redirect(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

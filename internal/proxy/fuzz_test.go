package proxy

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// FuzzProxyHeader reads every header that is written with a reader of its own, made from the specification of the PROXY
// protocol, version 2, section 2.2.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1}, uint16(1), []byte{10, 0, 0, 2}, uint16(80), "shell")
	f.Add(make([]byte, 16), uint16(65535), []byte{10, 0, 0, 2}, uint16(0), "")
	f.Add([]byte{}, uint16(1), make([]byte, 16), uint16(2), strings.Repeat("x", 300))
	f.Fuzz(func(t *testing.T, from []byte, fromPort uint16, to []byte, toPort uint16, account string) {
		src, ok := netip.AddrFromSlice(from)
		if !ok {
			return // a TCP connection has a source address
		}
		dst, _ := netip.AddrFromSlice(to) // a name that was asked for has none
		if len(account) > 1<<15 {
			return // certificates are far smaller
		}
		id := mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: account}
		h := proxyHeader(netip.AddrPortFrom(src, fromPort), netip.AddrPortFrom(dst, toPort), id)
		rest, ok := strings.CutPrefix(string(h), "\r\n\r\n\x00\r\nQUIT\n\x21")
		if !ok || len(rest) < 3 {
			t.Fatalf("no version 2 header for PROXY: %q", h)
		}
		length := map[byte]int{0x11: 4, 0x21: 16}[rest[0]]
		body := []byte(rest[3:])
		if length == 0 || int(binary.BigEndian.Uint16([]byte(rest[1:3]))) != len(body) || len(body) < 2*length+4 {
			t.Fatalf("family %#x, %d bytes: %q", rest[0], len(body), h)
		}
		gotSrc, _ := netip.AddrFromSlice(body[:length])
		gotDst, _ := netip.AddrFromSlice(body[length : 2*length])
		ports := body[2*length:]
		if gotSrc.Unmap() != src.Unmap() || dst.IsValid() && gotDst.Unmap() != dst.Unmap() || !dst.IsValid() && !gotDst.IsUnspecified() {
			t.Errorf("%v to %v was written as %v to %v", src, dst, gotSrc, gotDst)
		}
		if binary.BigEndian.Uint16(ports) != fromPort || binary.BigEndian.Uint16(ports[2:]) != toPort {
			t.Errorf("ports %d and %d were written as %v", fromPort, toPort, ports[:4])
		}
		tlv := ports[4:]
		if want := id.String(); len(tlv) < 3 || tlv[0] != 0xD0 || int(binary.BigEndian.Uint16(tlv[1:])) != len(tlv)-3 || string(tlv[3:]) != want {
			t.Errorf("identity %q was written as %q", want, tlv)
		}
	})
}

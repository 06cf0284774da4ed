package dns

import (
	"bufio"
	"io"
	"net/netip"
	"strings"
)

// ResolvConf is what a resolv.conf file says.
type ResolvConf struct {
	Nameservers []netip.AddrPort
	Search      []string
}

// Limits of the C library's resolver.
const (
	maxNameservers = 3
	maxSearch      = 6
)

// ParseResolvConf reads resolv.conf; what it does not understand it skips, as every resolver does.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	var rc ResolvConf
	sc := bufio.NewScanner(io.LimitReader(r, 64<<10))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil && len(rc.Nameservers) < maxNameservers {
				rc.Nameservers = append(rc.Nameservers, netip.AddrPortFrom(a.Unmap(), 53))
			}
		case "search":
			rc.Search = rc.Search[:0]
			for _, d := range f[1:] {
				if len(rc.Search) < maxSearch {
					rc.Search = append(rc.Search, canonicalName(d))
				}
			}
		case "domain":
			if len(rc.Search) == 0 {
				rc.Search = []string{canonicalName(f[1])}
			}
		}
	}
	return rc, sc.Err()
}

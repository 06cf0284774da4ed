package redirect

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Istio's numbers for the policy routing of replies to spoofed sources.
const (
	routeTable   = 100
	rulePriority = 32764
)

func handle(ns *os.File) (*netlink.Handle, error) {
	var h *netlink.Handle
	var err error
	if ns == nil {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	} else {
		h, err = netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	return h, nil
}

func replyRule(fam int) *netlink.Rule {
	mask := uint32(MarkMask)
	r := netlink.NewRule()
	r.Family, r.Mark, r.Mask, r.Table, r.Priority = fam, ConnMark, &mask, routeTable, rulePriority
	return r
}

func replyRoute(fam, loopback int) *netlink.Route {
	dst := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if fam == netlink.FAMILY_V6 {
		dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{LinkIndex: loopback, Dst: dst, Table: routeTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST}
}

func families(v6 bool) []int {
	if v6 {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

func installRoutes(ns *os.File, v6 bool) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	for _, fam := range families(v6) {
		if err := h.RuleAdd(replyRule(fam)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add routing rule: %w", err)
		}
		if err := h.RouteReplace(replyRoute(fam, lo.Attrs().Index)); err != nil {
			return fmt.Errorf("add local route: %w", err)
		}
	}
	return nil
}

func removeRoutes(ns *os.File) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, fam := range families(true) {
		for {
			if err := h.RuleDel(replyRule(fam)); err != nil {
				if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
					return fmt.Errorf("remove routing rule: %w", err)
				}
				break
			}
		}
		routes, err := h.RouteListFiltered(fam, &netlink.Route{Table: routeTable}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for i := range routes {
			if err := h.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove local route: %w", err)
			}
		}
	}
	return nil
}

// Package redirect makes the kernel hand an application's connections to the proxy, and tells the proxy where they
// were going. The rules are those of Istio's in-pod mode, written with nftables; they tell the proxy's own packets by
// their mark, not by a user, since a user namespace may have only one.
package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The marks of Istio's in-pod rules.
const (
	Mark     = 0x539 // on packets of the proxy's own sockets
	ConnMark = 0x111 // on connections that the proxy opened toward the application
	MarkMask = 0xfff
)

// originalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST, which have the same number at their own levels.
const originalDst = 80

// OriginalDst returns the address a redirected connection was going to, or the connection's own local address if it was
// not redirected.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	tcp, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("original destination: connection has no address")
	}
	local := tcp.AddrPort()
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	dst := local
	var serr error
	err = raw.Control(func(fd uintptr) {
		if local.Addr().Is4() {
			// The value is a sockaddr_in, for which this getter's 20 bytes have room.
			var m *unix.IPv6Mreq
			if m, serr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, originalDst); serr == nil {
				b := m.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
			}
			return
		}
		// And a sockaddr_in6 is the beginning of what this one gets.
		var m *unix.IPv6MTUInfo
		if m, serr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, originalDst); serr == nil {
			var port [2]byte
			binary.NativeEndian.PutUint16(port[:], m.Addr.Port)
			dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), binary.BigEndian.Uint16(port[:]))
		}
	})
	switch {
	case err != nil:
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	case errors.Is(serr, unix.ENOENT), errors.Is(serr, unix.ENOPROTOOPT): // not tracked, or no tracking at all
		return local, nil
	case serr != nil:
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", serr)
	}
	return dst, nil
}

// Control returns a Control function for net.Dialer and net.ListenConfig that sets the packet mark. Mark 0 sets none and
// needs no privilege; any other needs CAP_NET_ADMIN, or CAP_NET_RAW, in the socket's namespace.
func Control(mark uint32) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		if mark == 0 {
			return nil
		}
		var serr error
		if err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
		}); err != nil {
			return err
		}
		if serr != nil {
			return fmt.Errorf("set packet mark %#x: %w", mark, serr)
		}
		return nil
	}
}

// ReusePort is a Control function for net.ListenConfig: a proxy that takes over may listen beside the one that drains.
func ReusePort(_, _ string, c syscall.RawConn) error {
	var serr error
	if err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}); err != nil {
		return err
	}
	return serr
}

// UserTimeout returns a Control function that ends connections whose data is not acknowledged for d; 0 sets nothing.
// Sockets that a listener accepts inherit it.
func UserTimeout(d time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		if d == 0 || len(network) < 3 || network[:3] != "tcp" {
			return nil
		}
		var serr error
		if err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
		}); err != nil {
			return err
		}
		if serr != nil {
			return fmt.Errorf("set user timeout %v: %w", d, serr)
		}
		return nil
	}
}

// Controls joins Control functions; the first error ends it.
func Controls(fs ...func(network, address string, c syscall.RawConn) error) func(network, address string, c syscall.RawConn) error {
	return func(network, address string, c syscall.RawConn) error {
		for _, f := range fs {
			if err := f(network, address, c); err != nil {
				return err
			}
		}
		return nil
	}
}

// KeepAlive is ztunnel's default for the sockets on both of its sides.
func KeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}
}

// SpoofSource returns a Control function for net.Dialer that lets the socket be bound to an address that is not this
// host's: the client's, toward the application. It needs CAP_NET_ADMIN; Config.SpoofSource brings the replies back.
func SpoofSource() func(network, address string, c syscall.RawConn) error {
	return func(network, _ string, c syscall.RawConn) error {
		level, free, transparent := unix.SOL_IP, unix.IP_FREEBIND, unix.IP_TRANSPARENT
		if network == "tcp6" {
			level, free, transparent = unix.SOL_IPV6, unix.IPV6_FREEBIND, unix.IPV6_TRANSPARENT
		}
		var serr error
		if err := c.Control(func(fd uintptr) {
			if serr = unix.SetsockoptInt(int(fd), level, free, 1); serr == nil {
				serr = unix.SetsockoptInt(int(fd), level, transparent, 1)
			}
		}); err != nil {
			return err
		}
		if serr != nil {
			return fmt.Errorf("allow a foreign source address: %w", serr)
		}
		return nil
	}
}

package inpod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Netns opens sockets in a network namespace. A nil *Netns is the current one. A socket stays in the namespace it was
// made in, whichever thread uses it, so only the making needs a thread that has moved.
type Netns struct {
	f  *os.File
	id netnsID
}

// OpenNetns takes ownership of an open namespace descriptor.
func OpenNetns(f *os.File) (*Netns, error) {
	id, err := idOf(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Netns{f: f, id: id}, nil
}

// File is the namespace's descriptor, which stays the Netns's own.
func (n *Netns) File() *os.File {
	if n == nil {
		return nil
	}
	return n.f
}

// Same reports whether both are one namespace.
func (n *Netns) Same(o *Netns) bool {
	return n == o || (n != nil && o != nil && n.id == o.id)
}

// Close closes the descriptor; sockets live on.
func (n *Netns) Close() error {
	if n == nil {
		return nil
	}
	return n.f.Close()
}

// Do runs f on a thread that is in the namespace. f must not rely on goroutines that it starts being there too, and
// should not block.
func (n *Netns) Do(f func() error) error {
	if n == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer back.Close()
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // otherwise the thread ends with this goroutine: nobody else may find itself in the wrong namespace
		done <- err
	}()
	return <-done
}

// Listen is lc.Listen in the namespace. The address must be numeric.
func (n *Netns) Listen(ctx context.Context, lc *net.ListenConfig, network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = lc.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is lc.ListenPacket in the namespace. The address must be numeric.
func (n *Netns) ListenPacket(ctx context.Context, lc *net.ListenConfig, network, address string) (pc net.PacketConn, err error) {
	err = n.Do(func() error {
		pc, err = lc.ListenPacket(ctx, network, address)
		return err
	})
	return pc, err
}

// Dial is d.DialContext in the namespace, for numeric addresses. TCP connects without occupying a thread; there, of d,
// Control, ControlContext, LocalAddr, Timeout, Deadline and KeepAliveConfig are heeded.
func (n *Netns) Dial(ctx context.Context, d *net.Dialer, network, address string) (c net.Conn, err error) {
	if n == nil {
		return d.DialContext(ctx, network, address)
	}
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial in a network namespace: %w", err)
	}
	if network != "tcp" && network != "tcp4" && network != "tcp6" { // connectionless: does not block
		err = n.Do(func() error {
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.Timeout)
		defer cancel()
	}
	if !d.Deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Deadline)
		defer cancel()
	}
	c, err = n.dialTCP(ctx, d, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

func (n *Netns) dialTCP(ctx context.Context, d *net.Dialer, to netip.AddrPort) (net.Conn, error) {
	family, network := unix.AF_INET, "tcp4"
	if to.Addr().Is6() {
		family, network = unix.AF_INET6, "tcp6"
	}
	var f *os.File
	err := n.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		f = os.NewFile(uintptr(fd), "tcp")
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	switch {
	case d.ControlContext != nil:
		err = d.ControlContext(ctx, network, to.String(), raw)
	case d.Control != nil:
		err = d.Control(network, to.String(), raw)
	}
	if err != nil {
		return nil, err
	}
	if err := begin(raw, d.LocalAddr, to); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	err = finish(raw)
	if !stop() {
		return nil, ctxError(ctx)
	}
	if err != nil {
		return nil, err
	}
	c, err := net.FileConn(f) // a duplicate, in Go's own care
	if err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true)
		if d.KeepAliveConfig.Enable {
			_ = t.SetKeepAliveConfig(d.KeepAliveConfig)
		}
	}
	return c, nil
}

// begin binds the socket and starts to connect it.
func begin(raw syscall.RawConn, local net.Addr, to netip.AddrPort) error {
	var serr error
	err := raw.Control(func(fd uintptr) {
		if a, ok := local.(*net.TCPAddr); ok && a != nil {
			from := a.AddrPort()
			if serr = unix.Bind(int(fd), sockaddr(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))); serr != nil {
				serr = os.NewSyscallError("bind", serr)
				return
			}
		}
		serr = unix.Connect(int(fd), sockaddr(to))
		if errors.Is(serr, unix.EINPROGRESS) || errors.Is(serr, unix.EINTR) {
			serr = nil
		}
		serr = os.NewSyscallError("connect", serr)
	})
	return errors.Join(err, serr)
}

// finish waits until the socket is connected or has failed. The poller may wake it too early, so the peer's name decides.
func finish(raw syscall.RawConn) error {
	var serr error
	err := raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			serr = os.NewSyscallError("getsockopt", err)
			return true
		}
		if code != 0 {
			serr = os.NewSyscallError("connect", syscall.Errno(code))
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if serr != nil {
		return serr
	}
	return err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// ctxError is what package net says of a context that ended: a timeout has to be one for net.Error.
func ctxError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return ctx.Err()
}

package inpod

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestSocketsInNamespace(t *testing.T) {
	t.Parallel()
	ns, err := OpenNetns(newNS(t))
	must(t, err)
	lc := net.ListenConfig{}
	l, err := ns.Listen(t.Context(), &lc, "tcp", "127.0.0.1:15001")
	must(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "inside")
			c.Close()
		}
	}()
	if c, err := net.Dial("tcp", "127.0.0.1:15001"); err == nil {
		c.Close()
		t.Error("reached from outside the namespace")
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c, err := ns.Dial(t.Context(), &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}, "tcp", "127.0.0.1:15001")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			b, err := io.ReadAll(c)
			if _, ok := c.(*net.TCPConn); !ok || err != nil || string(b) != "inside" || !strings.HasPrefix(c.LocalAddr().String(), "127.0.0.9:") {
				t.Errorf("read %q, %v from %T %v", b, err, c, c.LocalAddr())
			}
		})
	}
	wg.Wait()
	_, err = ns.Dial(t.Context(), &net.Dialer{}, "tcp", "127.0.0.1:1")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial of a closed port = %v", err)
	}
	pc, err := ns.ListenPacket(t.Context(), &lc, "udp", "127.0.0.1:15053")
	must(t, err)
	defer pc.Close()
	u, err := ns.Dial(t.Context(), &net.Dialer{}, "udp", "127.0.0.1:15053")
	must(t, err)
	defer u.Close()
	_, err = u.Write([]byte("?"))
	must(t, err)
	_ = pc.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := pc.ReadFrom(make([]byte, 9)); n != 1 {
		t.Errorf("ReadFrom = %d, %v", n, err)
	}
}

// TestDialTimeout dials an address that nobody answers for.
func TestDialTimeout(t *testing.T) {
	t.Parallel()
	f := newNS(t)
	ns, err := OpenNetns(f)
	must(t, err)
	must(t, ns.Do(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "void"
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "peer"}); err != nil {
			return err
		}
		link, err := netlink.LinkByName("void")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.5.0.1/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(peer))
	}))
	_, err = ns.Dial(t.Context(), &net.Dialer{Timeout: 50 * time.Millisecond}, "tcp", "10.5.0.2:80")
	var ne net.Error
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("Dial = %v, want a timeout", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ns.Dial(ctx, &net.Dialer{}, "tcp", "10.5.0.2:80"); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial = %v, want canceled", err)
	}
}

// TestThreadsComeBack runs many visits and then looks where threads are.
func TestThreadsComeBack(t *testing.T) {
	t.Parallel()
	ns, err := OpenNetns(newNS(t))
	must(t, err)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			must(t, ns.Do(func() error {
				in, err := os.Stat("/proc/thread-self/ns/net")
				if err != nil {
					return err
				}
				if os.SameFile(in, home) {
					return errors.New("not in the namespace")
				}
				return nil
			}))
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			now, err := os.Stat("/proc/thread-self/ns/net")
			if err != nil || !os.SameFile(now, home) {
				t.Errorf("thread is away from home: %v", err)
			}
		})
	}
	wg.Wait()
	want := errors.New("said so")
	if err := ns.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do = %v", err)
	}
	var none *Netns
	if err := none.Do(func() error { return want }); !errors.Is(err, want) || none.Close() != nil || none.File() != nil {
		t.Error("a nil Netns is not the current one")
	}
}

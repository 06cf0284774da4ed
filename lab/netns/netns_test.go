package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/netns/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func newVPC(t *testing.T) *netns.VPC {
	t.Helper()
	v, err := netns.New(netns.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		if links, err := netlink.LinkList(); err != nil || len(links) != 1 {
			t.Errorf("after Close the interfaces are %v (%v), want only lo", names(links), err)
		}
	})
	return v
}

func names(links []netlink.Link) (out []string) {
	for _, l := range links {
		out = append(out, l.Attrs().Name)
	}
	return out
}

func attach(t *testing.T, v *netns.VPC, subnet netip.Prefix) *netns.Port {
	t.Helper()
	a, err := v.Allocate(subnet)
	if err != nil {
		t.Fatal(err)
	}
	p, err := v.Attach(a)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve answers connections in p with the address of the client.
func serve(t *testing.T, p *netns.Port) string {
	t.Helper()
	var l net.Listener
	if err := p.Do(func() (err error) {
		l, err = net.Listen("tcp4", net.JoinHostPort(p.Addr.String(), "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// ask returns what the server at addr says to a client made by in.
func ask(t *testing.T, in func(func() error) error, addr string) string {
	t.Helper()
	var got []byte
	err := in(func() error {
		d := net.Dialer{Timeout: 5 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp4", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		got, err = io.ReadAll(c)
		return err
	})
	if err != nil {
		t.Fatalf("connect to %s: %v", addr, err)
	}
	return string(got)
}

func here(f func() error) error { return f() }

func TestPortsReachEachOtherAndTheRouter(t *testing.T) {
	v := newVPC(t)
	pod, taskA, taskB := attach(t, v, netns.Pods), attach(t, v, netns.SubnetA), attach(t, v, netns.SubnetB)
	for _, c := range []struct {
		name     string
		from, to *netns.Port
	}{{"pod to task", pod, taskA}, {"task to pod", taskA, pod}, {"task to task", taskA, taskB}, {"pod to itself", pod, pod}} {
		if got := ask(t, c.from.Do, serve(t, c.to)); got != c.from.Addr.String() {
			t.Errorf("%s: the server sees %s, want %s", c.name, got, c.from.Addr)
		}
	}
	if got := ask(t, here, serve(t, pod)); got != netns.Router.String() {
		t.Errorf("router to pod: the server sees %s, want %s", got, netns.Router)
	}
	for _, a := range []netip.Addr{netns.Router, netns.Resolver, netns.TaskMetadata, netns.PodIdentityAgent} {
		l, err := net.Listen("tcp4", net.JoinHostPort(a.String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, _ = fmt.Fprint(c, "root")
				_ = c.Close()
			}
		}()
		if got := ask(t, taskB.Do, l.Addr().String()); got != "root" {
			t.Errorf("task to %s: got %q", a, got)
		}
		_ = l.Close()
	}
}

func TestLoopbackIsTheNamespacesOwn(t *testing.T) {
	v := newVPC(t)
	p := attach(t, v, netns.Pods)
	var l net.Listener
	if err := p.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := net.Dial("tcp4", l.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("loopback of the port is reachable from the root namespace")
	}
	if err := p.Do(func() error {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		t.Errorf("loopback of the port from inside: %v", err)
	}
}

func TestCloseOfAPortRemovesItsInterface(t *testing.T) {
	v := newVPC(t)
	p := attach(t, v, netns.Pods)
	addr := serve(t, p)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if c, err := new(net.Dialer).DialContext(ctx, "tcp4", addr); err == nil {
		_ = c.Close()
		t.Error("a closed port is still reachable")
	}
	again, err := v.Attach(p.Addr)
	if err != nil {
		t.Fatalf("attach a released address again: %v", err)
	}
	if got := ask(t, here, serve(t, again)); got != netns.Router.String() {
		t.Errorf("address used again: the server sees %s", got)
	}
}

func TestAddresses(t *testing.T) {
	v := newVPC(t)
	small := netip.MustParsePrefix("10.0.160.0/28")
	var got []string
	for {
		a, err := v.Allocate(small)
		if errors.Is(err, netns.ErrSubnetFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
	want := "10.0.160.4 10.0.160.5 10.0.160.6 10.0.160.7 10.0.160.8 10.0.160.9 10.0.160.10 10.0.160.11 10.0.160.12 10.0.160.13 10.0.160.14"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("addresses of a /28 = %s, want %s", s, want)
	}
	v.Release(netip.MustParseAddr("10.0.160.6"))
	if a, err := v.Allocate(small); err != nil || a.String() != "10.0.160.6" {
		t.Errorf("Allocate after Release = %v, %v, want 10.0.160.6", a, err)
	}
	first, err := v.Allocate(netns.Pods)
	if err != nil {
		t.Fatal(err)
	}
	v.Release(first)
	if a, _ := v.Allocate(netns.Pods); a == first {
		t.Errorf("Allocate gives %s again at once; it should be the last to be used again", a)
	}
	if err := v.Reserve(netip.MustParseAddr("10.0.160.6")); !errors.Is(err, netns.ErrAddressInUse) {
		t.Errorf("Reserve of an address in use = %v, want ErrAddressInUse", err)
	}
	if _, err := v.Allocate(netip.MustParsePrefix("192.168.0.0/24")); err == nil {
		t.Error("Allocate outside of the VPC succeeded")
	}
	if _, err := v.Attach(netip.MustParseAddr("192.168.0.1")); err == nil {
		t.Error("Attach outside of the VPC succeeded")
	}
}

func TestConfigNamesTheMissingField(t *testing.T) {
	if _, err := netns.New(netns.Config{}); err == nil || !strings.Contains(err.Error(), "Config.Log") {
		t.Errorf("New(Config{}) = %v, want an error that names Config.Log", err)
	}
}

func BenchmarkAttach(b *testing.B) {
	v, err := netns.New(netns.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	for b.Loop() {
		a, err := v.Allocate(netns.Pods)
		if err != nil {
			b.Fatal(err)
		}
		p, err := v.Attach(a)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		v.Release(a)
	}
}

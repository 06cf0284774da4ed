package redirect

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const childEnv = "ISTHMUS_TEST_NETNS"

// TestMain runs the tests in a fresh network namespace, and a fresh user namespace where that is needed for it.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in a network namespace:", err)
		os.Exit(1)
	}
}

const (
	podIP    = "10.1.1.1"
	remoteIP = "10.1.1.2"
)

// network is a pod's namespace and a neighbour's, joined by a veth pair.
type network struct{ pod, remote *os.File }

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{pod: newNS(t), remote: newNS(t)}
	must(t, in(n.pod, func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "eth0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.remote.Fd())})
	}))
	for ns, addr := range map[*os.File]string{n.pod: podIP, n.remote: remoteIP} {
		must(t, in(ns, func() error { return configure(addr) }))
	}
	must(t, in(n.pod, func() error {
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(remoteIP)}) // as every pod has
	}))
	return n
}

func configure(addr string) error {
	for name, cidrs := range map[string][]string{"lo": nil, "eth0": {addr + "/24", "fd01::" + addr[len(addr)-1:] + "/64"}} {
		if err := up(name, cidrs...); err != nil {
			return err
		}
	}
	return nil
}

// up gives an interface of the current namespace its addresses and starts it.
func up(name string, cidrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, cidr := range cidrs {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		a.Flags |= unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNS makes a network namespace that lives as long as its descriptor.
func newNS(t *testing.T) *os.File {
	t.Helper()
	made := make(chan *os.File)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			close(made)
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			t.Error(err)
		}
		made <- f
	}()
	f := <-made
	if f == nil {
		t.FailNow()
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// in runs f on a thread of the namespace.
func in(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func listen(t *testing.T, ns *os.File, addr string, serve func(c *net.TCPConn)) {
	t.Helper()
	var l net.Listener
	must(t, in(ns, func() (err error) { l, err = net.Listen("tcp", addr); return err }))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.TCPConn))
		}
	}()
}

// say answers every connection with a word and, after a slash, with its original destination and peer.
func say(word string) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		defer c.Close()
		dst, err := OriginalDst(c)
		if err != nil {
			fmt.Fprint(c, err)
			return
		}
		fmt.Fprintf(c, "%s/%s/%s", word, dst, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
	}
}

func ask(ns *os.File, d net.Dialer, addr string) string {
	var got string
	d.Timeout = 2 * time.Second
	err := in(ns, func() error {
		c, err := d.DialContext(context.Background(), "tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		b, err := io.ReadAll(c)
		got = string(b)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return got
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestCapture(t *testing.T) {
	n := newNetwork(t)
	cfg := Config{Outbound: true, Inbound: true, DNS: true, IPv6: true, SpoofSource: true,
		ExcludeInbound: []uint16{9000}}
	for range 2 { // the second time replaces the first
		must(t, Install(n.pod, cfg))
	}
	listen(t, n.pod, ":15001", say("outbound"))
	listen(t, n.pod, ":15006", say("inbound"))
	listen(t, n.pod, ":15008", say("hbone"))
	listen(t, n.pod, ":9000", say("excluded"))
	listen(t, n.pod, ":8080", say("app"))
	listen(t, n.remote, ":80", say("remote"))
	marked := net.Dialer{Control: Control(Mark)}

	check(t, "outbound", ask(n.pod, net.Dialer{}, remoteIP+":80"), "outbound/10.1.1.2:80/"+podIP)
	check(t, "outbound to nowhere", ask(n.pod, net.Dialer{}, "10.1.1.77:5"), "outbound/10.1.1.77:5/"+podIP)
	check(t, "outbound over IPv6", ask(n.pod, net.Dialer{}, "[fd01::2]:80"), "outbound/[fd01::2]:80/fd01::1")
	check(t, "outbound, marked", ask(n.pod, marked, remoteIP+":80"), "remote/10.1.1.2:80/"+podIP)
	check(t, "outbound over IPv6, marked", ask(n.pod, marked, "[fd01::2]:80"), "remote/[fd01::2]:80/fd01::1")
	check(t, "loopback", ask(n.pod, net.Dialer{}, "127.0.0.1:8080"), "app/127.0.0.1:8080/127.0.0.1")
	check(t, "own address", ask(n.pod, net.Dialer{}, podIP+":8080"), "app/10.1.1.1:8080/"+podIP)
	check(t, "inbound", ask(n.remote, net.Dialer{}, podIP+":8080"), "inbound/10.1.1.1:8080/"+remoteIP)
	check(t, "inbound over IPv6", ask(n.remote, net.Dialer{}, "[fd01::1]:8080"), "inbound/[fd01::1]:8080/fd01::2")
	check(t, "inbound, nobody listening", ask(n.remote, net.Dialer{}, podIP+":4"), "inbound/10.1.1.1:4/"+remoteIP)
	check(t, "inbound HBONE", ask(n.remote, net.Dialer{}, podIP+":15008"), "hbone/10.1.1.1:15008/"+remoteIP)
	check(t, "inbound, excluded", ask(n.remote, net.Dialer{}, podIP+":9000"), "excluded/10.1.1.1:9000/"+remoteIP)
	check(t, "proxy to application", ask(n.pod, marked, podIP+":8080"), "app/10.1.1.1:8080/"+podIP)
	spoofed := net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.9.9.9")},
		Control:   Controls(Control(Mark), SpoofSource()),
	}
	check(t, "proxy to application, as the client", ask(n.pod, spoofed, podIP+":8080"), "app/10.1.1.1:8080/10.9.9.9")

	for range 2 { // the second time there is nothing left
		must(t, Remove(n.pod))
	}
	check(t, "outbound, rules removed", ask(n.pod, net.Dialer{}, remoteIP+":80"), "remote/10.1.1.2:80/"+podIP)
	check(t, "inbound, rules removed", ask(n.remote, net.Dialer{}, podIP+":8080"), "app/10.1.1.1:8080/"+remoteIP)
}

func TestExclusionsAndFamilies(t *testing.T) {
	n := newNetwork(t)
	must(t, Install(n.pod, Config{Outbound: true, ExcludeOutbound: []netip.Prefix{netip.MustParsePrefix("10.1.1.2/31")}}))
	listen(t, n.pod, ":15001", say("outbound"))
	listen(t, n.pod, ":8080", say("app"))
	listen(t, n.remote, ":80", say("remote"))
	check(t, "excluded prefix", ask(n.pod, net.Dialer{}, remoteIP+":80"), "remote/10.1.1.2:80/"+podIP)
	check(t, "beside it", ask(n.pod, net.Dialer{}, "10.1.1.4:80"), "outbound/10.1.1.4:80/"+podIP)
	check(t, "IPv6 not captured", ask(n.pod, net.Dialer{}, "[fd01::2]:80"), "remote/[fd01::2]:80/fd01::1")
	check(t, "inbound not captured", ask(n.remote, net.Dialer{}, podIP+":8080"), "app/10.1.1.1:8080/"+remoteIP)
}

func TestDNS(t *testing.T) {
	n := newNetwork(t)
	must(t, Install(n.pod, Config{DNS: true}))
	serve := func(ns *os.File, addr, word string) {
		var pc net.PacketConn
		must(t, in(ns, func() (err error) { pc, err = net.ListenPacket("udp4", addr); return err }))
		t.Cleanup(func() { pc.Close() })
		go func() {
			b := make([]byte, 512)
			for {
				_, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(word), from)
			}
		}()
	}
	serve(n.pod, "127.0.0.1:15053", "proxy")
	serve(n.remote, ":53", "upstream")
	listen(t, n.pod, "127.0.0.1:15053", say("proxy"))
	query := func(d net.Dialer, addr string) (got string) {
		err := in(n.pod, func() error {
			c, err := d.DialContext(context.Background(), "udp4", addr)
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			b := make([]byte, 64)
			k, err := c.Read(b)
			got = string(b[:k])
			return err
		})
		if err != nil {
			return err.Error()
		}
		return got
	}
	check(t, "udp", query(net.Dialer{}, remoteIP+":53"), "proxy")
	check(t, "udp to nowhere", query(net.Dialer{}, "10.1.1.99:53"), "proxy")
	check(t, "udp, marked", query(net.Dialer{Control: Control(Mark)}, remoteIP+":53"), "upstream")
	check(t, "tcp", ask(n.pod, net.Dialer{}, remoteIP+":53"), fmt.Sprintf("proxy/%s:53/%s", remoteIP, podIP))
}

func TestNoRedirection(t *testing.T) {
	n := newNetwork(t)
	listen(t, n.pod, ":8080", say("app"))
	check(t, "plain", ask(n.remote, net.Dialer{Control: Control(0)}, podIP+":8080"), "app/10.1.1.1:8080/"+remoteIP)
	check(t, "plain IPv6", ask(n.remote, net.Dialer{}, "[fd01::1]:8080"), "app/[fd01::1]:8080/fd01::2")
}

package inpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod/zdspb"
)

const childEnv = "ISTHMUS_TEST_NETNS"

// home is the namespace the tests start in. Not /proc/self: the main thread may be one that newNS has used up.
var home os.FileInfo

// TestMain runs the tests in a fresh network namespace, and a fresh user namespace where that is needed for it.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		var err error
		if home, err = os.Stat("/proc/thread-self/ns/net"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNS makes a network namespace with its loopback up.
func newNS(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		f, oerr := os.Open("/proc/thread-self/ns/net")
		made <- result{f, errors.Join(err, oerr)}
	}()
	r := <-made
	must(t, r.err)
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

// recorder is a Handler that notes what it is told.
type recorder struct {
	mu     sync.Mutex
	events []string
	served map[string]*Netns
	refuse error
}

func (r *recorder) Add(_ context.Context, w Workload, f *os.File) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		f.Close()
		r.events = append(r.events, "refuse "+w.UID)
		return r.refuse
	}
	ns, err := OpenNetns(f)
	if err != nil {
		return err
	}
	if r.served == nil {
		r.served = make(map[string]*Netns)
	}
	if old := r.served[w.UID]; old != nil {
		old.Close()
	}
	r.served[w.UID] = ns
	r.events = append(r.events, fmt.Sprintf("add %s %s/%s/%s", w.UID, w.Namespace, w.Name, w.ServiceAccount))
	return nil
}

func (r *recorder) Remove(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ns := r.served[uid]; ns != nil {
		ns.Close()
		delete(r.served, uid)
	}
	r.events = append(r.events, "remove "+uid)
}

func (r *recorder) Synced(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("synced %v", ok))
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.events
	r.events = nil
	return e
}

func (r *recorder) setRefuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = err
}

func (r *recorder) ns(uid string) *Netns {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served[uid]
}

// expect collects events until there are as many as wanted.
func (r *recorder) expect(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	eventually(t, fmt.Sprintf("events %q", want), func() bool {
		got = append(got, r.take()...)
		return len(got) >= len(want)
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		<-tick.C
	}
}

// run starts something with a Run method and returns what stops it and yields its error.
func run(t *testing.T, f func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func newServer(t *testing.T, path string) *Server {
	t.Helper()
	s, err := NewServer(ServerConfig{Path: path, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func newClient(t *testing.T, path string, h Handler) *Client {
	t.Helper()
	c, err := NewClient(ClientConfig{Path: path, Handler: h, Log: slog.New(slog.DiscardHandler), RetryEvery: 20 * time.Millisecond})
	must(t, err)
	return c
}

func workload(uid string) Workload {
	return Workload{UID: uid, Name: "pod-" + uid, Namespace: "default", ServiceAccount: "sa"}
}

func TestSnapshotAndChanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	a, b, c := newNS(t), newNS(t), newNS(t)
	s := newServer(t, path)
	must(t, s.Add(t.Context(), workload("a"), a)) // nobody is connected
	must(t, s.Add(t.Context(), workload("b"), b))
	stopServer := run(t, s.Run)
	r := &recorder{}
	run(t, newClient(t, path, r).Run)
	r.expect(t, "add a default/pod-a/sa", "add b default/pod-b/sa", "synced true")

	must(t, s.Add(t.Context(), workload("c"), c))
	must(t, s.Remove(t.Context(), "a"))
	must(t, s.Remove(t.Context(), "unknown"))
	must(t, s.Add(t.Context(), workload("b"), b)) // the same namespace again: nothing
	r.expect(t, "add c default/pod-c/sa", "remove a")
	must(t, s.Add(t.Context(), workload("b"), a)) // another one
	r.expect(t, "add b default/pod-b/sa")

	// The agent goes away, and another comes that knows one pod of two.
	must(t, stopServer())
	r.expect(t, "synced false")
	s2 := newServer(t, path)
	must(t, s2.Add(t.Context(), workload("c"), c))
	run(t, s2.Run)
	r.expect(t, "remove b", "synced true")
	if s2.Connected() != true || s.Connected() {
		t.Error("Connected is wrong")
	}
}

func TestRefusedPodIsTriedAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	s := newServer(t, path)
	run(t, s.Run)
	r := &recorder{}
	run(t, newClient(t, path, r).Run)
	r.expect(t, "synced true")
	r.setRefuse(errors.New("port 15001 is taken"))
	err := s.Add(t.Context(), workload("a"), newNS(t))
	if err == nil || !strings.Contains(err.Error(), "port 15001 is taken") {
		t.Fatalf("Add = %v, want the proxy's error", err)
	}
	eventually(t, "not synced", func() bool { return strings.Contains(strings.Join(r.take(), ","), "synced false") })
	r.setRefuse(nil)
	eventually(t, "served at last", func() bool { return r.ns("a") != nil })
	eventually(t, "synced again", func() bool { return strings.Contains(strings.Join(r.take(), ","), "synced true") })
}

// TestNewestProxyGetsChanges is a rolling update: two proxies for a while.
func TestNewestProxyGetsChanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	s := newServer(t, path)
	run(t, s.Run)
	older, newer := &recorder{}, &recorder{}
	run(t, newClient(t, path, older).Run)
	older.expect(t, "synced true")
	stopNewer := run(t, newClient(t, path, newer).Run)
	newer.expect(t, "synced true")
	must(t, s.Add(t.Context(), workload("a"), newNS(t)))
	newer.expect(t, "add a default/pod-a/sa")
	must(t, stopNewer())
	eventually(t, "change reaches the older again", func() bool {
		must(t, s.Add(t.Context(), workload("b"), newNS(t)))
		return older.ns("b") != nil
	})
}

// agent is a bare socket to misbehave with.
func agent(t *testing.T) (path string, conn func() *net.UnixConn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ztunnel.sock")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return path, func() *net.UnixConn {
		c, err := l.AcceptUnix()
		must(t, err)
		p, err := receive(c)
		must(t, err)
		var hello zdspb.ZdsHello
		must(t, proto.Unmarshal(p.data, &hello))
		if hello.GetVersion() != zdspb.Version_V1 {
			t.Errorf("hello version %v", hello.GetVersion())
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func TestViolationsEndTheClient(t *testing.T) {
	t.Parallel()
	add := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "a", WorkloadInfo: &zdspb.WorkloadInfo{Name: "a"}}}}
	del := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: "a"}}}
	for name, do := range map[string]func(c *net.UnixConn, f *os.File) error{
		"add without descriptor": func(c *net.UnixConn, _ *os.File) error { return send(c, add, nil) },
		"del with descriptor":    func(c *net.UnixConn, f *os.File) error { return send(c, del, f) },
		"two descriptors": func(c *net.UnixConn, f *os.File) error {
			b, _ := proto.Marshal(add)
			_, _, err := c.WriteMsgUnix(b, unix.UnixRights(int(f.Fd()), int(f.Fd())), nil)
			return err
		},
		"eight descriptors": func(c *net.UnixConn, f *os.File) error {
			b, _ := proto.Marshal(add)
			fd := int(f.Fd())
			_, _, err := c.WriteMsgUnix(b, unix.UnixRights(fd, fd, fd, fd, fd, fd, fd, fd), nil)
			return err
		},
		"garbage":  func(c *net.UnixConn, _ *os.File) error { _, err := c.Write([]byte{0xff, 0xff}); return err },
		"no kind":  func(c *net.UnixConn, _ *os.File) error { _, err := c.Write([]byte{0x7a, 0x00}); return err },
		"too long": func(c *net.UnixConn, _ *os.File) error { _, err := c.Write(make([]byte, MaxMessage+1)); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, accept := agent(t)
			done := make(chan error, 1)
			go func() { done <- newClient(t, path, &recorder{}).Run(t.Context()) }()
			must(t, do(accept(), newNS(t)))
			if err := <-done; !errors.Is(err, errProtocol) {
				t.Errorf("Run = %v, want a violation", err)
			}
		})
	}
}

// TestKeepAndMissingInfo checks the rest of what an agent may send.
func TestKeepAndMissingInfo(t *testing.T) {
	t.Parallel()
	path, accept := agent(t)
	r := &recorder{}
	run(t, newClient(t, path, r).Run)
	c := accept()
	exchange := func(m *zdspb.WorkloadRequest, f *os.File) string {
		t.Helper()
		must(t, send(c, m, f))
		p, err := receive(c)
		must(t, err)
		var resp zdspb.WorkloadResponse
		must(t, proto.Unmarshal(p.data, &resp))
		return resp.GetAck().GetError()
	}
	ns := newNS(t)
	done := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}}
	bare := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "x"}}}
	if e := exchange(bare, ns); !strings.Contains(e, "workload info") {
		t.Errorf("ack = %q, want a refusal", e)
	}
	for _, uid := range []string{"a", "b"} {
		full := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: uid, WorkloadInfo: &zdspb.WorkloadInfo{Name: uid}}}}
		if e := exchange(full, ns); e != "" {
			t.Errorf("ack = %q", e)
		}
	}
	_ = exchange(done, nil)
	r.expect(t, "add a /a/", "add b /b/", "synced true")
	c.Close()
	c = accept()
	for _, uid := range []string{"b", "unknown"} {
		keep := &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: uid}}}
		if e := exchange(keep, nil); e != "" {
			t.Errorf("ack = %q", e)
		}
	}
	_ = exchange(done, nil)
	r.expect(t, "synced false", "remove a", "synced true")
}

func TestServerRefusesStrangers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ztunnel.sock")
	s := newServer(t, path)
	run(t, s.Run)
	eventually(t, "listening", func() bool { // the path is there a moment before
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	for _, hello := range [][]byte{{0xff}, {0x08, 0x02}} {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		must(t, err)
		_, err = c.Write(hello)
		must(t, err)
		if n, err := c.Read(make([]byte, 10)); n != 0 {
			t.Errorf("Read = %d, %v, want the end", n, err)
		}
		c.Close()
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for _, m := range []*zdspb.WorkloadRequest{
		{Payload: &zdspb.WorkloadRequest_Keep{Keep: &zdspb.KeepWorkload{Uid: "a"}}},
		{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}},
		{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{Uid: "a", WorkloadInfo: &zdspb.WorkloadInfo{Name: "n"}}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRequest(&packet{data: b})
		if err == nil && (r.kind == kindAdd || r.ns != nil) {
			t.Errorf("add without a descriptor: %v", r)
		}
	})
}

// A proxy that takes nothing is given so many changes, and the agent is told that it takes no more.
func TestQueueIsBounded(t *testing.T) {
	s, err := NewServer(ServerConfig{Path: filepath.Join(t.TempDir(), "zds.sock"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c := &serverConn{queue: make(chan *change, maxQueued), done: make(chan struct{})}
	for range maxQueued {
		c.queue <- &change{}
	}
	s.conns = append(s.conns, c)
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := s.Add(t.Context(), Workload{UID: "a", Name: "a", Namespace: "b", ServiceAccount: "c"}, ns); err == nil || !strings.Contains(err.Error(), "too many changes") {
		t.Errorf("Add() = %v", err)
	}
}

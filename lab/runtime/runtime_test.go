package runtime_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/netns/netnstest"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

func TestMain(m *testing.M) {
	if handled, code := runtime.MaybeInit(os.Args); handled {
		os.Exit(code)
	}
	os.Exit(netnstest.Main(m))
}

// deadline bounds what a test waits for.
const deadline = 20 * time.Second

func newRuntime(tb testing.TB) *runtime.Runtime {
	tb.Helper()
	log := slog.New(slog.DiscardHandler)
	vpc, err := netns.New(netns.Config{Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := vpc.Close(); err != nil {
			tb.Error(err)
		}
	})
	images, err := runtime.NewCatalogue(runtime.CatalogueConfig{})
	if err != nil {
		tb.Fatal(err)
	}
	rt, err := runtime.New(runtime.Config{Dir: tb.TempDir(), VPC: vpc, Images: images, Log: log})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := rt.Close(); err != nil {
			tb.Error(err)
		}
		assertNothingLeft(tb)
	})
	return rt
}

// assertNothingLeft checks that the test process, which is process 1 of its namespace, is the only one there, that no
// mount was added, and that it holds no network namespace open.
func assertNothingLeft(tb testing.TB) {
	tb.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(procs) != 1 {
		for _, p := range procs {
			cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			tb.Errorf("left behind: process %s %q", p, cmdline)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(tb.Name())) {
		tb.Errorf("left behind: mounts (%v)\n%s", err, mounts)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Error(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); err == nil && strings.HasPrefix(to, "net:") {
			tb.Errorf("left behind: descriptor of %s", to)
		}
	}
}

func newSandbox(tb testing.TB, rt *runtime.Runtime, spec runtime.SandboxSpec) *runtime.Sandbox {
	tb.Helper()
	s, err := rt.NewSandbox(tb.Context(), spec)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func start(tb testing.TB, s *runtime.Sandbox, spec runtime.ContainerSpec) *runtime.Container {
	tb.Helper()
	if spec.Name == "" {
		spec.Name = spec.ID
	}
	if spec.Image == "" {
		spec.Image = "busybox:1"
	}
	c, err := s.Start(tb.Context(), spec)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// sh starts a container that runs a shell script.
func sh(tb testing.TB, s *runtime.Sandbox, id, script string) *runtime.Container {
	tb.Helper()
	return start(tb, s, runtime.ContainerSpec{ID: id, Entrypoint: []string{"/bin/sh", "-c", script}})
}

func wait(tb testing.TB, c *runtime.Container) (int, string) {
	tb.Helper()
	select {
	case <-c.Done():
	case <-time.After(deadline):
		tb.Fatalf("container %s did not end", c.Name())
	}
	return c.ExitStatus()
}

func logs(tb testing.TB, c *runtime.Container, opt runtime.LogOptions) string {
	tb.Helper()
	var b bytes.Buffer
	if err := c.Logs(tb.Context(), opt, &b); err != nil {
		tb.Fatal(err)
	}
	return b.String()
}

func run(tb testing.TB, c *runtime.Container, command ...string) (string, int) {
	tb.Helper()
	var out bytes.Buffer
	code, err := c.Exec(tb.Context(), runtime.ExecSpec{Command: command, Stdout: &out, Stderr: &out})
	if err != nil {
		tb.Fatalf("exec %q: %v", command, err)
	}
	return out.String(), code
}

func TestTwoSandboxesTalkHTTP(t *testing.T) {
	rt := newRuntime(t)
	server := newSandbox(t, rt, runtime.SandboxSpec{ID: "server"})
	start(t, server, runtime.ContainerSpec{ID: "echo", Image: "ealen/echo-server:0.9.2", Env: []string{"PORT=8080"}})
	client := newSandbox(t, rt, runtime.SandboxSpec{ID: "client"})
	c := start(t, client, runtime.ContainerSpec{ID: "curl", Image: "curlimages/curl", Command: []string{"sleep", "infinity"}})
	url := fmt.Sprintf("http://%s:8080/hello?a=1", server.Addr())
	out, code := run(t, c, "curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "0", url)
	if code != 0 || !strings.Contains(out, `"ip":"::ffff:`+client.Addr().String()) || !strings.Contains(out, `"originalUrl":"/hello?a=1"`) {
		t.Errorf("curl %s = %q, exit code %d", url, out, code)
	}
	conn, err := client.Dial(t.Context(), "tcp", server.Addr().String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.LocalAddr().(*net.TCPAddr).IP.String(); got != client.Addr().String() {
		t.Errorf("Dial comes from %s, want %s", got, client.Addr())
	}
	_ = conn.Close()
	if _, err := client.Dial(t.Context(), "tcp", "localhost:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial of a closed port = %v, want connection refused", err)
	}
	if _, err := client.Dial(t.Context(), "tcp", "example.org:80"); err == nil {
		t.Error("Dial of a name succeeded")
	}
}

func TestWhatAContainerSees(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{
		ID: "see", Hostname: "web-0", Nameservers: []netip.Addr{netns.Resolver}, Searches: []string{"shop.svc.cluster.local", "svc.cluster.local"},
		Hosts: map[string]netip.Addr{"db.local": netip.MustParseAddr("10.0.64.9")},
	})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("value"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := start(t, s, runtime.ContainerSpec{
		ID: "see", Entrypoint: []string{"sleep", "infinity"}, Env: []string{"A=b c", "PATH=/usr/bin:/bin"}, WorkingDir: "/srv/dir",
		Mounts: []runtime.Mount{
			{Source: dir, Target: "/usr/share/not/there", ReadOnly: true}, {Source: filepath.Join(dir, "key"), Target: "/etc/isthmus/key"},
			{Source: dir, Target: "/var/run/secrets/x"}, {Source: dir, Target: "/data"},
			// Directories that are links, names that are links, and files where the host has a directory of programs.
			{Source: filepath.Join(dir, "key"), Target: "/bin/isthmus-test-key"}, {Source: filepath.Join(dir, "key"), Target: "/etc/mtab"},
		},
	})
	for _, test := range []struct{ script, want string }{
		{"hostname; cat /etc/hostname", "web-0\nweb-0\n"},
		{"cat /etc/resolv.conf", "nameserver 10.0.0.2\nsearch shop.svc.cluster.local svc.cluster.local\noptions ndots:5\n"},
		{"grep -c -e localhost -e web-0 -e db.local /etc/hosts", "4\n"},
		{"pwd; echo $A; echo $HOSTNAME; echo $HOME", "/srv/dir\nb c\nweb-0\n/root\n"},
		{"cat /usr/share/not/there/key /etc/isthmus/key /run/secrets/x/key /data/key", "valuevaluevaluevalue"},
		{"cat /bin/isthmus-test-key /usr/bin/isthmus-test-key /etc/mtab", "valuevaluevalue"},
		{"echo x > /data/new && cat /run/secrets/x/new", "x\n"},
		{"touch /usr/share/not/there/y 2>/dev/null || echo refused", "refused\n"},
		{"touch /usr/lib/y 2>/dev/null || echo refused; rm /usr/bin/env 2>/dev/null || echo refused", "refused\nrefused\n"},
		{"for d in /tmp /run /var/log /root /dev/shm /; do touch $d/ok || echo no $d; done", ""},
		{"echo data > /dev/null; head -c 3 /dev/zero | wc -c", "3\n"},
		{"ls /proc | grep -c '^[0-9]'", "4\n"}, // init, sleep, and this pipe
		{"cat /proc/1/comm | head -c 3; test -e " + dir + " || echo hidden", ""},
		{"test -d /usr/bin && test -x /bin/sh && ls /etc/passwd", "/etc/passwd\n"},
		{"cat /sys/class/net/eth0/address", netns.MAC(s.Addr()).String() + "\n"},
		{"umask", "0022\n"},
		{"mknod /tmp/null c 1 3 2>/dev/null || echo refused", "refused\n"},
		{"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n"},
	} {
		got, _ := run(t, c, "/bin/sh", "-c", test.script)
		if test.script == "ls /proc | grep -c '^[0-9]'" {
			if n, err := strconv.Atoi(strings.TrimSpace(got)); err != nil || n < 3 || n > 5 {
				t.Errorf("%d processes are visible in the container, want its own", n)
			}
			continue
		}
		if strings.Contains(test.script, "hidden") {
			if !strings.Contains(got, "hidden") {
				t.Errorf("the container sees the host's %s", dir)
			}
			continue
		}
		if got != test.want {
			t.Errorf("%s\n got %q\nwant %q", test.script, got, test.want)
		}
	}
	if st, err := os.Stat("/usr/share/not"); err == nil {
		t.Errorf("the host's /usr has %v now", st.Name())
	}
}

func TestReadOnlyRoot(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "ro"})
	c := start(t, s, runtime.ContainerSpec{
		ID: "ro", ReadOnlyRoot: true, Mounts: []runtime.Mount{{Source: t.TempDir(), Target: "/data"}},
		Entrypoint: []string{"/bin/sh", "-c", "touch /x 2>/dev/null || echo refused; touch /data/x && echo written"},
	})
	if code, _ := wait(t, c); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := logs(t, c, runtime.LogOptions{Tail: -1}); got != "refused\nwritten\n" {
		t.Errorf("output %q", got)
	}
}

func TestExitStatus(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "exit"})
	for _, test := range []struct {
		script, signal string
		code           int
	}{{"exit 0", "", 0}, {"exit 7", "", 7}, {"kill -9 $$", "SIGKILL", 137}, {"kill -TERM $$", "SIGTERM", 143}, {"sleep 1000 & exit 3", "", 3}} {
		c := sh(t, s, strings.NewReplacer(" ", "-", "$", "", "&", "").Replace(test.script), test.script)
		if code, signal := wait(t, c); code != test.code || signal != test.signal {
			t.Errorf("%s: status %d %q, want %d %q", test.script, code, signal, test.code, test.signal)
		}
	}
	c := sh(t, s, "killed", "sleep 1000")
	if err := c.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code, signal := wait(t, c); code != 137 || signal != "SIGKILL" {
		t.Errorf("after Signal(SIGKILL): status %d %q", code, signal)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "orphans"})
	c := sh(t, s, "orphans", "for i in 1 2 3; do (sh -c 'true &' &); done; sleep 1000")
	until := time.Now().Add(deadline)
	for {
		out, _ := run(t, c, "/bin/sh", "-c", `for s in /proc/[0-9]*/stat; do read -r line < $s && echo "$line"; done 2>/dev/null | grep -c ') Z '`)
		if strings.TrimSpace(out) == "0" {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("zombies: %s", out)
		}
	}
}

func TestStartErrors(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "errors"})
	if _, err := s.Start(t.Context(), runtime.ContainerSpec{ID: "a", Image: "registry.example.org/nginx:1.27"}); !errors.Is(err, runtime.ErrImageNotFound) {
		t.Errorf("unknown image: %v, want ErrImageNotFound", err)
	}
	_, err := s.Start(t.Context(), runtime.ContainerSpec{ID: "a", Image: "busybox", Entrypoint: []string{"no-such-program"}})
	if ce, ok := errors.AsType[*runtime.CannotStartError](err); !ok || ce.Code != 127 {
		t.Errorf("unknown program: %v, want a CannotStartError with code 127", err)
	}
	_, err = s.Start(t.Context(), runtime.ContainerSpec{ID: "a", Image: "busybox", Entrypoint: []string{"/etc/passwd"}})
	if ce, ok := errors.AsType[*runtime.CannotStartError](err); !ok || ce.Code != 126 {
		t.Errorf("not a program: %v, want a CannotStartError with code 126", err)
	}
	if _, err := s.Start(t.Context(), runtime.ContainerSpec{ID: "a", Image: "busybox", Mounts: []runtime.Mount{{Source: "/no/such", Target: "/x"}}}); err == nil {
		t.Error("a mount without source was accepted")
	}
	sh(t, s, "a", "sleep 1000") // none of the failures holds on to the name
	if _, err := s.Start(t.Context(), runtime.ContainerSpec{ID: "a", Image: "busybox"}); err == nil {
		t.Error("two containers of one ID were accepted")
	}
	if _, err := rt.NewSandbox(t.Context(), runtime.SandboxSpec{ID: "errors"}); err == nil {
		t.Error("two sandboxes of one ID were accepted")
	}
}

func TestStop(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "stop"})
	polite := sh(t, s, "polite", `trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
	followUntil(t, polite, "ready")
	if err := polite.Stop(t.Context(), deadline); err != nil {
		t.Fatal(err)
	}
	if code, _ := polite.ExitStatus(); code != 5 {
		t.Errorf("a program that handles SIGTERM: exit code %d, want 5", code)
	}
	if got := logs(t, polite, runtime.LogOptions{Tail: 1}); got != "bye\n" {
		t.Errorf("last words %q", got)
	}
	deaf := sh(t, s, "deaf", `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	followUntil(t, deaf, "ready")
	begin := time.Now()
	if err := deaf.Stop(t.Context(), 200*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if code, signal := deaf.ExitStatus(); code != 137 || signal != "SIGKILL" || time.Since(begin) < 200*time.Millisecond {
		t.Errorf("a program that ignores SIGTERM: %d %q after %v", code, signal, time.Since(begin))
	}
	if err := deaf.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("Signal after the end = %v, want ErrProcessDone", err)
	}
}

func TestSandboxCloseKillsEverything(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "close"})
	a, b := sh(t, s, "a", "sleep 1000 & sleep 1000"), sh(t, s, "b", "trap '' TERM; sleep 1000")
	addr := s.Addr()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, a)
	wait(t, b)
	if _, err := s.Start(t.Context(), runtime.ContainerSpec{ID: "c", Image: "busybox"}); err == nil {
		t.Error("a closed sandbox starts containers")
	}
	again := newSandbox(t, rt, runtime.SandboxSpec{ID: "close", Addr: addr})
	if again.Addr() != addr {
		t.Errorf("address %s, want %s", again.Addr(), addr)
	}
}

func TestManySandboxesAtOnce(t *testing.T) {
	rt := newRuntime(t)
	const n = 10
	errs := make(chan error, n)
	for i := range n {
		go func() {
			id := "many-" + strconv.Itoa(i)
			s, err := rt.NewSandbox(t.Context(), runtime.SandboxSpec{ID: id})
			if err != nil {
				errs <- err
				return
			}
			c, err := s.Start(t.Context(), runtime.ContainerSpec{ID: id, Name: id, Image: "busybox", Entrypoint: []string{"hostname"}})
			if err != nil {
				errs <- err
				return
			}
			<-c.Done()
			var b bytes.Buffer
			if err := c.Logs(t.Context(), runtime.LogOptions{Tail: -1}, &b); err != nil || b.String() != id+"\n" {
				errs <- fmt.Errorf("%s: output %q, %w", id, b.String(), err)
				return
			}
			errs <- s.Close()
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkSandbox(b *testing.B) {
	rt := newRuntime(b)
	i := 0
	for b.Loop() {
		i++
		s := newSandbox(b, rt, runtime.SandboxSpec{ID: "bench-" + strconv.Itoa(i)})
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkContainer(b *testing.B) {
	rt := newRuntime(b)
	s := newSandbox(b, rt, runtime.SandboxSpec{ID: "bench"})
	i := 0
	for b.Loop() {
		i++
		c := sh(b, s, "c-"+strconv.Itoa(i), "sleep 1000")
		if err := c.Stop(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	rt := newRuntime(b)
	c := sh(b, newSandbox(b, rt, runtime.SandboxSpec{ID: "bench"}), "c", "sleep 1000")
	for b.Loop() {
		if code, err := c.Exec(b.Context(), runtime.ExecSpec{Command: []string{"true"}}); err != nil || code != 0 {
			b.Fatal(code, err)
		}
	}
}

// TestCapabilities asks the kernel what programs of a container have, its own and those that Exec starts.
func TestCapabilities(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "s"})
	const show = "grep CapEff /proc/self/status"
	effective := func(id string, capabilities []string) uint64 {
		t.Helper()
		own := start(t, s, runtime.ContainerSpec{ID: id, Entrypoint: []string{"/bin/sh", "-c", show}, Capabilities: capabilities})
		if code, _ := wait(t, own); code != 0 {
			t.Fatalf("%s: code %d", show, code)
		}
		c := start(t, s, runtime.ContainerSpec{ID: id + "-exec", Entrypoint: []string{"/bin/sh", "-c", "exec sleep 600"}, Capabilities: capabilities})
		out, _ := run(t, c, "/bin/sh", "-c", show)
		if first := logs(t, own, runtime.LogOptions{Tail: -1}); !strings.Contains(first, strings.TrimSpace(out)) {
			t.Errorf("the program has %q, what Exec starts %q", first, out)
		}
		fields := strings.Fields(out)
		mask, err := strconv.ParseUint(fields[len(fields)-1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return mask
	}
	const netAdmin, netRaw = 1 << 12, 1 << 13
	if got := effective("none", []string{}); got != 0 {
		t.Errorf("without capabilities a program has %x", got)
	}
	if got := effective("admin", []string{"NET_ADMIN"}); got != netAdmin {
		t.Errorf("with NET_ADMIN a program has %x", got)
	}
	if got := effective("any", nil); got&netAdmin == 0 || got&netRaw == 0 {
		t.Errorf("without a limit a program has %x", got)
	}
	if _, err := s.Start(t.Context(), runtime.ContainerSpec{ID: "x", Name: "x", Image: "busybox:1", Capabilities: []string{"FLY"}}); err == nil {
		t.Error("a capability that does not exist was taken")
	}
}

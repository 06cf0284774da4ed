package ztunnel

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// actAsProxy makes this test's program a proxy: one that changes its own network namespace needs a process of its own.
const actAsProxy = "ISTHMUS_TEST_PROXY"

// fewDescriptors is the soft limit of open files with which such a proxy begins.
const fewDescriptors = 256

func beProxy() int {
	var l unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l)
	if l.Cur = fewDescriptors; err == nil {
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return Main([]string{"proxy", "ztunnel"}, os.Environ(), os.Stdout, os.Stderr)
}

// child is a proxy in a process of its own.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{} // closes when the process has ended
	err   error         // how; read it after ended
}

// stop ends the proxy as ECS does and returns how it ended.
func (c *child) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	<-c.ended
	return c.err
}

// proxyIn starts a proxy in a network namespace.
func proxyIn(t *testing.T, ns *inpod.Netns, out *meshtest.Buffer, env ...string) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append([]string{actAsProxy + "=1", "PROXY_MODE=dedicated", "CONNECTION_TERMINATION_DEADLINE=1s"}, env...)
	cmd.Stdout, cmd.Stderr = out, out
	c := &child{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		runtime.LockOSThread() // the child dies with the thread that starts it, which waits for it
		err := ns.Do(cmd.Start)
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
		close(c.ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.stop()
		if t.Failed() {
			t.Logf("log of the proxy:\n%s", out)
		}
	})
	return c
}

// TestRedirectOwnNamespace is a task whose proxy captures by itself: outbound connections and names, inbound connections
// with the client's address kept, the platform's own addresses left alone, and nothing left behind.
func TestRedirectOwnNamespace(t *testing.T) {
	task, peer := newPod(t), newPod(t)
	taskIP, peerIP := netip.MustParseAddr("10.3.0.1"), netip.MustParseAddr("10.3.0.2")
	link(t, task, peer, taskIP, peerIP)
	err := peer.Do(func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(eth, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("169.254.170.2"), Mask: net.CIDRMask(32, 32)}})
	})
	if err != nil {
		t.Fatal(err)
	}
	hello := func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "hello %s", host)
	}
	serveIn(t, peer, "10.3.0.2:8080", hello)
	serveIn(t, peer, "169.254.170.2:80", hello)
	serveIn(t, task, "10.3.0.1:8080", hello)
	text := fmt.Sprintf(`{workloads: [
{uid: shell-1, name: shell-1, namespace: default, serviceAccount: shell, network: eks, workloadIps: [%s], protocol: TCP},
{uid: echo-1, name: echo-1, namespace: ecs-demo-1, serviceAccount: echo, network: eks, workloadIps: [%s], protocol: TCP, services: {ecs-demo-1/%s: {80: 8080}}}],
services: [{name: echo, namespace: ecs-demo-1, hostname: %s, vips: [eks/%s], ports: {80: 8080}}]}`, taskIP, peerIP, echoHost, echoHost, vip)
	out := &meshtest.Buffer{}
	proxy := proxyIn(t, task, out, "ISTHMUS_REDIRECT=true", "PROXY_WORKLOAD_INFO=default/shell-1/shell", "NETWORK=eks", "INSTANCE_IP="+taskIP.String(),
		"XDS_ADDRESS=", "CA_ADDRESS=", "LOCAL_XDS="+text)
	meshtest.Eventually(t, "the proxy is ready", func() bool {
		_, _, code := curlIn(t, task, "-f", fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", mesh.ReadinessPort))
		return code == 0
	})
	for _, c := range []struct {
		what string
		from *inpod.Netns
		url  string
		want string
	}{
		{"a service's address", task, "http://240.240.0.2/", "hello 10.3.0.1"},
		{"an address", task, "http://10.3.0.2:8080/", "hello 10.3.0.1"},
		{"the application, from outside", peer, "http://10.3.0.1:8080/", "hello 10.3.0.2"},
		{"the credentials' address", task, "http://169.254.170.2/", "hello 10.3.0.1"},
	} {
		if got, errOut, code := curlIn(t, c.from, c.url); got != c.want {
			t.Errorf("%s: curl %s = %d, %q, %q; want %q", c.what, c.url, code, got, errOut, c.want)
		}
	}
	if addrs := lookupIn(t, task, echoHost); len(addrs) != 1 || addrs[0] != vip {
		t.Errorf("the task resolves %s to %v, want %s", echoHost, addrs, vip)
	}
	meshtest.Eventually(t, "the access log of both directions", func() bool {
		log := out.String()
		return strings.Contains(log, `dst.service="`+echoHost+`"`) && strings.Contains(log, "src.addr=10.3.0.2:") && strings.Contains(log, `direction="inbound"`)
	})
	if strings.Contains(out.String(), "169.254.170.2") {
		t.Error("a connection for the task's credentials went through the proxy")
	}
	if err := proxy.stop(); err != nil {
		t.Fatalf("the proxy ended with %v", err)
	}
	if got, _, code := curlIn(t, task, "http://10.3.0.2:8080/"); got != "hello 10.3.0.1" {
		t.Errorf("after the proxy curl = %d, %q: the rules are still there", code, got)
	}
}

// TestNameFromTheTask is a task outside of Fargate, which has no AWS_REGION.
func TestNameFromTheTask(t *testing.T) {
	answers := []string{`not ready`, `{"TaskARN":"short"}`, `{"Cluster":"c","TaskARN":"arn:aws-cn:ecs:cn-north-1:123456789012:task/c/0123"}`}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v4/x/task" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		fmt.Fprint(w, answers[0])
		answers = answers[1:]
	}))
	defer s.Close()
	cfg, err := ParseConfig([]string{"PROXY_MODE=dedicated", "ISTHMUS_BROKER_ADDRESS=https://b:1", metadataURI + "=" + s.URL + "/v4/x"})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	a := &app{cfg: cfg, log: slog.New(slog.NewTextHandler(&log, nil))}
	if got, err := a.taskARN(t.Context()); got != (taskName{"cn-north-1", "0123"}) || err != nil {
		t.Errorf("taskARN = %+v, %v", got, err)
	}
	if n := strings.Count(log.String(), "the task's region and id are not known yet"); n != 2 {
		t.Errorf("%d warnings, want 2:\n%s", n, &log)
	}
}

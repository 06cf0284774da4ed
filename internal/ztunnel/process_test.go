package ztunnel

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// startAlone starts a proxy of one workload in a process and a network namespace of its own, without a control plane.
func startAlone(t *testing.T, out *meshtest.Buffer, env ...string) (*inpod.Netns, *child) {
	t.Helper()
	ns, peer := newPod(t), newPod(t)
	ip := netip.MustParseAddr("10.3.0.1")
	link(t, ns, peer, ip, netip.MustParseAddr("10.3.0.2"))
	c := proxyIn(t, ns, out, append([]string{"PROXY_WORKLOAD_INFO=default/shell-1/shell", "NETWORK=eks", "INSTANCE_IP=" + ip.String(), "XDS_ADDRESS=", "CA_ADDRESS=",
		"UNSTABLE_ENABLE_SOCKS5=true",
		fmt.Sprintf("LOCAL_XDS={workloads: [{uid: shell-1, name: shell-1, namespace: default, serviceAccount: shell, network: eks, workloadIps: [%s]}]}", ip)}, env...)...)
	meshtest.Eventually(t, "the proxy is ready", func() bool {
		_, _, code := curlIn(t, ns, "-f", fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", mesh.ReadinessPort))
		return code == 0
	})
	return ns, c
}

// A process that was given few open files takes as many as it may.
func TestDescriptorLimit(t *testing.T) {
	out := &meshtest.Buffer{}
	ns, proxy := startAlone(t, out)
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		t.Fatal(err)
	}
	if own.Max <= fewDescriptors {
		t.Fatalf("the hard limit is %d: nothing can be told from it", own.Max)
	}
	var l unix.Rlimit
	if err := unix.Prlimit(proxy.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &l); err != nil {
		t.Fatal(err)
	}
	if l.Cur != l.Max || l.Max != own.Max {
		t.Errorf("the proxy may open %d of %d files, want %d", l.Cur, l.Max, own.Max)
	}
	metrics, _, _ := curlIn(t, ns, fmt.Sprintf("http://127.0.0.1:%d/metrics", mesh.MetricsPort))
	var shown float64
	for line := range strings.Lines(metrics) {
		if v, ok := strings.CutPrefix(line, "process_max_fds "); ok {
			if _, err := fmt.Sscan(v, &shown); err != nil {
				t.Fatal(err)
			}
		}
	}
	if uint64(shown) != own.Max {
		t.Errorf("process_max_fds = %v, want %d", shown, own.Max)
	}
}

// The first signal drains, for as long as connections are given. A second one does not wait.
func TestSecondSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			out := &meshtest.Buffer{}
			ns, proxy := startAlone(t, out, "CONNECTION_TERMINATION_DEADLINE=10m")
			l, err := ns.Listen(t.Context(), &net.ListenConfig{}, "tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := ns.Dial(t.Context(), &net.Dialer{}, "tcp", fmt.Sprintf("127.0.0.1:%d", mesh.SOCKSPort))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(meshtest.Wait))
			if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", l.Addr()); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
				t.Fatalf("CONNECT = %q, %v", line, err)
			}
			held, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer held.Close()
			signalled := time.Now()
			if err := proxy.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			meshtest.Eventually(t, "it drains", func() bool { return strings.Contains(out.String(), "proxy is draining") })
			select {
			case <-proxy.ended:
				t.Fatalf("it ended after the first signal, although a connection is open: %v", proxy.err)
			default:
			}
			if err := proxy.cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			meshtest.Closes(t, "it ends after the second signal", proxy.ended)
			exit, ok := proxy.err.(*exec.ExitError)
			if !ok || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want exit status 1", proxy.err)
			}
			t.Logf("both signals and the end took %v", time.Since(signalled).Round(time.Millisecond))
		})
	}
}

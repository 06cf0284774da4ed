package ztunnel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

func parse(t *testing.T, env ...string) Config {
	t.Helper()
	c, err := ParseConfig(env)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTuning(t *testing.T) {
	want := Tuning{KeepAlive: net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}, LoopbackTunnel: true}
	if diff := cmp.Diff(want, parse(t).Tuning); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	got := parse(t, "KEEPALIVE_ENABLED=false", "KEEPALIVE_TIME=10s", "KEEPALIVE_INTERVAL=2s", "KEEPALIVE_RETRIES=3", "USER_TIMEOUT_ENABLED=true",
		"POOL_MAX_STREAMS_PER_CONNECTION=7", "ISTHMUS_MAX_POOLED_CONNECTIONS=9", "POOL_UNUSED_RELEASE_TIMEOUT=1m", "HTTP2_STREAM_WINDOW_SIZE=100000", "HTTP2_CONNECTION_WINDOW_SIZE=400000",
		"HTTP2_FRAME_SIZE=32768", "LOCALHOST_APP_TUNNEL=false", "TLS12_ENABLED=true").Tuning
	want = Tuning{KeepAlive: net.KeepAliveConfig{Idle: 10 * time.Second, Interval: 2 * time.Second, Count: 3}, UserTimeout: 16 * time.Second,
		PoolStreams: 7, PoolConns: 9, PoolIdle: time.Minute, Limits: hbone.Limits{StreamWindow: 100000, ConnWindow: 400000, FrameSize: 32768}, TLS: hbone.TLSPolicy{TLS12: true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("all set (-want +got):\n%s", diff)
	}
	if !parse(t, "COMPLIANCE_POLICY=pqc").Tuning.TLS.PostQuantum {
		t.Error("COMPLIANCE_POLICY=pqc is not heeded")
	}
	for _, env := range [][]string{{"COMPLIANCE_POLICY=pqc", "TLS12_ENABLED=true"}, {"HTTP2_STREAM_WINDOW_SIZE=8000000", "HTTP2_CONNECTION_WINDOW_SIZE=4000000"},
		{"LOCAL_XDS={}", "LOCAL_XDS_PATH=/x"}, {"LOCAL_XDS=workloads: [{x: 1}]"}} {
		if _, err := ParseConfig(env); err == nil {
			t.Errorf("%q was accepted", env)
		}
	}
}

func TestProxyConfig(t *testing.T) {
	c := parse(t, `PROXY_CONFIG=
discoveryAddress: istiod.example.org:15012
proxyAdminPort: 15999
statsPort: 15998
concurrency: 3
someEnvoyThing: {a: 1}
proxyMetadata:
  DNS_CAPTURE: "false"
  DNS_PROXY_ADDR: 127.0.0.1:5300
  CLUSTER_ID: from-metadata
  FLAVOUR: plain
`, "ISTIO_META_FLAVOUR=sweet")
	if c.XDSAddress != "https://istiod.example.org:15012" || c.CAAddress != defaultControlPlane || c.Listen.Admin != "localhost:15999" || c.Listen.Metrics != ":15998" ||
		c.Threads != 3 || c.DNS || c.Listen.DNS != "127.0.0.1:5300" || c.ClusterID != "from-metadata" || c.Metadata["FLAVOUR"] != "sweet" {
		t.Errorf("PROXY_CONFIG gives %+v", c)
	}
	if c := parse(t, "PROXY_CONFIG=discoveryAddress: a:1", "XDS_ADDRESS=b:2", "ZTUNNEL_WORKER_THREADS=0"); c.XDSAddress != "https://b:2" || c.Threads != 0 {
		t.Errorf("the environment does not win: %q, %d", c.XDSAddress, c.Threads)
	}
	for v, want := range map[string]int{"4": 4, "50%": max(1, (runtime.NumCPU()*50+99)/100), "1%": 1} {
		if got := parse(t, "ZTUNNEL_WORKER_THREADS="+v).Threads; got != want {
			t.Errorf("ZTUNNEL_WORKER_THREADS=%s = %d, want %d", v, got, want)
		}
	}
}

// The file that Istio mounts, and what wins over it.
func TestMeshConfigFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(filepath.Dir(meshConfigFile), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(meshConfigFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{accessLogFile: /dev/stdout, defaultConfig: {discoveryAddress: "file:1", statsPort: 15777, concurrency: 2, proxyMetadata: {A: file, B: file}}}`)
	c := parse(t)
	if c.XDSAddress != "https://file:1" || c.Listen.Metrics != ":15777" || c.Threads != 2 || c.Metadata["A"] != "file" {
		t.Errorf("the file gives %q, %q, %d, %v", c.XDSAddress, c.Listen.Metrics, c.Threads, c.Metadata)
	}
	c = parse(t, "PROXY_CONFIG={discoveryAddress: 'env:2', proxyMetadata: {B: env}}", "ISTIO_META_C=meta")
	if c.XDSAddress != "https://env:2" || c.Listen.Metrics != ":15777" || c.Metadata["A"] != "file" || c.Metadata["B"] != "env" || c.Metadata["C"] != "meta" {
		t.Errorf("with PROXY_CONFIG: %q, %q, %v", c.XDSAddress, c.Listen.Metrics, c.Metadata)
	}
	write("defaultConfig: [")
	if _, err := ParseConfig(nil); err == nil || !strings.Contains(err.Error(), meshConfigFile) {
		t.Errorf("a file that is no YAML = %v", err)
	}
}

// Sockets get the keepalive and the user timeout that were set, accepted ones too, and UDP ones the mark.
func TestSocketOptions(t *testing.T) {
	a := &app{cfg: parse(t, "KEEPALIVE_TIME=10s", "KEEPALIVE_INTERVAL=2s", "KEEPALIVE_RETRIES=3", "USER_TIMEOUT_ENABLED=true", "PACKET_MARK=77")}
	l, err := a.listenConfig(false).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialled, err := a.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for name, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
		for opt, want := range map[[2]int]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 1, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}: 10, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}: 2,
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}: 3, {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: 16000, {unix.IPPROTO_TCP, unix.TCP_NODELAY}: 1} {
			if got := option(t, c, opt); got != want {
				t.Errorf("%s: option %v = %d, want %d", name, opt, got, want)
			}
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		c, err := a.dial(t.Context(), network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := option(t, c, [2]int{unix.SOL_SOCKET, unix.SO_MARK}); got != 77 {
			t.Errorf("%s: mark = %d, want 77: DNS questions to upstream would loop", network, got)
		}
		c.Close()
	}
	a = &app{cfg: parse(t, "KEEPALIVE_ENABLED=false", "PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b/c")}
	c, err := a.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if option(t, c, [2]int{unix.SOL_SOCKET, unix.SO_KEEPALIVE}) != 0 {
		t.Error("KEEPALIVE_ENABLED=false does not switch it off")
	}
}

// The sockets to istiod have the keepalive that is theirs, whatever is set for those of the data path.
func TestControlPlaneSockets(t *testing.T) {
	istiod := newMesh(t)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell", "KEEPALIVE_ENABLED=false")
	meshtest.Eventually(t, "it is ready", shell.ready)
	want := netip.MustParseAddrPort(istiod.Address())
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, entry := range fds {
		var fd int
		if _, err := fmt.Sscan(entry.Name(), &fd); err != nil {
			t.Fatal(err)
		}
		peer, err := unix.Getpeername(fd)
		at, ok := peer.(*unix.SockaddrInet4)
		if err != nil || !ok || netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port)) != want {
			continue
		}
		found++
		for opt, want := range map[[2]int]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 1, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}: 300, {unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}: 75,
			{unix.IPPROTO_TCP, unix.TCP_KEEPCNT}: 9, {unix.IPPROTO_TCP, unix.TCP_NODELAY}: 1} {
			if got, err := unix.GetsockoptInt(fd, opt[0], opt[1]); err != nil || got != want {
				t.Errorf("descriptor %d: option %v = %d, %v; want %d", fd, opt, got, err, want)
			}
		}
	}
	if found < 2 {
		t.Errorf("%d sockets to istiod were found, want one for xDS and one for certificates", found)
	}
}

func option(t *testing.T, c net.Conn, opt [2]int) (v int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), opt[0], opt[1]) })
		if err == nil {
			err = cerr
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// "localhost" is both loopback addresses, and the IPv4 one alone where IPv6 is off.
func TestLoopbackListeners(t *testing.T) {
	addresses := func(env ...string) (all []string) {
		a := &app{cfg: parse(t, env...)}
		ls, err := a.listenLocal(t.Context(), nil, a.listenConfig(false), "localhost:15777")
		if err != nil {
			t.Fatal(err)
		}
		pcs, err := a.listenPackets(t.Context(), nil, a.listenConfig(false), "localhost:15777")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range ls {
			all = append(all, "tcp "+l.Addr().String())
			l.Close()
		}
		for _, pc := range pcs {
			all = append(all, "udp "+pc.LocalAddr().String())
			pc.Close()
		}
		return all
	}
	if diff := cmp.Diff([]string{"tcp 127.0.0.1:15777", "tcp [::1]:15777", "udp 127.0.0.1:15777", "udp [::1]:15777"}, addresses()); diff != "" {
		t.Errorf("with IPv6 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"tcp 127.0.0.1:15777", "udp 127.0.0.1:15777"}, addresses("IPV6_ENABLED=false")); diff != "" {
		t.Errorf("without IPv6 (-want +got):\n%s", diff)
	}
}

// A proxy runs on a static mesh without any control plane, and config_dump shows it.
func TestStaticMesh(t *testing.T) {
	istiod := meshtest.NewIstiod(t, nil) // not asked
	serveAt(t, netip.AddrPortFrom(echoIP, 8080), "hello")
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	text := fmt.Sprintf(`
workloads:
- {uid: shell-1, name: shell-1, namespace: default, serviceAccount: shell, network: eks, workloadIps: [%s], protocol: TCP}
- {uid: echo-1, name: echo-1, namespace: ecs-demo-1, serviceAccount: echo, network: eks, workloadIps: [%s], protocol: TCP, services: {ecs-demo-1/%s: {80: 8080}}}
services:
- {name: echo, namespace: ecs-demo-1, hostname: %s, vips: [eks/%s], ports: {80: 8080}}
`, shellIP, echoIP, echoHost, echoHost, vip)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell", "XDS_ADDRESS=", "CA_ADDRESS=", "LOCAL_XDS_PATH="+path)
	meshtest.Eventually(t, "it is ready without a control plane", shell.ready)
	out, errOut, code := proxytest.Curl(t, "--proxy", fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort), "http://"+echoHost+"/")
	if out != "hello" {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	_, dump, err := shell.get(mesh.AdminPort, "/config_dump")
	_, static, ok := strings.Cut(dump, `"staticConfig": {`)
	if err != nil || !ok || !strings.Contains(static[:strings.Index(static, `"version"`)], `"uid": "echo-1"`) {
		t.Errorf("config_dump does not show the static mesh: %v", err)
	}
	if n := len(istiod.Calls()); n != 0 {
		t.Errorf("istiod was called %d times although its address is empty", n)
	}
}

// istiod's mesh comes on top of a static one.
func TestStaticMeshBesideIstiod(t *testing.T) {
	istiod := newMesh(t)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell",
		"LOCAL_XDS={workloads: [{uid: extra, name: extra, namespace: default, workloadIps: [10.9.9.9]}]}")
	meshtest.Eventually(t, "it is ready", shell.ready)
	_, dump, err := shell.get(mesh.AdminPort, "/config_dump")
	if err != nil || strings.Count(dump, `"uid": "extra"`) != 2 || !strings.Contains(dump, `"name": "echo-1"`) {
		t.Errorf("the dump does not show both meshes: %v", err)
	}
}

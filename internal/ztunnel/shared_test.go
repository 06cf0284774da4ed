package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// newPod makes a network namespace for a pod, with its loopback up.
func newPod(t *testing.T) *inpod.Netns {
	t.Helper()
	type made struct {
		f   *os.File
		err error
	}
	ch := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends in its own namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{err: err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ch <- made{f, err}
	}()
	m := <-ch
	if m.err != nil {
		t.Fatalf("make a pod's namespace: %v", m.err)
	}
	ns, err := inpod.OpenNetns(m.f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// link gives two pods an interface each, connected, with their addresses and a route to everything else.
func link(t *testing.T, a, b *inpod.Netns, ipA, ipB netip.Addr) {
	t.Helper()
	err := a.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(b.File().Fd()))}
		return netlink.LinkAdd(veth)
	})
	if err != nil {
		t.Fatalf("link the pods: %v", err)
	}
	for _, p := range []struct {
		ns      *inpod.Netns
		ip, via netip.Addr
	}{{a, ipA, ipB}, {b, ipB, ipA}} {
		err := p.ns.Do(func() error {
			lo, err1 := netlink.LinkByName("lo")
			eth, err2 := netlink.LinkByName("eth0")
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(eth),
				netlink.AddrAdd(eth, &netlink.Addr{IPNet: &net.IPNet{IP: p.ip.AsSlice(), Mask: net.CIDRMask(24, 32)}}),
				netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: p.via.AsSlice()}))
		})
		if err != nil {
			t.Fatalf("configure the pod of %s: %v", p.ip, err)
		}
	}
}

// curlIn runs curl in a pod.
func curlIn(t *testing.T, ns *inpod.Netns, args ...string) (out, errOut string, code int) {
	t.Helper()
	err := ns.Do(func() error { // a child has the namespace of the thread that starts it
		out, errOut, code = proxytest.Curl(t, args...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, errOut, code
}

func serveIn(t *testing.T, ns *inpod.Netns, address string, h http.HandlerFunc) {
	t.Helper()
	l, err := ns.Listen(t.Context(), &net.ListenConfig{}, "tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
}

// Two pods, captured transparently: names by DNS, mutual TLS between them, a denial that resets, a pod that goes.
func TestShared(t *testing.T) {
	ipA, ipB := netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("10.2.0.2")
	a, b := newPod(t), newPod(t)
	link(t, a, b, ipA, ipB)
	for _, ns := range []*inpod.Netns{a, b} {
		if err := redirect.Install(ns.File(), redirect.Config{Outbound: true, Inbound: true, DNS: true, SpoofSource: true}); err != nil {
			t.Fatal(err)
		}
	}
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	podA, podB := workload("shell-1", "default", "shell", ipA), workload("echo-1", "ecs-demo-1", "echo", ipB, key)
	podA.UID, podB.UID = "Kubernetes//Pod/default/shell-1", "Kubernetes//Pod/ecs-demo-1/echo-1"
	podA.Node, podB.Node = "node-1", "node-1"
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Set(podA, podB, &mesh.Service{Key: key, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080}})

	socket := filepath.Join(t.TempDir(), "ztunnel.sock")
	cni, err := inpod.NewServer(inpod.ServerConfig{Path: socket, Log: meshtest.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Run(t, cni.Run)
	node := startShared(t, istiod, socket)
	for uid, w := range map[string]*mesh.Workload{"pod-a": podA, "pod-b": podB} {
		ns := map[string]*inpod.Netns{"pod-a": a, "pod-b": b}[uid]
		if err := cni.Add(t.Context(), inpod.Workload{UID: uid, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}, ns.File()); err != nil {
			t.Fatal(err)
		}
	}
	meshtest.Eventually(t, "the node's proxy is ready", node.ready)
	serveIn(t, b, "10.2.0.2:8080", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello %s", r.RemoteAddr) })

	out, errOut, code := curlIn(t, a, "http://240.240.0.2/")
	if code != 0 || !strings.HasPrefix(out, "hello 10.2.0.1:") {
		t.Fatalf("curl to the VIP = %d, %q, %q; want an answer to the client's own address", code, out, errOut)
	}
	meshtest.Eventually(t, "the access log of both sides", func() bool {
		log := node.out.String()
		return strings.Contains(log, "dst.addr=10.2.0.2:15008 dst.hbone_addr=10.2.0.2:8080") && strings.Contains(log, `direction="inbound"`)
	})
	addrs := lookupIn(t, a, echoHost)
	if len(addrs) != 1 || addrs[0] != vip {
		t.Errorf("the pod resolves %s to %v, want %s", echoHost, addrs, vip)
	}
	istiod.Set(&mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "deny-all"}, Scope: mesh.ScopeNamespace, Action: mesh.Allow})
	meshtest.Eventually(t, "the policy is enforced with a reset", func() bool {
		_, errOut, code := curlIn(t, a, "http://240.240.0.2/")
		return code == 56 && strings.Contains(errOut, "Recv failure: Connection reset by peer")
	})
	for _, r := range istiod.CA.Requests() {
		if r.Impersonate.IsZero() {
			t.Error("a node's proxy asked for a certificate without saying for whom")
		}
	}
	if err := cni.Remove(t.Context(), "pod-a"); err != nil {
		t.Fatal(err)
	}
	if _, _, code := curlIn(t, a, "http://240.240.0.2/"); code != 7 {
		t.Errorf("curl in a pod that is not served = %d, want 7: nothing listens any more", code)
	}
}

func startShared(t *testing.T, istiod *meshtest.Istiod, socket string) *running {
	t.Helper()
	return start(t, gwIP, istiod, "PROXY_MODE=shared", "NODE_NAME=node-1", "POD_NAME=ztunnel-1", "POD_NAMESPACE=istio-system",
		"SERVICE_ACCOUNT=ztunnel", "INPOD_UDS="+socket, "ISTIO_META_DNS_PROXY_ADDR=127.0.0.1:15053")
}

// startSelf starts a node's proxy that is a workload of the mesh itself, with a CNI agent that has no pods.
func startSelf(t *testing.T, istiod *meshtest.Istiod) *running {
	t.Helper()
	self := workload("ztunnel-1", "istio-system", "ztunnel", gwIP)
	self.UID, self.Node = "Kubernetes//Pod/istio-system/ztunnel-1", "node-1"
	istiod.Set(self)
	socket := filepath.Join(t.TempDir(), "ztunnel.sock")
	cni, err := inpod.NewServer(inpod.ServerConfig{Path: socket, Log: meshtest.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Run(t, cni.Run)
	return startShared(t, istiod, socket)
}

// lookupIn asks the pod's DNS proxy as its applications do: by a nameserver that is not there.
func lookupIn(t *testing.T, ns *inpod.Netns, host string) []netip.Addr {
	t.Helper()
	var d net.Dialer
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return ns.Dial(ctx, &d, network, "10.9.9.9:53")
	}}
	addrs, err := r.LookupNetIP(t.Context(), "ip4", host+".")
	if err != nil {
		t.Errorf("look up %s in the pod: %v", host, err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs
}

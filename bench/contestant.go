package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// contestant is one way from a client to a server.
type contestant struct {
	name    string
	hosts   *hosts
	agent   *process
	server  *process
	proxies []*process // on the client's host, on the server's host
	echo    netip.AddrPort
	sink    netip.AddrPort
	socks   netip.AddrPort
	cold    []netip.AddrPort // addresses of peers that nobody has met yet; nil: every connection is a first one
	perConn int              // descriptors that a connection takes in the proxy that needs most
}

// bench is one run.
type bench struct {
	o    options
	h    *harness
	rep  *report
	ca   *meshtest.CA
	all  []*contestant
	pems relayConfig // certificates as files; Routes is not used
}

func (b *bench) wants(name string, unnamed bool) bool {
	if b.o.contestants == "" {
		return unnamed
	}
	return slices.Contains(strings.Split(b.o.contestants, ","), name)
}

func (b *bench) setUp() {
	lo, err := netlink.LinkByName("lo") // control planes live on this process's own loopback
	b.h.must("find the loopback", err)
	b.h.must("configure the loopback", netlink.LinkSetUp(lo))
	b.ca = meshtest.NewCA(b.h)
	b.writeCertificates()
	relays := func(c *contestant, in, out string) {
		c.proxies = []*process{
			c.hosts.client.helper(b.h, c.name+"-1", out, b.relayEnv("127.0.0.1", 0, serverIP.String(), relayShift)),
			c.hosts.server.helper(b.h, c.name+"-2", in, b.relayEnv("0.0.0.0", relayShift, "127.0.0.1", 0)),
		}
	}
	has := func(program string) bool { _, err := exec.LookPath(program); return err == nil }
	for _, e := range []struct {
		name    string
		unnamed bool // takes part if nobody is named
		start   func(c *contestant)
	}{
		{"direct", true, func(c *contestant) { c.at(serverIP, echoPort, sinkPort) }},
		{"tcp", true, func(c *contestant) { relays(c, roleTCP, roleTCP); c.perConn = 6 }}, // two sockets, two pipes to splice through
		{"tls", true, func(c *contestant) { relays(c, roleTLSIn, roleTLSOut); c.perConn = 2 }},
		{"haproxy", has("haproxy"), b.haproxy},
		{"stunnel", has("stunnel"), b.stunnel},
		{"istio", b.o.ztunnel != "", func(c *contestant) { b.ztunnels(c, b.o.ztunnel, true); c.perConn = 2 }},
		{"socks", false, func(c *contestant) {
			b.ztunnels(c, b.o.isthmus, false)
			c.socks = netip.MustParseAddrPort("127.0.0.1:15080")
		}},
		{"isthmus", true, func(c *contestant) { b.ztunnels(c, b.o.isthmus, true) }},
	} {
		if !b.wants(e.name, e.unnamed) {
			continue
		}
		b.h.progress("starting %s", e.name)
		c := &contestant{name: e.name, hosts: newHosts(b.h), perConn: 1}
		c.server = c.hosts.server.helper(b.h, c.name+"-server", roleServer)
		c.agent = c.hosts.client.helper(b.h, c.name+"-agent", roleAgent)
		c.at(netip.MustParseAddr("127.0.0.1"), echoPort, sinkPort)
		e.start(c)
		b.all = append(b.all, c)
	}
}

func (c *contestant) at(ip netip.Addr, echo, sink uint16) {
	c.echo, c.sink = netip.AddrPortFrom(ip, echo), netip.AddrPortFrom(ip, sink)
}

func (b *bench) relayEnv(listen string, listenShift int, to string, toShift int) string {
	cfg := b.pems
	cfg.Routes = map[string]string{}
	for _, port := range []int{echoPort, sinkPort} {
		cfg.Routes[fmt.Sprintf("%s:%d", listen, port+listenShift)] = fmt.Sprintf("%s:%d", to, port+toShift)
	}
	text, err := json.Marshal(cfg)
	b.h.must("configure a relay", err)
	return relayEnv + "=" + string(text)
}

// writeCertificates makes the files for relays: both ends show the same certificate.
func (b *bench) writeCertificates() {
	c := b.ca.Issue(b.h, meshtest.ID("ecs-demo-1", "echo"))
	key, err := x509.MarshalPKCS8PrivateKey(c.TLS.PrivateKey)
	b.h.must("write certificates", err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.TLS.Certificate[0]})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	write := func(name string, text []byte) string {
		path := filepath.Join(b.h.dir, name)
		b.h.must("write certificates", os.WriteFile(path, text, 0o600))
		return path
	}
	b.pems = relayConfig{Cert: write("cert.pem", cert), Key: write("key.pem", private), Root: write("root.pem", b.ca.RootPEM())}
	write("both.pem", append(cert, private...))
}

// ztunnels puts two ztunnels, with everything they have in life, between the hosts: a control plane, policies (none),
// access logs and metrics, and, if connections are captured, redirection by the kernel on both hosts.
func (b *bench) ztunnels(c *contestant, program string, captured bool) {
	istiod := meshtest.NewIstiod(b.h, b.ca)
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: "echo.ecs-demo-1.ecs.local"}
	ports := map[uint16]uint16{80: echoPort, 81: sinkPort}
	backend := workload("echo-1", "ecs-demo-1", "echo", serverIP)
	backend.Services = map[mesh.ServiceKey]map[uint16]uint16{key: ports}
	values := []any{workload("shell-1", "default", "shell", clientIP), backend,
		&mesh.Service{Key: key, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: ports}}
	for a := coldNet.Addr().Next(); coldNet.Contains(a.Next()); a = a.Next() {
		values = append(values, workload("echo-"+a.String(), "ecs-demo-1", "echo", a))
		c.cold = append(c.cold, netip.AddrPortFrom(a, echoPort))
	}
	istiod.Set(values...)
	c.at(vip, 80, 81)
	c.hosts.client.bring(b.h, istiod.Address())
	c.hosts.server.bring(b.h, istiod.Address())
	if captured {
		b.h.must("redirect the client's connections", redirect.Install(c.hosts.client.file, redirect.Config{Outbound: true, Inbound: true}))
		b.h.must("redirect the server's connections", redirect.Install(c.hosts.server.file, redirect.Config{Outbound: true, Inbound: true}))
	}
	c.proxies = []*process{
		b.ztunnel(c.hosts.client, c.name+"-1", program, clientIP, "default/shell-1/shell"),
		b.ztunnel(c.hosts.server, c.name+"-2", program, serverIP, "ecs-demo-1/echo-1/echo"),
	}
}

func (b *bench) ztunnel(ns *netns, name, program string, ip netip.Addr, info string) *process {
	token := filepath.Join(b.h.dir, "token")
	b.h.must("write a token", os.WriteFile(token, []byte("a-token"), 0o600))
	address := fmt.Sprintf("https://127.0.0.1:%d", istiodPort)
	p := ns.start(b.h, name, []string{
		"PROXY_MODE=dedicated", "NETWORK=eks", "CLUSTER_ID=Kubernetes", "INSTANCE_IP=" + ip.String(), "PROXY_WORKLOAD_INFO=" + info,
		"XDS_ADDRESS=" + address, "CA_ADDRESS=" + address, "XDS_ROOT_CA=" + b.pems.Root, "CA_ROOT_CA=" + b.pems.Root,
		"ALT_XDS_HOSTNAME=" + meshtest.IstiodName, "ALT_CA_HOSTNAME=" + meshtest.IstiodName, "AUTH_TOKEN=" + token,
		"PACKET_MARK=1337", "UNSTABLE_ENABLE_SOCKS5=true", "IPV6_ENABLED=false",
	}, program, "proxy")
	ns.until(b.h, "it is ready", p, ready)
	return p
}

func workload(name, ns, sa string, ip netip.Addr) *mesh.Workload {
	return &mesh.Workload{UID: "Kubernetes/networking.istio.io/WorkloadEntry/" + ns + "/" + name, Name: name, Namespace: ns,
		TrustDomain: mesh.DefaultTrustDomain, ServiceAccount: sa, Addresses: []netip.Addr{ip}, Network: "eks", ClusterID: "Kubernetes",
		Protocol: mesh.HBONE, Capacity: 1, CanonicalName: sa, CanonicalRevision: "latest", WorkloadName: sa}
}

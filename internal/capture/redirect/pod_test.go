package redirect

import (
	"net"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
)

// TestForPod reads the annotations of a pod.
func TestForPod(t *testing.T) {
	all := Config{Outbound: true, Inbound: true, DNS: true, SpoofSource: true}
	ingress, noDNS, virtual := all, all, all
	ingress.Inbound, noDNS.DNS, virtual.Virtual = false, false, []string{"k6t-eth0", "tap1"}
	for _, c := range []struct {
		annotations map[string]string
		want        Config
	}{
		{nil, all},
		{map[string]string{ingressAnnotation: "false", dnsAnnotation: "true", virtualAnnotation: ""}, all},
		{map[string]string{ingressAnnotation: "true"}, ingress},
		{map[string]string{dnsAnnotation: "false"}, noDNS},
		{map[string]string{virtualAnnotation: "k6t-eth0, tap1,"}, virtual},
	} {
		if diff := cmp.Diff(c.want, ForPod(c.annotations)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.annotations, diff)
		}
	}
}

// behind joins a namespace to the pod by an interface that the pod calls virt0, as that of a virtual machine.
func behind(t *testing.T, pod *os.File) *os.File {
	t.Helper()
	vm := newNS(t)
	must(t, in(pod, func() error {
		la := netlink.NewLinkAttrs()
		la.Name = "virt0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(vm.Fd())})
	}))
	must(t, in(pod, func() error { return up("virt0", "10.2.2.1/24", "fd02::1/64") }))
	must(t, in(vm, func() error {
		if err := up("eth0", "10.2.2.2/24", "fd02::2/64"); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("10.2.2.1")}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("fd02::1")})
	}))
	return vm
}

// What comes in from a virtual interface goes out of the workload, whoever else is captured.
func TestVirtualInterfaces(t *testing.T) {
	n := newNetwork(t)
	vm := behind(t, n.pod)
	listen(t, n.pod, ":15001", say("outbound"))
	listen(t, n.pod, ":15006", say("inbound"))
	for name, cfg := range map[string]Config{
		"all captured":      {Outbound: true, Inbound: true, SpoofSource: true, IPv6: true, Virtual: []string{"other0", "virt0"}},
		"inbound left out":  {Outbound: true, IPv6: true, Virtual: []string{"virt0"}},
		"nothing else does": {IPv6: true, Virtual: []string{"virt0"}},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, Install(n.pod, cfg))
			check(t, "from the machine", ask(vm, net.Dialer{}, remoteIP+":80"), "outbound/"+remoteIP+":80/10.2.2.2")
			check(t, "to nowhere", ask(vm, net.Dialer{}, "192.0.2.1:5"), "outbound/192.0.2.1:5/10.2.2.2")
			check(t, "over IPv6", ask(vm, net.Dialer{}, "[fd01::2]:80"), "outbound/[fd01::2]:80/fd02::2")
			if cfg.Inbound {
				check(t, "into the pod from elsewhere", ask(n.remote, net.Dialer{}, podIP+":8080"), "inbound/"+podIP+":8080/"+remoteIP)
			}
		})
	}
	must(t, Install(n.pod, Config{Outbound: true, Inbound: true}))
	check(t, "an interface that is not named", ask(vm, net.Dialer{}, remoteIP+":80"), "inbound/"+remoteIP+":80/10.2.2.2")
}

// Connections to an ingress are left alone; its own are captured, and tunnels to it show the application their client.
func TestIngress(t *testing.T) {
	n := newNetwork(t)
	must(t, Install(n.pod, ForPod(map[string]string{ingressAnnotation: "true"})))
	listen(t, n.pod, ":15001", say("outbound"))
	listen(t, n.pod, ":15006", say("inbound"))
	listen(t, n.pod, ":15008", say("hbone"))
	listen(t, n.pod, ":8080", say("app"))
	check(t, "inbound", ask(n.remote, net.Dialer{}, podIP+":8080"), "app/"+podIP+":8080/"+remoteIP)
	check(t, "inbound HBONE", ask(n.remote, net.Dialer{}, podIP+":15008"), "hbone/"+podIP+":15008/"+remoteIP)
	check(t, "outbound", ask(n.pod, net.Dialer{}, remoteIP+":80"), "outbound/"+remoteIP+":80/"+podIP)
	spoofed := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.9.9.9")}, Control: Controls(Control(Mark), SpoofSource())}
	check(t, "proxy to application, as the client", ask(n.pod, spoofed, podIP+":8080"), "app/"+podIP+":8080/10.9.9.9")
}

// The kubelet's probes come from an address of their own and reach the application as they are, in both families; so do
// the answers, and what the pod itself sends there.
func TestProbes(t *testing.T) {
	n := newNetwork(t)
	const probe4, probe6 = "169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
	must(t, in(n.remote, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, cidr := range []string{probe4 + "/32", probe6 + "/128"} {
			a, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, a); err != nil {
				return err
			}
		}
		return nil
	}))
	must(t, in(n.pod, func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("fd01::2")}) }))
	must(t, Install(n.pod, Config{Outbound: true, Inbound: true, DNS: true, SpoofSource: true, IPv6: true}))
	listen(t, n.pod, ":15001", say("outbound"))
	listen(t, n.pod, ":15006", say("inbound"))
	listen(t, n.pod, ":8080", say("app"))
	listen(t, n.remote, ":80", say("kubelet"))
	as := func(ip string) net.Dialer { return net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}} }
	check(t, "anybody else", ask(n.remote, as(remoteIP), podIP+":8080"), "inbound/"+podIP+":8080/"+remoteIP)
	check(t, "anybody else over IPv6", ask(n.remote, as("fd01::2"), "[fd01::1]:8080"), "inbound/[fd01::1]:8080/fd01::2")
	check(t, "a probe", ask(n.remote, as(probe4), podIP+":8080"), "app/"+podIP+":8080/"+probe4)
	check(t, "a probe over IPv6", ask(n.remote, as(probe6), "[fd01::1]:8080"), "app/[fd01::1]:8080/"+probe6)
	check(t, "to the kubelet", ask(n.pod, net.Dialer{}, probe4+":80"), "kubelet/"+probe4+":80/"+podIP)
	check(t, "to the kubelet over IPv6", ask(n.pod, net.Dialer{}, "["+probe6+"]:80"), "kubelet/["+probe6+"]:80/fd01::1")
}

package svcnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/netns/netnstest"
	"github.com/isthmus-mesh/isthmus/lab/svcnet"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// lab is a VPC with a service network and a Kubernetes API that exists only in memory.
type lab struct {
	t      *testing.T
	vpc    *netns.VPC
	client *fake.Clientset
}

func newLab(t *testing.T) *lab {
	t.Helper()
	vpc, err := netns.New(netns.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, vpc: vpc, client: fake.NewClientset()}
	network, err := svcnet.New(svcnet.Config{
		Client: l.client, Interface: netns.Bridge, NodeAddr: netns.Router, ServiceNetwork: netns.Services, LoadBalancers: netns.LoadBalancers,
		DNS: netip.AddrPortFrom(netns.Resolver, 53), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- network.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if err := vpc.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-network.Synced():
	case <-time.After(10 * time.Second):
		t.Fatal("the service network is not synced")
	}
	return l
}

// eventually polls a condition.
func (l *lab) eventually(what string, f func() error) {
	l.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			l.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// sandbox is a namespace with a server on TCP and UDP that answers who asked and who answers.
type sandbox struct {
	*netns.Port
	port uint16
}

func (l *lab) sandbox() *sandbox {
	l.t.Helper()
	a, err := l.vpc.Allocate(netns.Pods)
	if err != nil {
		l.t.Fatal(err)
	}
	p, err := l.vpc.Attach(a)
	if err != nil {
		l.t.Fatal(err)
	}
	s := &sandbox{Port: p}
	if err := p.Do(func() error { return s.listen(l.t) }); err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (s *sandbox) listen(t *testing.T) error {
	listener, err := net.Listen("tcp4", netip.AddrPortFrom(s.Addr, 0).String())
	if err != nil {
		return err
	}
	t.Cleanup(func() { listener.Close() })
	s.port = listener.Addr().(*net.TCPAddr).AddrPort().Port()
	packets, err := net.ListenPacket("udp4", listener.Addr().String())
	if err != nil {
		return err
	}
	t.Cleanup(func() { packets.Close() })
	answer := func(from net.Addr) []byte {
		return []byte(fmt.Sprintf("%s from %s", s.Addr, from.(interface{ AddrPort() netip.AddrPort }).AddrPort().Addr()))
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write(answer(conn.RemoteAddr()))
			conn.Close()
		}
	}()
	go func() {
		for b := make([]byte, 64); ; {
			_, from, err := packets.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(answer(from), from)
		}
	}()
	return nil
}

// ask connects to an address, from the sandbox or, with nil, from the root namespace, and returns the answer.
func ask(from *sandbox, network string, to netip.AddrPort) (string, error) {
	var conn net.Conn
	dial := func() (err error) {
		conn, err = (&net.Dialer{Timeout: 3 * time.Second}).Dial(network, to.String())
		return err
	}
	var err error
	if from == nil {
		err = dial()
	} else {
		err = from.Do(dial)
	}
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	if network == "udp4" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", err
		}
		b := make([]byte, 64)
		n, err := conn.Read(b)
		return string(b[:n]), err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

func (l *lab) expect(from *sandbox, network string, to netip.AddrPort, want string) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("%s to %s", network, to), func() error {
		got, err := ask(from, network, to)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("answer = %q, want %q", got, want)
		}
		return nil
	})
}

func (l *lab) service(name, clusterIP string, kind corev1.ServiceType, protocol corev1.Protocol) {
	l.t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Type: kind, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP},
			Ports: []corev1.ServicePort{{Name: "web", Port: 80, Protocol: protocol, NodePort: nodePort(kind)}},
		},
	}
	if _, err := l.client.CoreV1().Services("default").Create(context.Background(), s, metav1.CreateOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

func nodePort(kind corev1.ServiceType) int32 {
	if kind == corev1.ServiceTypeNodePort {
		return 30080
	}
	return 0
}

func (l *lab) endpoints(service string, protocol corev1.Protocol, backends ...*sandbox) {
	l.t.Helper()
	client := l.client.DiscoveryV1().EndpointSlices("default")
	_ = client.DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{})
	name := "web"
	for i, b := range backends {
		port := int32(b.port)
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Name: fmt.Sprintf("%s-%d", service, i), Namespace: "default",
				Labels: map[string]string{discoveryv1.LabelServiceName: service},
			},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &protocol}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{b.Addr.String()}}},
		}
		_ = client.Delete(context.Background(), slice.Name, metav1.DeleteOptions{}) // the fake deletes no collections
		if _, err := client.Create(context.Background(), slice, metav1.CreateOptions{}); err != nil {
			l.t.Fatal(err)
		}
	}
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestClusterAddress(t *testing.T) {
	l := newLab(t)
	client, server := l.sandbox(), l.sandbox()
	l.service("echo", "10.96.0.50", corev1.ServiceTypeNodePort, corev1.ProtocolTCP)
	l.endpoints("echo", corev1.ProtocolTCP, server)
	to := addr("10.96.0.50:80")
	l.expect(client, "tcp4", to, fmt.Sprintf("%s from %s", server.Addr, client.Addr))
	l.expect(nil, "tcp4", to, fmt.Sprintf("%s from %s", server.Addr, netns.Router))
	l.expect(client, "tcp4", addr("10.0.0.1:30080"), fmt.Sprintf("%s from %s", server.Addr, client.Addr))
	// The server reaches itself by the Service: its address is hidden, or the answer would take another way back.
	l.expect(server, "tcp4", to, fmt.Sprintf("%s from %s", server.Addr, netns.Router))
}

// TestRouterServesItself is how the API server calls istiod's webhook when both are in the root namespace.
func TestRouterServesItself(t *testing.T) {
	l := newLab(t)
	router := &sandbox{Port: &netns.Port{Addr: netns.Router}}
	if err := router.listen(t); err != nil {
		t.Fatal(err)
	}
	l.service("webhook", "10.96.0.51", corev1.ServiceTypeClusterIP, corev1.ProtocolTCP)
	l.endpoints("webhook", corev1.ProtocolTCP, router)
	l.expect(nil, "tcp4", addr("10.96.0.51:80"), "10.0.0.1 from 10.0.0.1")
	client := l.sandbox()
	l.expect(client, "tcp4", addr("10.96.0.51:80"), fmt.Sprintf("10.0.0.1 from %s", client.Addr))
}

func TestUDP(t *testing.T) {
	l := newLab(t)
	client, server := l.sandbox(), l.sandbox()
	l.service("time", "10.96.0.52", corev1.ServiceTypeClusterIP, corev1.ProtocolUDP)
	l.endpoints("time", corev1.ProtocolUDP, server)
	l.expect(client, "udp4", addr("10.96.0.52:80"), fmt.Sprintf("%s from %s", server.Addr, client.Addr))
}

func TestBackendsShareAndChange(t *testing.T) {
	l := newLab(t)
	client, one, two := l.sandbox(), l.sandbox(), l.sandbox()
	l.service("echo", "10.96.0.53", corev1.ServiceTypeClusterIP, corev1.ProtocolTCP)
	l.endpoints("echo", corev1.ProtocolTCP, one, two)
	to := addr("10.96.0.53:80")
	seen := map[string]int{}
	l.eventually("both backends answer", func() error {
		got, err := ask(client, "tcp4", to)
		if err != nil {
			return err
		}
		seen[got]++
		if len(seen) < 2 {
			return fmt.Errorf("seen %v", seen)
		}
		return nil
	})
	l.endpoints("echo", corev1.ProtocolTCP, two)
	if err := l.client.DiscoveryV1().EndpointSlices("default").Delete(context.Background(), "echo-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.eventually("only the second backend answers", func() error {
		for range 10 {
			got, err := ask(client, "tcp4", to)
			if err != nil || got != fmt.Sprintf("%s from %s", two.Addr, client.Addr) {
				return fmt.Errorf("answer = %q, %v", got, err)
			}
		}
		return nil
	})
}

// TestRefused checks that a client need not wait for a Service that cannot answer.
func TestRefused(t *testing.T) {
	l := newLab(t)
	client := l.sandbox()
	l.service("empty", "10.96.0.54", corev1.ServiceTypeClusterIP, corev1.ProtocolTCP)
	for _, to := range []string{"10.96.0.54:80", "10.96.77.77:80"} {
		for _, from := range []*sandbox{client, nil} {
			// The rules of a new Service follow it by a moment, and a packet in between is sent again after a second.
			l.eventually("refused at once", func() error {
				begin := time.Now()
				_, err := ask(from, "tcp4", addr(to))
				if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(begin) > time.Second {
					return fmt.Errorf("connect to %s = %v after %v", to, err, time.Since(begin))
				}
				return nil
			})
		}
	}
}

func TestLoadBalancer(t *testing.T) {
	l := newLab(t)
	client, server := l.sandbox(), l.sandbox()
	l.service("front", "10.96.0.55", corev1.ServiceTypeLoadBalancer, corev1.ProtocolTCP)
	l.endpoints("front", corev1.ProtocolTCP, server)
	var ip string
	l.eventually("address in the status", func() error {
		s, err := l.client.CoreV1().Services("default").Get(context.Background(), "front", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(s.Status.LoadBalancer.Ingress) != 1 {
			return fmt.Errorf("status = %+v, want one address", s.Status.LoadBalancer)
		}
		ip = s.Status.LoadBalancer.Ingress[0].IP
		return nil
	})
	to := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
	if !netns.LoadBalancers.Contains(to.Addr()) {
		t.Errorf("address = %s, want one of %s", ip, netns.LoadBalancers)
	}
	l.expect(client, "tcp4", to, fmt.Sprintf("%s from %s", server.Addr, client.Addr))
	l.expect(nil, "tcp4", to, fmt.Sprintf("%s from %s", server.Addr, to.Addr()))

	if err := l.client.CoreV1().Services("default").Delete(context.Background(), "front", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.eventually("the address is gone", func() error {
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr() == to.Addr() {
				return fmt.Errorf("%s is still there", to.Addr())
			}
		}
		return nil
	})
}

func TestResolver(t *testing.T) {
	l := newLab(t)
	client := l.sandbox()
	l.service("echo", "10.96.0.56", corev1.ServiceTypeClusterIP, corev1.ProtocolTCP)
	for _, network := range []string{"udp", "tcp"} {
		l.eventually("resolve over "+network, func() error {
			query := &dns.Msg{}
			query.SetQuestion("Echo.default.svc.cluster.local.", dns.TypeA)
			var conn *dns.Conn
			err := client.Do(func() (err error) {
				conn, err = dns.DialTimeout(network, netip.AddrPortFrom(netns.Resolver, 53).String(), 3*time.Second)
				return err
			})
			if err != nil {
				return err
			}
			defer conn.Close()
			reply, _, err := (&dns.Client{Net: network}).ExchangeWithConn(query, conn)
			if err != nil {
				return err
			}
			if len(reply.Answer) != 1 || reply.Answer[0].(*dns.A).A.String() != "10.96.0.56" {
				return fmt.Errorf("answer = %v, want 10.96.0.56", reply)
			}
			return nil
		})
	}
}

package svcnet

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func ptr[T any](v T) *T { return &v }

func clusterService(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Name: "web", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
}

func slice(service string, ready bool, hostname *string, addrs ...string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("web"), Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: addrs, Hostname: hostname, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
	}
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	services := []*corev1.Service{
		clusterService("echo", "10.96.0.9"), clusterService("db", corev1.ClusterIPNone),
		{ObjectMeta: metav1.ObjectMeta{Name: "out", Namespace: "shop"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "near", Namespace: "shop"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "echo.shop.svc.cluster.local"}},
		{ObjectMeta: metav1.ObjectMeta{Name: "loop", Namespace: "shop"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "loop.shop.svc.cluster.local"}},
	}
	endpoints := []*discoveryv1.EndpointSlice{
		slice("db", true, ptr("db-0"), "10.0.64.4"), slice("db", true, nil, "10.0.64.5"), slice("db", false, nil, "10.0.64.6"),
	}
	r := &resolver{}
	r.zone.Store(newZone("cluster.local", services, endpoints))
	for _, tt := range []struct {
		name  string
		qtype uint16
		rcode int
		want  []string
	}{
		{"echo.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.96.0.9"}},
		{"ECHO.Shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.96.0.9"}},
		{"echo.shop.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"db.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.64.4", "10.0.64.5"}},
		{"db-0.db.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.64.4"}},
		{"10-0-64-5.db.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.64.5"}},
		{"_web._tcp.echo.shop.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, []string{"echo.shop.svc.cluster.local.:80"}},
		{"_web._tcp.db.shop.svc.cluster.local.", dns.TypeSRV, dns.RcodeSuccess, []string{"10-0-64-5.db.shop.svc.cluster.local.:8080", "db-0.db.shop.svc.cluster.local.:8080"}},
		{"9.0.96.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, []string{"echo.shop.svc.cluster.local."}},
		{"out.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"example.com."}},
		{"near.shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.96.0.9", "echo.shop.svc.cluster.local."}},
		{"shop.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, nil},
		{"10-0-64-9.shop.pod.cluster.local.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.64.9"}},
		{"ip-10-0-128-7.us-east-2.compute.internal.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.128.7"}},
		{"ip-10-0-128-777.us-east-2.compute.internal.", dns.TypeA, dns.RcodeNameError, nil},
		{"none.shop.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, nil},
		{"echo.ecs-demo-1.ecs.local.", dns.TypeA, dns.RcodeNameError, nil},
		{".", dns.TypeA, dns.RcodeNameError, nil},
	} {
		query := &dns.Msg{}
		query.SetQuestion(tt.name, tt.qtype)
		reply := r.answer(query)
		var got []string
		for _, rr := range reply.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				got = append(got, rr.A.String())
			case *dns.SRV:
				got = append(got, rr.Target+":"+itoa(rr.Port))
			case *dns.PTR:
				got = append(got, rr.Ptr)
			case *dns.CNAME:
				got = append(got, rr.Target)
			}
		}
		slices.Sort(got)
		if reply.Rcode != tt.rcode || !cmp.Equal(got, tt.want) {
			t.Errorf("%s %s = %s %v, want %s %v", tt.name, dns.TypeToString[tt.qtype], dns.RcodeToString[reply.Rcode], got, dns.RcodeToString[tt.rcode], tt.want)
		}
		if len(got) == 0 && len(reply.Ns) != 1 {
			t.Errorf("%s %s: a negative answer without SOA", tt.name, dns.TypeToString[tt.qtype])
		}
	}
}

func itoa(n uint16) string {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), n).String()[len("0.0.0.0:"):]
}

func TestAnswerBeforeSync(t *testing.T) {
	t.Parallel()
	query := &dns.Msg{}
	query.SetQuestion("echo.shop.svc.cluster.local.", dns.TypeA)
	if got := (&resolver{}).answer(query).Rcode; got != dns.RcodeServerFailure {
		t.Errorf("code before the first sync = %s, want SERVFAIL", dns.RcodeToString[got])
	}
}

func TestAssign(t *testing.T) {
	t.Parallel()
	pool := netip.MustParsePrefix("10.0.200.0/30") // two addresses
	now := time.Unix(1000, 0)
	balancer := func(name string, age time.Duration, ips ...string) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", CreationTimestamp: metav1.NewTime(now.Add(-age))}}
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		return s
	}
	asking := balancer("asks", 0)
	asking.Spec.LoadBalancerIP = "10.0.200.2"
	former := balancer("former", 0, "10.0.200.1")
	former.Spec.Type = corev1.ServiceTypeClusterIP
	other := balancer("other", 0)
	other.Spec.LoadBalancerClass = ptr("example.com/other")
	one, two := netip.MustParseAddr("10.0.200.1"), netip.MustParseAddr("10.0.200.2")
	for _, tt := range []struct {
		name     string
		services []*corev1.Service
		pending  map[types.NamespacedName]netip.Addr
		want     []Assignment
		full     bool
	}{
		{name: "the older first", services: []*corev1.Service{balancer("young", 0), balancer("old", time.Hour)}, want: []Assignment{{"shop", "old", one}, {"shop", "young", two}}},
		{name: "keeps what it has", services: []*corev1.Service{balancer("old", time.Hour), balancer("served", 0, "10.0.200.1")}, want: []Assignment{{"shop", "old", two}}},
		{name: "as asked for", services: []*corev1.Service{asking}, want: []Assignment{{"shop", "asks", two}}},
		{name: "asked for in vain", services: []*corev1.Service{asking, balancer("served", 0, "10.0.200.2")}, full: true},
		{name: "taken away", services: []*corev1.Service{former}, want: []Assignment{{Namespace: "shop", Name: "former"}}},
		{name: "another controller's", services: []*corev1.Service{other}},
		{name: "full", services: []*corev1.Service{balancer("a", 3), balancer("b", 2), balancer("c", 1)}, want: []Assignment{{"shop", "a", one}, {"shop", "b", two}}, full: true},
		{
			name: "written but not seen yet", services: []*corev1.Service{balancer("a", 0), balancer("b", time.Hour)},
			pending: map[types.NamespacedName]netip.Addr{{Namespace: "shop", Name: "a"}: one}, want: []Assignment{{"shop", "b", two}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Assign(tt.services, pool, tt.pending)
			if (err != nil) != tt.full {
				t.Errorf("error = %v, want one: %v", err, tt.full)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("Assign (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFrontends(t *testing.T) {
	t.Parallel()
	s := clusterService("echo", "10.96.0.9")
	s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 9000})
	slices := []*discoveryv1.EndpointSlice{
		slice("echo", true, nil, "10.0.64.5", "10.0.64.4"), slice("echo", false, nil, "10.0.64.6"), slice("other", true, nil, "10.0.64.7"),
	}
	want := []Frontend{
		{Addr: netip.MustParseAddrPort("10.96.0.9:80"), Backends: []netip.AddrPort{netip.MustParseAddrPort("10.0.64.4:8080"), netip.MustParseAddrPort("10.0.64.5:8080")}},
		{Addr: netip.MustParseAddrPort("10.96.0.9:9000")},
	}
	got := Frontends([]*corev1.Service{s}, slices, netip.Addr{})
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("Frontends (-want +got):\n%s", diff)
	}
}

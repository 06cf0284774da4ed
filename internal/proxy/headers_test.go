package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

func TestBaggage(t *testing.T) {
	w := serverWorkload()
	want := "k8s.cluster.name=Kubernetes,k8s.namespace.name=ecs-demo-1,k8s.deployment.name=echo,service.name=echo,service.version=latest,cloud.region=us-east-2,cloud.availability_zone=us-east-2a"
	if diff := cmp.Diff(want, Baggage(w)); diff != "" {
		t.Errorf("Baggage (-want +got):\n%s", diff)
	}
	if got := Baggage(&mesh.Workload{ClusterID: "c"}); got != "k8s.cluster.name=c" {
		t.Errorf("Baggage of a workload without much = %q", got)
	}
	back := ParseBaggage(Baggage(w))
	wantParty := telemetry.Party{Workload: "echo", App: "echo", Namespace: "ecs-demo-1", CanonicalName: "echo", CanonicalRevision: "latest", Cluster: "Kubernetes", Region: "us-east-2", Zone: "us-east-2a"}
	if diff := cmp.Diff(wantParty, back); diff != "" {
		t.Errorf("ParseBaggage (-want +got):\n%s", diff)
	}
	for in, want := range map[string]string{"": "", "a": "", "service.name=": "", "service.name=x\x01": "", "service.name=é": "", " service.name=x , y": "x"} {
		if got := ParseBaggage(in).CanonicalName; got != want {
			t.Errorf("ParseBaggage(%q) = %q, want %q", in, got, want)
		}
	}
	if got := ParseBaggage("service.name=a", "service.version=2"); got.CanonicalName != "a" || got.CanonicalRevision != "2" {
		t.Errorf("two header lines = %+v", got)
	}
}

func TestForwarded(t *testing.T) {
	v := forwarded(netip.MustParseAddrPort("10.0.0.1:5"), "echo.local")
	if v != `for="10.0.0.1:5";host=echo.local` || ForwardedHost(v) != "echo.local" {
		t.Errorf("forwarded = %q, host %q", v, ForwardedHost(v))
	}
	for in, want := range map[string]string{`host="x"`: "x", "for=1; host=y": "y", "": "", "host=\n": ""} {
		if got := ForwardedHost(in); got != want {
			t.Errorf("ForwardedHost(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestProxyHeader(t *testing.T) {
	h := proxyHeader(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:80"), clientWorkload().Identity())
	uri := "spiffe://cluster.local/ns/default/sa/shell"
	want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11" + "\x00" + string(rune(12+3+len(uri))) + "\x0a\x00\x00\x01\x0a\x00\x00\x02\x00\x01\x00\x50" + "\xd0\x00" + string(rune(len(uri))) + uri
	if diff := cmp.Diff([]byte(want), h); diff != "" {
		t.Errorf("proxyHeader (-want +got):\n%s", diff)
	}
	if h := proxyHeader(netip.MustParseAddrPort("[::1]:1"), netip.AddrPort{}, mesh.Identity{}); len(h) != 16+36 {
		t.Errorf("IPv6 header has %d bytes, want 52", len(h))
	}
}

func TestConnectHeaders(t *testing.T) {
	rec := &telemetry.Conn{SrcAddr: netip.MustParseAddrPort("10.0.0.1:5")}
	names := func() (out string) {
		for _, h := range connectHeaders(clientWorkload(), rec, nil) {
			out += h.Name + "=" + h.Value + "\n"
		}
		return out
	}
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	rec.Trace, _ = telemetry.ParseTrace([]string{parent}, nil)
	if got := names(); !strings.HasSuffix(got, "\ntraceparent="+parent+"\n") {
		t.Errorf("headers without a state:\n%s", got)
	}
	rec.Trace, _ = telemetry.ParseTrace([]string{parent}, []string{"a=b"})
	if got := names(); !strings.HasSuffix(got, "\ntraceparent="+parent+"\ntracestate=a=b\n") {
		t.Errorf("headers with a state:\n%s", got)
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add("k8s.pod.name=a,service.name=b", `for="1.2.3.4:5";host=x`)
	f.Fuzz(func(t *testing.T, baggage, fwd string) {
		p := ParseBaggage(baggage)
		for _, s := range []string{p.Workload, p.Namespace, p.CanonicalName, p.Cluster, ForwardedHost(fwd)} {
			if !visible(s) {
				t.Errorf("invisible characters came through: %q", s)
			}
		}
	})
}

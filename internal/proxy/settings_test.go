package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// connectAs opens a tunnel to the server as a peer would that is not this program.
func (w *world) connectAs(id mesh.Identity, headers ...hbone.Header) hbone.Response {
	w.t.Helper()
	p, err := hbone.NewPool(hbone.PoolConfig{Log: meshtest.Discard(), Certificate: w.config("", "", "").Certs})
	if err != nil {
		w.t.Fatal(err)
	}
	meshtest.Run(w.t, p.Run)
	s, resp, err := p.Connect(w.t.Context(), hbone.Key{Source: id, Peers: []mesh.Identity{serverWorkload().Identity()},
		Addr: netip.AddrPortFrom(serverIP, mesh.HBONEPort)}, hbone.Request{Authority: "10.1.0.2:8080", Header: headers})
	if err != nil {
		w.t.Fatal(err)
	}
	s.Reset(hbone.Cancel)
	return resp
}

// ENABLE_RESPONSE_BAGGAGE: a workload is described to its peers, and what they say of themselves is believed, for
// telemetry; or neither.
func TestBaggageSwitch(t *testing.T) {
	stranger := mesh.Identity{TrustDomain: "cluster.local", Namespace: "far", ServiceAccount: "stranger"} // xDS does not know it
	for _, off := range []bool{false, true} {
		t.Run(map[bool]string{false: "on", true: "off"}[off], func(t *testing.T) {
			w := newWorld(t, func(_, server *Config) { server.NoBaggage = off })
			resp := w.connectAs(stranger, hbone.Header{Name: headerBaggage, Value: "k8s.namespace.name=claimed,k8s.deployment.name=claimed,service.name=claimed"})
			values := headerValues(resp.Header, headerBaggage)
			if told := len(values) == 1 && strings.Contains(values[0], "service.name=echo"); told == off || off && len(values) != 0 {
				t.Errorf("the answer describes the server with %q", values)
			}
			line := w.server.logged(t, "\taccess\tconnection complete\t", `src.identity="spiffe://cluster.local/ns/far/sa/stranger"`)
			claimed := `src.workload="claimed" src.namespace="claimed"`
			if strings.Contains(line, claimed) == off {
				t.Errorf("the access log = %s", line)
			}
			if off && !strings.Contains(line, `src.namespace="far"`) {
				t.Errorf("what TLS proved is missing: %s", line)
			}
			meshtest.Eventually(t, "the metric", func() bool {
				name := map[bool]string{false: "claimed", true: "unknown"}[off]
				return w.server.metric(t, "istio_tcp_connections_closed_total", `source_workload="`+name+`"`) == 1
			})
		})
	}
}

// AUTHZ_POLICY_INFO_LOGGING: each verdict is in the log, with what decided, at debug or at info. That a policy denied is
// in the access log whatever the setting.
func TestDecisionLog(t *testing.T) {
	for _, info := range []bool{false, true} {
		level := map[bool]string{false: "debug", true: "info"}[info]
		t.Run(level, func(t *testing.T) {
			w := newWorld(t, func(_, server *Config) { server.LogDecisions = info })
			call := func() { proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...) }
			call()
			w.server.logged(t, "\t"+level+"\t", "policies evaluated\t", `outcome="allowed"`, "src.addr=10.1.0.1:", `src.identity="spiffe://cluster.local/ns/default/sa/shell"`,
				"dst.addr=10.1.0.2:8080")
			allow := denyPolicy("only-shell", "cluster.local/ns/default/sa/other", "cluster.local/ns/default/sa/shell")
			allow.Action = mesh.Allow
			allow.Rules = slices.Concat([]mesh.Rule{{{{DestinationPorts: []uint16{1}}}}}, allow.Rules)
			w.store.Apply(mesh.Update{Policies: []*mesh.Policy{allow}})
			call()
			w.server.logged(t, "\t"+level+"\t", "policies evaluated\t", `outcome="allowed" policy="ecs-demo-1/only-shell" rule=1`)
			w.store.Apply(mesh.Update{Policies: []*mesh.Policy{denyPolicy("no-shell", "cluster.local/ns/default/sa/shell")}})
			call()
			w.server.logged(t, "\t"+level+"\t", "policies evaluated\t", `outcome="denied" policy="ecs-demo-1/no-shell" rule=0`)
			w.server.logged(t, "\terror\taccess\tconnection complete\t", `policy="ecs-demo-1/no-shell" rule=0 reason=DENY`)
		})
	}
}

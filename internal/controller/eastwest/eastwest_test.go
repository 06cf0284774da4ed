package eastwest

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// guide is the Gateway of the guide's step 2.3, unchanged.
const guide = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  labels:
    istio.io/expose-istiod: "15012"
    topology.istio.io/network: eks
  name: eastwest
  namespace: istio-system
spec:
  gatewayClassName: istio-eastwest
  listeners:
  - name: cross-network
    port: 15008
    protocol: HBONE
    tls:
      mode: Passthrough
  - name: xds-tls
    port: 15012
    protocol: TLS
    tls:
      mode: Passthrough
`

func decode(t *testing.T, yaml string) kube.Gateway {
	t.Helper()
	objs, err := kube.ParseYAML([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	var gw kube.Gateway
	if err := kube.Decode(objs[0], &gw); err != nil {
		t.Fatal(err)
	}
	return gw
}

func TestDecide(t *testing.T) {
	routes := map[string]string{
		"istiod.istio-system.svc":         "istiod.istio-system.svc:15012",
		"isthmus-broker.istio-system.svc": "isthmus-broker.istio-system.svc:443",
	}
	both := []install.GatewayPort{{Name: "cross-network", Port: 15008, Target: 15008}, {Name: "xds-tls", Port: 15012, Target: 15012}}
	tests := []struct {
		name    string
		replace []string
		ports   []install.GatewayPort
		routes  map[string]string
		refused string
		bad     []string
	}{
		{"the guide's", nil, both, routes, "", nil},
		{"istiod not exposed", []string{`istio.io/expose-istiod: "15012"`, "a: b"}, both, map[string]string{}, "", nil},
		{"istiod exposed on another port", []string{`expose-istiod: "15012"`, `expose-istiod: "15443"`}, both, map[string]string{}, "", nil},
		{"another port for the passthrough", []string{`"15012"`, `"15443"`, "port: 15012", "port: 15443"},
			[]install.GatewayPort{both[0], {Name: "xds-tls", Port: 15443, Target: 15012}}, routes, "", nil},
		{"terminating TLS is refused", []string{"protocol: TLS\n    tls:\n      mode: Passthrough", "protocol: TLS\n    tls:\n      mode: Terminate"}, both[:1], map[string]string{}, "", []string{"xds-tls"}},
		{"HTTP is refused", []string{"protocol: HBONE", "protocol: HTTP"}, both[1:], routes, "", []string{"cross-network"}},
		{"one port twice", []string{"port: 15012", "port: 15008"}, both[:1], map[string]string{}, "", []string{"xds-tls"}},
		{"another namespace", []string{"namespace: istio-system", "namespace: shop"}, both, nil, "IST2403", nil},
		{"nothing served", []string{"protocol: HBONE", "protocol: HTTP", "protocol: TLS", "protocol: TCP"}, nil, map[string]string{}, "IST2401", []string{"cross-network", "xds-tls"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := decide(decode(t, strings.NewReplacer(tt.replace...).Replace(guide)), Config{Namespace: "istio-system", Network: "fallback"})
			if diff := cmp.Diff(tt.ports, d.workload.Ports); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if tt.routes != nil {
				if diff := cmp.Diff(tt.routes, d.workload.TLSRoutes); diff != "" {
					t.Errorf("routes (-want +got):\n%s", diff)
				}
			}
			code := ""
			if d.refused != nil {
				code = string(d.refused.Code)
			}
			if code != tt.refused {
				t.Errorf("refused %q, want %q", code, tt.refused)
			}
			var bad []string
			for name, p := range d.listeners {
				if p != nil {
					bad = append(bad, name)
				}
			}
			slices.Sort(bad)
			if diff := cmp.Diff(tt.bad, bad); diff != "" {
				t.Errorf("refused listeners (-want +got):\n%s", diff)
			}
			if d.workload.Network != "eks" {
				t.Errorf("network %q, want eks", d.workload.Network)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	address := []kube.GatewayAddress{{Type: "IPAddress", Value: "10.0.200.1"}}
	tests := []struct {
		name      string
		replace   []string
		addresses []kube.GatewayAddress
		available bool
		failed    error
		want      string
	}{
		{"pending address", nil, nil, true, nil, "Accepted=True/Accepted Programmed=False/AddressNotAssigned"},
		{"no pod", nil, address, false, nil, "Accepted=True/Accepted Programmed=False/NoResources"},
		{"ready", nil, address, true, nil, "Accepted=True/Accepted Programmed=True/Programmed"},
		{"write failed", nil, address, true, errors.New("quota"), "Accepted=True/Accepted Programmed=False/Pending"},
		{"one listener refused", []string{"protocol: HBONE", "protocol: HTTP"}, address, true, nil, "Accepted=True/ListenersNotValid Programmed=True/Programmed"},
		{"refused", []string{"namespace: istio-system", "namespace: shop"}, address, true, nil, "Accepted=False/Invalid Programmed=False/Invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			gw := decode(t, strings.NewReplacer(tt.replace...).Replace(guide))
			st := buildStatus(gw, decide(gw, Config{Namespace: "istio-system"}), tt.addresses, tt.available, tt.failed)
			var got []string
			for _, c := range st.Conditions {
				got = append(got, c.Type+"="+c.Status+"/"+c.Reason)
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("conditions %s, want %s", g, tt.want)
			}
			if len(st.Listeners) != 2 {
				t.Errorf("%d listeners, want 2", len(st.Listeners))
			}
		})
	}
}

type world struct {
	*kubetest.Cluster
	ctl *Controller
	now time.Time
}

func start(t *testing.T, yaml string) *world {
	t.Helper()
	w := &world{Cluster: kubetest.New(t, yaml), now: time.Unix(1_800_000_000, 0)}
	ctl, err := New(Config{Kube: w.Client, Namespace: "istio-system", Image: "isthmus/ztunnel:test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	w.ctl = ctl
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ctl.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return w
}

func (w *world) wait(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func (w *world) get(t *testing.T, kind kube.Kind, name string) *kube.Object {
	t.Helper()
	ns := "istio-system"
	if kind == kube.GatewayClasses {
		ns = ""
	}
	o, err := w.Client.Get(t.Context(), kind, ns, name)
	if err != nil {
		if !kube.IsNotFound(err) {
			t.Fatal(err)
		}
		return nil
	}
	return o
}

func (w *world) condition(t *testing.T, kind string) string {
	var gw kube.Gateway
	if err := kube.Decode(w.get(t, kube.Gateways, "eastwest"), &gw); err != nil {
		t.Fatal(err)
	}
	for _, c := range gw.Status.Conditions {
		if c.Type == kind {
			return c.Status + "/" + c.Reason
		}
	}
	return ""
}

func TestGuidesGatewayIsServed(t *testing.T) {
	w := start(t, guide)
	const name = "eastwest-istio-eastwest"
	w.wait(t, "workload made", func() bool {
		return w.get(t, kube.Services, name) != nil && w.get(t, kube.Deployments, name) != nil && w.get(t, kube.ServiceAccounts, name) != nil
	})
	w.wait(t, "class accepted", func() bool {
		class := w.get(t, kube.GatewayClasses, kube.GatewayClassName)
		return class != nil && class.Object["status"] != nil
	})
	w.wait(t, "address pending", func() bool { return w.condition(t, "Programmed") == "False/AddressNotAssigned" })

	svc, dep := w.get(t, kube.Services, name), w.get(t, kube.Deployments, name)
	svc.Object["status"] = map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": "10.0.200.1"}}}}
	dep.Object["status"] = map[string]any{"availableReplicas": int64(1)}
	w.put(t, svc, dep)
	w.wait(t, "programmed", func() bool { return w.condition(t, "Programmed") == "True/Programmed" })
	var gw kube.Gateway
	if err := kube.Decode(w.get(t, kube.Gateways, "eastwest"), &gw); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]kube.GatewayAddress{{Type: "IPAddress", Value: "10.0.200.1"}}, gw.Status.Addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}

	// Nothing changed, so nothing is written, however often it looks; once its watch has shown it its own last write.
	w.wait(t, "its own writes seen", func() bool {
		w.Writes()
		return w.ctl.Reconcile(t.Context()) == nil && len(w.Writes()) == 0
	})
	for range 3 {
		if err := w.ctl.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if writes := w.Writes(); len(writes) != 0 {
		t.Errorf("idle rounds wrote %v", writes)
	}

	if _, err := w.Client.Delete(t.Context(), kube.Gateways, "istio-system", "eastwest", nil); err != nil {
		t.Fatal(err)
	}
	w.wait(t, "workload removed", func() bool {
		return w.get(t, kube.Services, name) == nil && w.get(t, kube.Deployments, name) == nil && w.get(t, kube.ServiceAccounts, name) == nil
	})
}

func (w *world) put(t *testing.T, objs ...*kube.Object) {
	t.Helper()
	for _, o := range objs {
		b, err := o.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		w.Put(t, string(b))
	}
}

func TestForeignClassIsLeftAlone(t *testing.T) {
	w := start(t, guide+"---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio-eastwest}\nspec: {controllerName: example.com/other}\n")
	w.wait(t, "caches", func() bool {
		for _, k := range w.ctl.caches() {
			select {
			case <-k.Synced():
			default:
				return false
			}
		}
		return true
	})
	if err := w.ctl.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if writes := w.Writes(); len(writes) != 0 {
		t.Errorf("wrote %v although the class names another controller", writes)
	}
}

func TestGatewayElsewhereIsRefusedWithAnEvent(t *testing.T) {
	w := start(t, strings.ReplaceAll(guide, "namespace: istio-system", "namespace: shop"))
	w.wait(t, "event", func() bool {
		return slices.ContainsFunc(w.Events(t), func(e string) bool {
			return strings.HasPrefix(e, "Warning Refused Gateway/eastwest") && strings.Contains(e, "IST2403") && strings.Contains(e, "Fix:")
		})
	})
	if w.get(t, kube.Services, "eastwest-istio-eastwest") != nil {
		t.Error("a workload was made for a refused Gateway")
	}
}

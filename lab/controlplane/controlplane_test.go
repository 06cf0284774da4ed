package controlplane

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/netns/netnstest"
	"github.com/isthmus-mesh/isthmus/lab/svcnet"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// kubeBinary finds isthmus-lab-kube, or skips the test.
func kubeBinary(t *testing.T) string {
	t.Helper()
	for _, path := range []string{os.Getenv("ISTHMUS_LAB_KUBE"), "../../bin/isthmus-lab-kube"} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			abs, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			return abs
		}
	}
	t.Skip("SKIPPED: the control plane is not tested at all, because isthmus-lab-kube is not built (make build) and ISTHMUS_LAB_KUBE does not name it")
	return ""
}

// plane is a running control plane with its service network.
type plane struct {
	*ControlPlane
	client  *kubernetes.Clientset
	dynamic *dynamic.DynamicClient
	applier *Applier
}

func startPlane(t *testing.T, binary string) *plane {
	t.Helper()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	vpc, err := netns.New(netns.Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cp, err := New(Config{
		Dir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "logs"), Binary: binary, Advertise: netns.Router,
		ServiceCIDR: netns.Services, NodeName: "lab-node", Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &plane{ControlPlane: cp}
	config := cp.RESTConfig(Admin)
	if p.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if p.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if p.applier, err = NewApplier(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cp.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
		if err := vpc.Close(); err != nil {
			t.Errorf("close the VPC: %v", err)
		}
		if t.Failed() {
			for _, c := range cp.Components() {
				t.Logf("%s:\n%s", c.Name(), lastLines(c.LogPath(), 15))
			}
		}
	})
	begin := time.Now()
	for _, c := range cp.Components() {
		if err := c.WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s ready after %v, %d MiB", c.Name(), time.Since(begin).Round(time.Millisecond), c.Status().RSSBytes>>20)
	}
	network, err := svcnet.New(svcnet.Config{
		Client: p.client, Interface: netns.Bridge, ServiceNetwork: netns.Services, LoadBalancers: netns.LoadBalancers,
		DNS: netip.AddrPortFrom(netns.Resolver, 53), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	group.Go(func() error { return network.Run(ctx) })
	return p
}

func lastLines(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestControlPlane brings the whole control plane up, with istiod as a child process in place of its pod, and checks
// that Istio works: its webhook refuses, and its controllers allocate addresses.
func TestControlPlane(t *testing.T) {
	// Once is enough for something this slow.
	if netnstest.As() == "nobody" {
		t.Skip("SKIPPED as nobody: root has run it right before, and package daemon brings a whole lab up as nobody")
	}
	binary := kubeBinary(t)
	begin := time.Now()
	p := startPlane(t, binary)
	charts, err := RenderIstio(within(t, time.Minute), binary)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := GatewayAPI()
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	if err := p.applier.CreateCRDs(within(t, time.Minute), append(gateway, charts.CRDs...)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d definitions served after %v", len(gateway)+len(charts.CRDs), time.Since(at).Round(time.Millisecond))
	at = time.Now()
	if err := p.applier.Apply(within(t, time.Minute), charts.Objects); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d objects applied after %v", len(charts.Objects), time.Since(at).Round(time.Millisecond))
	at = time.Now()
	startIstiod(t, p, binary)
	t.Logf("istiod ready after %v; all of it took %v", time.Since(at).Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))

	checkKubectl(t, p, binary)
	checkWebhook(t, p)
	checkAddressAllocated(t, p)
	checkTokens(t, p)
	checkRestart(t, p)
}

// startIstiod runs istiod as a child and makes it the endpoint of its Service.
func startIstiod(t *testing.T, p *plane, binary string) {
	t.Helper()
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := p.WriteKubeconfig(kubeconfig, Admin, p.Server()); err != nil {
		t.Fatal(err)
	}
	istiod, err := NewComponent(ComponentConfig{
		Name: "istiod", Path: binary, LogPath: filepath.Join(dir, "istiod.log"),
		Args:  []string{"pilot-discovery", "discovery", "--kubeconfig=" + kubeconfig},
		Env:   []string{"PILOT_ENABLE_AMBIENT=true", "REVISION=default", "POD_NAME=istiod", "POD_NAMESPACE=istio-system", "PILOT_DEBOUNCE_AFTER=10ms"},
		Ready: p.check("http://127.0.0.1:8080/ready", nil), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return istiod.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		_ = group.Wait()
		if t.Failed() {
			t.Logf("istiod:\n%s", lastLines(istiod.LogPath(), 15))
		}
	})
	var ports []discoveryv1.EndpointPort
	for name, port := range map[string]int32{"grpc-xds": 15010, "https-dns": 15012, "https-webhook": 15017, "http-monitoring": 15014} {
		ports = append(ports, discoveryv1.EndpointPort{Name: &name, Port: &port})
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "istiod-child", Labels: map[string]string{discoveryv1.LabelServiceName: "istiod"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{netns.Router.String()}}},
	}
	if _, err := p.client.DiscoveryV1().EndpointSlices(IstioNamespace).Create(within(t, time.Minute), slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := istiod.WaitReady(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func checkKubectl(t *testing.T, p *plane, binary string) {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := p.WriteKubeconfig(kubeconfig, Admin, p.Server()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(within(t, time.Minute), binary, "kubectl", "--kubeconfig", kubeconfig, "get", "ns", "-o", "name")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl get ns: %v: %s", err, out)
	}
	for _, want := range []string{"namespace/default", "namespace/istio-system"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("kubectl get ns = %q, want it to contain %q", out, want)
		}
	}
}

func serviceEntries() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}
}

// checkWebhook applies what only istiod's webhook can refuse.
func checkWebhook(t *testing.T, p *plane) {
	t.Helper()
	policy := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": map[string]any{"name": "bad", "namespace": "default"},
		"spec": map[string]any{"rules": []any{map[string]any{"to": []any{map[string]any{"operation": map[string]any{"ports": []any{"8080-8090"}}}}}}},
	}}
	if err := WaitValidation(within(t, time.Minute), p.client); err != nil {
		t.Error(err)
		return
	}
	resource := schema.GroupVersionResource{Group: "security.istio.io", Version: "v1", Resource: "authorizationpolicies"}
	_, err := p.dynamic.Resource(resource).Namespace("default").Create(within(t, time.Minute), policy, metav1.CreateOptions{})
	if err == nil || !strings.Contains(err.Error(), "denied the request") {
		t.Errorf("create of a policy with a port range = %v, want a refusal by the webhook", err)
	}
}

func checkAddressAllocated(t *testing.T, p *plane) {
	t.Helper()
	entry := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": map[string]any{"name": "echo", "namespace": "default"},
		"spec": map[string]any{
			"hosts": []any{"echo.ecs-demo-1.ecs.local"}, "location": "MESH_INTERNAL", "resolution": "STATIC",
			"ports": []any{map[string]any{"number": int64(8080), "name": "http", "protocol": "HTTP"}},
		},
	}}
	client := p.dynamic.Resource(serviceEntries()).Namespace("default")
	if _, err := client.Create(within(t, time.Minute), entry, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	err := Poll(within(t, 30*time.Second), func(ctx context.Context) error {
		got, err := client.Get(ctx, "echo", metav1.GetOptions{})
		if err != nil {
			return err
		}
		addresses, _, _ := unstructured.NestedSlice(got.Object, "status", "addresses")
		if len(addresses) == 0 || !strings.Contains(fmt.Sprint(addresses), "240.240.") {
			return fmt.Errorf("addresses = %v, want one of 240.240.0.0/16", addresses)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// checkTokens checks what only the controllers make: the root certificate and default account of a new namespace.
func checkTokens(t *testing.T, p *plane) {
	t.Helper()
	if err := p.applier.Apply(within(t, time.Minute), []*unstructured.Unstructured{NewNamespace("ecs-demo-1", nil)}); err != nil {
		t.Fatal(err)
	}
	err := Poll(within(t, 30*time.Second), func(ctx context.Context) error {
		if _, err := p.client.CoreV1().ServiceAccounts("ecs-demo-1").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		for _, name := range []string{"kube-root-ca.crt", "istio-ca-root-cert"} {
			if _, err := p.client.CoreV1().ConfigMaps("ecs-demo-1").Get(ctx, name, metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// checkRestart kills the scheduler and expects it back.
func checkRestart(t *testing.T, p *plane) {
	t.Helper()
	c, err := p.Component(ComponentScheduler)
	if err != nil {
		t.Fatal(err)
	}
	before := c.Status().PID
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	err = Poll(within(t, 30*time.Second), func(context.Context) error {
		if s := c.Status(); s.PID == 0 || s.PID == before || !s.Ready || s.Restarts != 1 {
			return fmt.Errorf("status = %+v, want another process, ready, 1 restart", s)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/lab/controlplane"
	"github.com/isthmus-mesh/isthmus/lab/netns"
)

// cluster is a real control plane.
type cluster struct {
	t          *testing.T
	binary     string
	kubeconfig string
	plane      *controlplane.ControlPlane
}

// kubectl runs the stock tool and returns its output and exit code.
func (c *cluster) kubectl(stdin string, args ...string) (string, int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, append([]string{"kubectl", "--kubeconfig", c.kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		c.t.Fatalf("kubectl %q: %v", args, err)
	}
	return string(out), 0
}

// must is kubectl that succeeds.
func (c *cluster) must(stdin string, args ...string) string {
	c.t.Helper()
	out, code := c.kubectl(stdin, args...)
	if code != 0 {
		state, _ := c.kubectl("", "get", "nodes,pods,events,replicasets", "-A", "-o", "wide")
		c.t.Fatalf("kubectl %q: exit code %d: %s\n%s", args, code, out, state)
	}
	return out
}

func startCluster(t *testing.T, node string) *cluster {
	t.Helper()
	binary := os.Getenv("ISTHMUS_LAB_KUBE")
	if binary == "" {
		t.Skip("SKIPPED: set ISTHMUS_LAB_KUBE to the path of isthmus-lab-kube to test against a real Kubernetes control plane")
	}
	dir := t.TempDir()
	plane, err := controlplane.New(controlplane.Config{
		Dir: filepath.Join(dir, "plane"), LogDir: filepath.Join(dir, "logs"), Binary: binary, Advertise: netns.Router,
		ServiceCIDR: netns.Services, NodeName: node, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- plane.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	starting, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	for _, name := range []string{controlplane.ComponentAPIServer, controlplane.ComponentControllerManager, controlplane.ComponentScheduler} {
		if err := plane.WaitReady(starting, name); err != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "logs", name+".log"))
			t.Fatalf("%s: %v\n%s", name, err, log[max(0, len(log)-4000):])
		}
	}
	c := &cluster{t: t, binary: binary, plane: plane, kubeconfig: filepath.Join(dir, "kubeconfig")}
	if err := plane.WriteKubeconfig(c.kubeconfig, controlplane.Admin, plane.Server()); err != nil {
		t.Fatal(err)
	}
	return c
}

// recorder is a ztunnel that remembers its pods.
type recorder struct {
	mu     sync.Mutex
	pods   map[string]bool // by namespace/name
	synced bool
}

func (r *recorder) Add(_ context.Context, w inpod.Workload, ns *os.File) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pods[w.UID+" "+w.Namespace+"/"+w.Name] = true
	return ns.Close()
}

func (r *recorder) Remove(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.pods {
		if strings.HasPrefix(k, uid+" ") {
			delete(r.pods, k)
		}
	}
}

func (r *recorder) Synced(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced = ok
}

func (r *recorder) names() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for k := range r.pods {
		_, name, _ := strings.Cut(k, " ")
		out = append(out, name)
	}
	return fmt.Sprint(out, " synced ", r.synced)
}

const realManifests = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers:
      - name: echo
        image: ealen/echo-server:0.9.2
        env: [{name: PORT, value: "8080"}]
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {port: http, path: /}, periodSeconds: 1}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent, namespace: shop}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      terminationGracePeriodSeconds: 2
      containers: [{name: agent, image: busybox, command: [/bin/sh, -c, "echo started; exec sleep infinity"]}]
`

func TestAgainstARealControlPlane(t *testing.T) {
	vpc := newVPC(t)
	c := startCluster(t, realCNI)
	client, err := kubernetes.NewForConfig(c.plane.RESTConfig(controlplane.Node))
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := c.plane.KubeletCertificate()
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(c.plane.CA())
	n := startNodeOn(t, vpc, client, func(cfg *Config) {
		cfg.Name, cfg.Certificate, cfg.ClientCAs, cfg.BearerTokens = realCNI, &certificate, clients, nil
		cfg.KubernetesService = netip.MustParseAddrPort("10.0.0.1:6443")
	})
	zt := &recorder{pods: map[string]bool{}}
	startProxy(t, n, zt)
	c.must(realManifests, "apply", "-f", "-")
	c.must("", "rollout", "status", "deployment/echo", "--timeout=25s")
	c.must("", "rollout", "status", "daemonset/agent", "-n", "shop", "--timeout=25s")
	if got := c.must("", "get", "nodes", "--no-headers"); !strings.Contains(got, " Ready ") {
		t.Errorf("get nodes: %s", got)
	}
	pods := c.must("", "get", "pods", "-A", "-o", "wide")
	t.Logf("%s", pods)
	t.Run("exec", func(t *testing.T) {
		out, code := c.kubectl("input", "exec", "-i", "deployment/echo", "--", "sh", "-c", "cat; exit 56")
		if code != 56 || !strings.HasPrefix(out, "input") {
			t.Errorf("exit code %d, output %q", code, out)
		}
		out, code = c.kubectl("", "exec", "-n", "shop", "daemonset/agent", "--", "ls", "/var/run/secrets/kubernetes.io/serviceaccount")
		if code != 0 || out != "ca.crt\nnamespace\ntoken\n" {
			t.Errorf("exit code %d, output %q", code, out)
		}
		out, _ = c.kubectl("", "exec", "deployment/echo", "--", "sh", "-c",
			`curl -sS --cacert /run/secrets/kubernetes.io/serviceaccount/ca.crt -H "Authorization: Bearer $(cat /run/secrets/kubernetes.io/serviceaccount/token)" https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/default/pods`)
		if !strings.Contains(out, "system:serviceaccount:default:default") {
			t.Errorf("the pod's token is not accepted: %s", out)
		}
	})
	t.Run("run", func(t *testing.T) {
		out, code := c.kubectl("one\ntwo\n", "run", "once", "--rm", "-i", "--restart=Never", "--image=busybox", "--", "sh", "-c", "wc -l; exit 3")
		if code != 3 || !strings.Contains(out, "2\n") {
			t.Errorf("exit code %d, output %q", code, out)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if out := c.must("", "logs", "-n", "shop", "-l", "app=agent"); out != "started\n" {
			t.Errorf("logs %q", out)
		}
	})
	t.Run("port-forward", func(t *testing.T) { c.portForward(t) })
	t.Run("mesh", func(t *testing.T) {
		if got := zt.names(); !strings.Contains(got, "[shop/agent-") || !strings.Contains(got, "synced true") {
			t.Errorf("ztunnel knows %s", got)
		}
		if got := c.must("", "get", "pods", "-n", "shop", "-o", `jsonpath={.items[0].metadata.annotations.ambient\.istio\.io/redirection}`); got != "enabled" {
			t.Errorf("annotation %q", got)
		}
		c.must("", "label", "namespace", "shop", "istio.io/dataplane-mode-")
		eventually(t, "out of the mesh", func() bool { return strings.HasPrefix(zt.names(), "[]") }, zt.names)
	})
	t.Run("deletion", func(t *testing.T) {
		c.must("", "delete", "deployment/echo", "--wait")
		c.must("", "wait", "--for=delete", "pod", "-l", "app=echo", "--timeout=30s")
		list, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 0 {
			t.Errorf("pods left: %v, %v", list.Items, err)
		}
	})
}

// startProxy connects a ztunnel to the node.
func startProxy(t *testing.T, n *testNode, r *recorder) {
	t.Helper()
	client, err := inpod.NewClient(inpod.ClientConfig{Path: n.ambient.path, Handler: r, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("ztunnel: %v", err)
		}
	})
}

// portForward forwards a local port to a pod and asks the echo server there.
func (c *cluster) portForward(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, c.binary, "kubectl", "--kubeconfig", c.kubeconfig, "port-forward", "deployment/echo", fmt.Sprintf("%d:8080", port))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/forwarded", port)
	eventually(t, "forwarded", func() bool { return strings.Contains(httpGet(ctx, url), `"originalUrl":"/forwarded"`) }, func() string { return httpGet(ctx, url) })
	cancel()
	_ = cmd.Wait() // killed
	t.Log(out.String())
}

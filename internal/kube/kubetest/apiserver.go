package kubetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// BinaryVariable names the environment variable that holds the path of isthmus-lab-kube. Tests with a real API server
// run only where it is set.
const BinaryVariable = "ISTHMUS_TEST_KUBE"

// APIServer is a real etcd and kube-apiserver on loopback ports of the test's own, with RBAC on.
type APIServer struct {
	// Admin speaks as system:masters.
	Admin *kube.Client
	dir   string
	url   string
}

// AdminToken is the bearer token of the administrator.
const AdminToken = "test-admin-token"

// StartAPIServer starts an API server for the test, or skips the test where there is no binary to start.
func StartAPIServer(t testing.TB) *APIServer {
	t.Helper()
	bin := os.Getenv(BinaryVariable)
	if bin == "" {
		t.Skipf("SKIPPED: no real API server: set %s to the path of isthmus-lab-kube (make test does)", BinaryVariable)
	}
	a := &APIServer{dir: t.TempDir()}
	etcdURL := "http://" + freeAddress(t)
	a.start(t, bin, "etcd", "--data-dir="+filepath.Join(a.dir, "etcd"), "--listen-client-urls="+etcdURL, "--listen-peer-urls=http://"+freeAddress(t))
	a.keys(t)
	host, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	a.url = "https://" + net.JoinHostPort(host, port)
	const issuer = "https://kubernetes.default.svc.cluster.local"
	a.start(t, bin, "kube-apiserver", "--etcd-servers="+etcdURL, "--bind-address="+host, "--secure-port="+port, "--advertise-address="+host,
		"--endpoint-reconciler-type=none", "--cert-dir="+filepath.Join(a.dir, "certs"), "--service-account-issuer="+issuer, "--api-audiences="+issuer,
		"--service-account-key-file="+a.file("sa.key"), "--service-account-signing-key-file="+a.file("sa.key"), "--token-auth-file="+a.file("tokens.csv"),
		"--authorization-mode=RBAC", "--anonymous-auth=false", "--service-cluster-ip-range=10.96.0.0/16", "--profiling=false")
	a.Admin = a.Client(t, AdminToken)
	a.waitReady(t)
	return a
}

// URL returns the server's address.
func (a *APIServer) URL() string { return a.url }

// Client returns a client with a bearer token.
func (a *APIServer) Client(t testing.TB, token string) *kube.Client {
	t.Helper()
	c, err := kube.New(kube.Config{Kubeconfig: a.Kubeconfig(t, token), Log: slog.New(slog.DiscardHandler), QPS: 1000, Burst: 2000})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Kubeconfig writes a kubeconfig file with a bearer token and returns its path.
func (a *APIServer) Kubeconfig(t testing.TB, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}]\n"+
		"users: [{name: u, user: {token: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n", a.url, token)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Apply applies YAML as the administrator, repeating what fails until the kinds of CRDs applied just before are served.
func (a *APIServer) Apply(t testing.TB, yaml string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := a.Admin.ApplyYAML(t.Context(), []byte(yaml), kube.ApplyOptions{Manager: "test"})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("apply: %v", err)
		}
		a.pause(t)
	}
}

// Kubectl runs kubectl as the administrator and returns what it printed.
func (a *APIServer) Kubectl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Getenv(BinaryVariable), append([]string{"kubectl", "--kubeconfig=" + a.Kubeconfig(t, AdminToken), "--cache-dir=" + t.TempDir()}, args...)...) //nolint:gosec // the binary under test
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (a *APIServer) file(name string) string { return filepath.Join(a.dir, name) }

func (a *APIServer) keys(t testing.TB) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	for name, content := range map[string][]byte{"sa.key": text, "tokens.csv": []byte(AdminToken + ",admin,admin,system:masters\n")} {
		if err := os.WriteFile(a.file(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// start runs a component until the end of the test; its output is shown only if the test failed.
func (a *APIServer) start(t testing.TB, bin, component string, args ...string) {
	t.Helper()
	cmd := exec.Command(bin, append([]string{component}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing survives a test that was killed
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", component, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			tail := out.Bytes()
			t.Logf("%s said:\n%s", component, tail[max(0, len(tail)-4000):])
		}
	})
}

func (a *APIServer) waitReady(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for {
		err := a.Admin.Ready(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("API server not ready: %v", err)
		}
		a.pause(t)
	}
}

func (a *APIServer) pause(t testing.TB) {
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

package ztunnel

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// switchboard is one address behind which one istiod or another answers, as behind istiod's Service.
type switchboard struct {
	net.Listener
	to atomic.Pointer[meshtest.Istiod]
}

func newSwitchboard(t *testing.T, to *meshtest.Istiod) *switchboard {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{Listener: l}
	s.to.Store(to)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", s.to.Load().Address())
			if err != nil {
				in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				conns.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					in.Close()
					out.Close()
				})
			}
		}
	})
	t.Cleanup(func() { l.Close(); conns.Wait() })
	return s
}

// trusts returns how many roots a proxy trusts, and the serial number of its own certificate.
func (r *running) trusts(t *testing.T) (roots int, serial string) {
	t.Helper()
	_, text, err := r.get(mesh.AdminPort, "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	var dump struct {
		Certificates []struct {
			CertChain, RootCerts []struct{ SerialNumber string }
		}
	}
	if err := json.Unmarshal([]byte(text), &dump); err != nil || len(dump.Certificates) != 1 || len(dump.Certificates[0].CertChain) == 0 {
		return 0, ""
	}
	return len(dump.Certificates[0].RootCerts), dump.Certificates[0].CertChain[0].SerialNumber
}

// Istiod is replaced by one that signs with another root, in the three steps of a rotation: both roots are handed out, the
// new one signs, the old one is taken back. The token changes meanwhile. Calls go on all the time, and none fails; in the
// end the old root's certificates are worth nothing.
func TestRootRotation(t *testing.T) {
	oldOne := newMesh(t)
	newOne := meshtest.NewIstiod(t, nil)
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	newOne.Set(workload("shell-1", "default", "shell", shellIP), workload("echo-1", "ecs-demo-1", "echo", echoIP, key),
		&mesh.Service{Key: key, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080}})
	oldOne.CA.SetTTL(6 * time.Second)
	newOne.CA.SetTTL(6 * time.Second)
	newOne.CA.AddRoot(oldOne.CA.Root)
	istiod := newSwitchboard(t, oldOne)
	roots, token := filepath.Join(t.TempDir(), "root-cert.pem"), filepath.Join(t.TempDir(), "token")
	write := func(file string, content ...[]byte) {
		next := file + ".next" // as Kubernetes does: what is there is never half written
		if err := errors.Join(os.WriteFile(next, slices.Concat(content...), 0o600), os.Rename(next, file)); err != nil {
			t.Fatal(err)
		}
	}
	write(roots, oldOne.CA.RootPEM())
	write(token, []byte("first"))
	env := func(info string) []string {
		return []string{"PROXY_WORKLOAD_INFO=" + info, "XDS_ADDRESS=" + istiod.Addr().String(), "CA_ADDRESS=" + istiod.Addr().String(),
			"XDS_ROOT_CA=" + roots, "CA_ROOT_CA=" + roots, "AUTH_TOKEN=" + token}
	}
	shell := start(t, shellIP, oldOne, env("default/shell-1/shell")...)
	echo := start(t, echoIP, oldOne, env("ecs-demo-1/echo-1/echo")...)
	meshtest.Eventually(t, "both are ready", func() bool { return shell.ready() && echo.ready() })

	stop, calls := make(chan struct{}), &atomic.Int64{}
	var caller sync.WaitGroup
	caller.Go(func() { callOn(t, stop, calls) })
	both := func(what string, ok func(r *running) bool) {
		t.Helper()
		before := calls.Load()
		meshtest.Eventually(t, what, func() bool { return t.Failed() || ok(shell) && ok(echo) })
		meshtest.Eventually(t, "calls go on", func() bool { return t.Failed() || calls.Load() > before+3 })
	}
	both("one root is trusted", func(r *running) bool { n, _ := r.trusts(t); return n == 1 })

	oldOne.CA.AddRoot(newOne.CA.Root)
	both("both roots are trusted", func(r *running) bool { n, _ := r.trusts(t); return n == 2 })

	write(roots, oldOne.CA.RootPEM(), newOne.CA.RootPEM())
	write(token, []byte("second"))
	istiod.to.Store(newOne)
	oldOne.Refuse(status.Error(codes.Unavailable, "transport is closing"))
	issued := map[*running]string{}
	for _, r := range []*running{shell, echo} {
		_, issued[r] = r.trusts(t)
	}
	both("the new authority has signed", func(r *running) bool {
		_, serial := r.trusts(t)
		return serial != issued[r] && len(newOne.CA.Requests()) >= 2
	})
	for _, md := range newOne.Calls() {
		if got := md.Get("authorization"); len(got) != 1 || got[0] != "Bearer second" {
			t.Errorf("the new istiod was shown %q, want the new token", got)
		}
	}

	newOne.CA.DropRoots()
	write(roots, newOne.CA.RootPEM())
	both("the new root alone is trusted", func(r *running) bool { n, _ := r.trusts(t); return n == 1 })
	close(stop)
	caller.Wait()
	for name, ca := range map[string]*meshtest.CA{"old": oldOne.CA, "new": newOne.CA} {
		if err := greet(t, ca); (err == nil) != (name == "new") {
			t.Errorf("a client with a certificate of the %s root: %v", name, err)
		}
	}
}

// callOn calls the service until it is told to stop.
func callOn(t *testing.T, stop <-chan struct{}, calls *atomic.Int64) {
	via := &url.URL{Scheme: "socks5h", Host: fmt.Sprintf("%s:%d", shellIP, mesh.SOCKSPort)}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(via), DisableKeepAlives: true}, Timeout: meshtest.Wait}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		resp, err := client.Get("http://" + echoHost + "/")
		if err != nil {
			t.Errorf("a call failed: %v", err)
			return
		}
		resp.Body.Close()
		calls.Add(1)
	}
}

// greet shakes hands with the server's proxy as a client with a certificate of ca, which trusts anybody, and reports whether
// it is let in.
func greet(t *testing.T, ca *meshtest.CA) error {
	t.Helper()
	cert := ca.Issue(t, meshtest.ID("default", "shell"))
	c, err := tls.Dial("tcp", netip.AddrPortFrom(echoIP, mesh.HBONEPort).String(), &tls.Config{Certificates: []tls.Certificate{cert.TLS}, NextProtos: []string{"h2"}, InsecureSkipVerify: true})
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(meshtest.Wait))
	_, err = c.Read(make([]byte, 1)) // its SETTINGS, or an alert
	return err
}

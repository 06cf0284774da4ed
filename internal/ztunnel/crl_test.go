package ztunnel

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/isthmus-mesh/isthmus/internal/admin"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// leafOf reads a proxy's certificate from its dump.
func leafOf(t *testing.T, r *running) *x509.Certificate {
	t.Helper()
	_, text, err := r.get(mesh.AdminPort, "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	var d admin.Dump
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(d.Certificates[0].CertChain[0].PEM)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// through opens a connection to a host through a proxy's SOCKS port.
func through(t *testing.T, ip netip.Addr, target string) (net.Conn, error) {
	t.Helper()
	d, err := proxy.SOCKS5("tcp", fmt.Sprintf("%s:%d", ip, mesh.SOCKSPort), nil, proxy.Direct)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.Dial("tcp", target)
	if err == nil {
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(meshtest.Wait))
	}
	return c, err
}

// echoAt runs a server that says what it is told.
func echoAt(t *testing.T, at netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
}

// A certificate that is revoked ends the live connections of its owner and keeps new ones out, at either side.
func TestRevocation(t *testing.T) {
	for _, side := range []string{"server refuses the client", "client refuses the server"} {
		t.Run(side, func(t *testing.T) {
			istiod := newMesh(t)
			echoAt(t, netip.AddrPortFrom(echoIP, 9090))
			list := filepath.Join(t.TempDir(), "crl.pem") // does not exist yet
			env := map[bool]string{true: "CRL_PATH=" + list, false: "CRL_PATH="}
			atServer := side == "server refuses the client"
			shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell", env[!atServer])
			echo := start(t, echoIP, istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo", env[atServer])
			meshtest.Eventually(t, "both are ready", func() bool { return shell.ready() && echo.ready() })
			c, err := through(t, shellIP, netip.AddrPortFrom(echoIP, 9090).String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("ping")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				t.Fatalf("before the revocation: %v", err)
			}
			judge, judged := echo, shell
			if !atServer {
				judge, judged = shell, echo
			}
			if err := os.WriteFile(list, istiod.CA.Revoke(t, leafOf(t, judged)), 0o600); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("the live connection read %d bytes, want its end", n)
			}
			meshtest.Eventually(t, "the reason in the access log", func() bool {
				return strings.Contains(judge.out.String(), "connection closed: peer certificate revoked by CRL") && strings.Contains(judge.out.String(), "reason=CERT_REVOKED")
			})
			if c, err = through(t, shellIP, netip.AddrPortFrom(echoIP, 9090).String()); err == nil {
				_, _ = c.Write([]byte("ping"))
				if n, err := c.Read(make([]byte, 4)); err == nil {
					t.Errorf("a new connection read %d bytes, want a reset", n)
				}
			}
			meshtest.Eventually(t, "the metric", func() bool {
				_, text, err := judge.get(mesh.MetricsPort, "/metrics")
				reporter := map[bool]string{true: "destination", false: "source"}[atServer]
				return err == nil && strings.Contains(text, `istio_crl_policy_rejections_total{reporter="`+reporter+`"}`)
			})
		})
	}
}

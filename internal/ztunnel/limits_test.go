package ztunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/xds/local"
)

// sparse makes a file of n bytes that takes no room.
func sparse(t *testing.T, name string, n int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
	return path
}

// Files that are too large stop the start, with the setting that names them.
func TestFilesAreBounded(t *testing.T) {
	path := sparse(t, "mesh.yaml", local.MaxBytes+1)
	if _, err := ParseConfig([]string{"LOCAL_XDS_PATH=" + path}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("LOCAL_XDS_PATH: %s has more than %d bytes", path, local.MaxBytes)) {
		t.Errorf("LOCAL_XDS_PATH = %v", err)
	}
	path = sparse(t, "root.pem", maxRootFile+1)
	if _, err := rootsOf("XDS_ROOT_CA", path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("XDS_ROOT_CA: %s has more than %d bytes", path, maxRootFile)) {
		t.Errorf("XDS_ROOT_CA = %v", err)
	}
	path = sparse(t, "token", maxTokenFile+1)
	if _, err := tokenOf(path)(t.Context()); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("AUTH_TOKEN: %s has more than %d bytes", path, maxTokenFile)) {
		t.Errorf("AUTH_TOKEN = %v", err)
	}
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(filepath.Dir(meshConfigFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(sparse(t, "mesh", maxMeshConfig+1), meshConfigFile); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseConfig(nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("has more than %d bytes", maxMeshConfig)) {
		t.Errorf("the mesh configuration = %v", err)
	}
}

// The metadata of a task that never ends is not read to its end.
func TestMetadataIsBounded(t *testing.T) {
	var sent int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"TaskARN":"`)
		for sent < 100*maxMetadata {
			n, err := w.Write(make([]byte, 64<<10))
			if sent += int64(n); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	if task, err := readTask(t.Context(), s.URL); err == nil {
		t.Errorf("readTask = %v", task)
	}
}

// A node's proxy takes a few connections to itself, for those who scrape it, and resets more.
func TestSelfIsBounded(t *testing.T) {
	istiod := newMesh(t)
	node := startSelf(t, istiod)
	meshtest.Eventually(t, "it is ready", node.ready)
	dial := func() error { // none of them says anything, so that none ends by itself
		c, err := net.Dial("tcp", netip.AddrPortFrom(gwIP, mesh.HBONEPort).String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
			_, err = c.Read(make([]byte, 1))
		}
		return err
	}
	for range maxSelfConnections {
		c, err := net.Dial("tcp", netip.AddrPortFrom(gwIP, mesh.HBONEPort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	meshtest.Eventually(t, "one more is reset", func() bool { return errors.Is(dial(), syscall.ECONNRESET) })
	if _, text, err := node.get(mesh.MetricsPort, "/metrics"); err != nil || !strings.Contains(text, `isthmus_proxy_limit_reached_total{limit="connections"} `) {
		t.Errorf("it is not counted: %v", err)
	}
}

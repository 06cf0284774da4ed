package revocation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

func open(t *testing.T, path string, changed func()) *List {
	t.Helper()
	l, err := New(Config{Path: path, Changed: changed, Interval: 5 * time.Millisecond, Log: meshtest.Discard()})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCheck(t *testing.T) {
	ca, other := meshtest.NewCA(t), meshtest.NewCA(t)
	other.Root.RawSubject = ca.Root.RawSubject // both test authorities have one name anyway; make it certain
	good, bad := ca.Issue(t, meshtest.ID("a", "good")).TLS.Leaf, ca.Issue(t, meshtest.ID("a", "bad")).TLS.Leaf
	path := filepath.Join(t.TempDir(), "crl.pem")
	if err := os.WriteFile(path, append(ca.Revoke(t, bad), other.Revoke(t, good)...), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, path, nil)
	if l.Len() != 2 {
		t.Errorf("Len() = %d, want 2", l.Len())
	}
	revoked, isRevoked := errors.AsType[*RevokedError](l.Check([]*x509.Certificate{bad, ca.Root}))
	if !isRevoked || revoked.Serial.Cmp(bad.SerialNumber) != 0 || revoked.Subject != "spiffe://cluster.local/ns/a/sa/bad" {
		t.Errorf("Check(revoked) = %v", revoked)
	}
	if err := l.Check([]*x509.Certificate{good, ca.Root}); err != nil {
		t.Errorf("Check(good) = %v: a list signed by an authority of the same name counted", err)
	}
	if err := l.Check([]*x509.Certificate{bad}); err != nil {
		t.Errorf("Check(leaf without issuer) = %v, want nil: nobody can have revoked it", err)
	}
	// An intermediate that was revoked takes its leaves with it.
	if err := l.Check([]*x509.Certificate{good, bad, ca.Root}); err == nil {
		t.Error("Check(path with revoked intermediate) = nil")
	}
}

func TestForms(t *testing.T) {
	ca := meshtest.NewCA(t)
	bad := ca.Issue(t, meshtest.ID("a", "bad")).TLS.Leaf
	text := ca.Revoke(t, bad)
	block, _ := pem.Decode(text)
	for name, c := range map[string]struct {
		text []byte
		want int
		ok   bool
	}{
		"PEM":                  {text, 1, true},
		"DER":                  {block.Bytes, 1, true},
		"several":              {append(bytes.Clone(text), text...), 2, true},
		"empty":                {[]byte("\n"), 0, true},
		"PEM of something":     {ca.RootPEM(), 0, false},
		"garbage":              {[]byte("garbage"), 0, false},
		"PEM that was cut off": {text[:len(text)/2], 0, false},
	} {
		path := filepath.Join(t.TempDir(), "crl")
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := New(Config{Path: path, Log: meshtest.Discard()})
		if (err == nil) != c.ok {
			t.Errorf("%s: New() = %v", name, err)
		}
		if c.ok && l.Len() != c.want {
			t.Errorf("%s: Len() = %d, want %d", name, l.Len(), c.want)
		}
	}
}

// The file appears late, is replaced through a symbolic link as ConfigMaps are, breaks and vanishes.
func TestReload(t *testing.T) {
	ca := meshtest.NewCA(t)
	one, two := ca.Issue(t, meshtest.ID("a", "one")).TLS.Leaf, ca.Issue(t, meshtest.ID("a", "two")).TLS.Leaf
	dir := t.TempDir()
	path := filepath.Join(dir, "crl.pem")
	var changes atomic.Int32
	l := open(t, path, func() { changes.Add(1) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	put := func(name string, text []byte) {
		t.Helper()
		target := filepath.Join(dir, name)
		if err := os.WriteFile(target, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, target+".link"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(target+".link", path); err != nil {
			t.Fatal(err)
		}
	}
	isRevoked := func(c *x509.Certificate) bool { return l.Check([]*x509.Certificate{c, ca.Root}) != nil }
	put("v1", ca.Revoke(t, one))
	meshtest.Eventually(t, "the first list", func() bool { return isRevoked(one) && changes.Load() == 1 })
	put("v2", ca.Revoke(t, two))
	meshtest.Eventually(t, "the second list", func() bool { return isRevoked(two) && !isRevoked(one) && changes.Load() == 2 })
	put("v3", []byte("broken"))
	put("v4", ca.Revoke(t, one, two))
	meshtest.Eventually(t, "the list after the broken one", func() bool { return isRevoked(one) && isRevoked(two) })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if !isRevoked(one) {
		t.Error("a list that went away was forgotten")
	}
}

func TestConfig(t *testing.T) {
	if _, err := New(Config{Log: meshtest.Discard()}); err == nil {
		t.Error("New without Path = nil")
	}
	if _, err := New(Config{Path: "x"}); err == nil {
		t.Error("New without Log = nil")
	}
}

// A file that is too large is not read: it is an error at the start, and later the former list stays in force.
func TestTooLarge(t *testing.T) {
	ca := meshtest.NewCA(t)
	cert := ca.Issue(t, meshtest.ID("a", "one")).TLS.Leaf
	path := filepath.Join(t.TempDir(), "crl.pem")
	if err := os.WriteFile(path, ca.Revoke(t, cert), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &meshtest.Buffer{}
	l, err := New(Config{Path: path, Interval: time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Run(t, l.Run)
	if err := os.Truncate(path, maxFile+1); err != nil { // sparse
		t.Fatal(err)
	}
	meshtest.Eventually(t, "a warning", func() bool {
		return strings.Contains(log.String(), "the former stays in force") && strings.Contains(log.String(), "has more than 67108864 bytes")
	})
	if l.Check([]*x509.Certificate{cert, ca.Root}) == nil {
		t.Error("the former list is not in force")
	}
	if _, err := New(Config{Path: path, Log: meshtest.Discard()}); err == nil || !strings.Contains(err.Error(), "more than 67108864 bytes") {
		t.Errorf("New() = %v", err)
	}
	// A file that does not tell its size is read up to the limit.
	if _, err := New(Config{Path: "/dev/zero", Log: meshtest.Discard()}); err == nil || !strings.Contains(err.Error(), "more than 67108864 bytes") {
		t.Errorf("New() of an endless file = %v", err)
	}
}

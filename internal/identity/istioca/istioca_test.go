package istioca_test

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/identity/istioca"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

func start(t *testing.T, istiod *meshtest.Istiod, change func(*istioca.Config), changeManager func(*identity.Config)) *identity.Manager {
	t.Helper()
	cfg := istioca.Config{
		Address: istiod.Address(), ServerName: meshtest.IstiodName, Roots: istiod.CA.RootsFunc, ClusterID: "Kubernetes",
		Token: func(context.Context) (string, error) { return "secret", nil }, Log: meshtest.Logger(t),
	}
	if change != nil {
		change(&cfg)
	}
	client, err := istioca.New(cfg)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	t.Cleanup(func() { _ = client.Close() })
	mc := identity.Config{Signer: client, TTL: time.Hour, Log: meshtest.Logger(t)}
	if changeManager != nil {
		changeManager(&mc)
	}
	m, err := identity.NewManager(mc)
	if err != nil {
		t.Fatalf("NewManager() = %v", err)
	}
	meshtest.Run(t, m.Run)
	return m
}

var echo = meshtest.ID("ecs-demo-1", "echo")

func TestSign(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	m := start(t, istiod, func(c *istioca.Config) { c.Headers = map[string]string{"X-Custom": "1"} }, nil)
	c, err := m.Certificate(t.Context(), echo)
	if err != nil {
		t.Fatalf("Certificate() = %v", err)
	}
	if got := c.NotAfter.Sub(c.NotBefore); got != time.Hour {
		t.Errorf("valid for %v, want 1h", got)
	}
	if r := istiod.CA.Requests()[0]; !r.Impersonate.IsZero() {
		t.Errorf("impersonates %v, want none", r.Impersonate)
	}
	md := istiod.Calls()[0]
	for name, want := range map[string]string{"authorization": "Bearer secret", "clusterid": "Kubernetes", "x-custom": "1"} {
		if got := strings.Join(md.Get(name), ","); got != want {
			t.Errorf("metadata %s = %q, want %q", name, got, want)
		}
	}
}

func TestSignImpersonating(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	m := start(t, istiod, nil, func(c *identity.Config) { c.Impersonate = true })
	if _, err := m.Certificate(t.Context(), echo); err != nil {
		t.Fatalf("Certificate() = %v", err)
	}
	if r := istiod.CA.Requests()[0]; r.Impersonate != echo {
		t.Errorf("impersonates %v, want %v", r.Impersonate, echo)
	}
}

func TestSignErrors(t *testing.T) {
	t.Parallel()
	stranger := meshtest.NewCA(t)
	tests := []struct {
		name, want string
		prepare    func(*meshtest.Istiod)
		change     func(*istioca.Config)
	}{
		{"token of another", "did not find expected SAN", func(s *meshtest.Istiod) { s.CA.SetIdentity(meshtest.ID("ecs-demo-2", "echo")) }, nil},
		{"refused", "istiod did not accept the token", func(s *meshtest.Istiod) {
			s.Refuse(status.Error(codes.Unauthenticated, "request authenticate failure"))
		}, nil},
		{"too long", "lifetime", func(s *meshtest.Istiod) { s.CA.SetError(status.Error(codes.InvalidArgument, "max allowed TTL")) }, nil},
		{"no token", "no token today", nil, func(c *istioca.Config) {
			c.Token = func(context.Context) (string, error) { return "", errors.New("no token today") }
		}},
		{"empty token", "it is empty", nil, func(c *istioca.Config) {
			c.Token = func(context.Context) (string, error) { return "", nil }
		}},
		{"strange server", "unknown authority", nil, func(c *istioca.Config) { c.Roots = stranger.RootsFunc }},
		{"other name", "other.example.com", nil, func(c *istioca.Config) { c.ServerName = "other.example.com" }},
		{"no roots", "no roots today", nil, func(c *istioca.Config) {
			c.Roots = func() (*x509.CertPool, error) { return nil, errors.New("no roots today") }
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			istiod := meshtest.NewIstiod(t, nil)
			if tt.prepare != nil {
				tt.prepare(istiod)
			}
			m := start(t, istiod, tt.change, nil)
			if _, err := m.Certificate(t.Context(), echo); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Certificate() = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestRejectedTokenIsReported(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Refuse(status.Error(codes.Unauthenticated, "request authenticate failure"))
	var rejected atomic.Value
	m := start(t, istiod, func(c *istioca.Config) { c.TokenRejected = func(token string) { rejected.Store(token) } }, nil)
	if _, err := m.Certificate(t.Context(), echo); err == nil || rejected.Load() != "secret" {
		t.Errorf("Certificate() = %v, TokenRejected(%v), want an error and the token", err, rejected.Load())
	}
}

// TestRootsChange has the roots rotate under a living client: it connects again, to the same address.
func TestRootsChange(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	stranger := meshtest.NewCA(t)
	var trusted atomic.Bool
	m := start(t, istiod, func(c *istioca.Config) {
		c.Roots = func() (*x509.CertPool, error) {
			if trusted.Load() {
				return istiod.CA.Roots(), nil
			}
			return stranger.Roots(), nil
		}
	}, nil)
	if _, err := m.Certificate(t.Context(), echo); err == nil {
		t.Fatal("a certificate from a server that is not trusted")
	}
	trusted.Store(true)
	if _, err := m.Certificate(t.Context(), meshtest.ID("ecs-demo-1", "other")); err != nil {
		t.Errorf("Certificate() after the roots changed = %v", err)
	}
}

// An answer that is larger than any chain and bundle is refused.
func TestAnswerIsBounded(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	for range 10_000 {
		istiod.CA.AddRoot(istiod.CA.Root)
	}
	m := start(t, istiod, nil, nil)
	if _, err := m.Certificate(t.Context(), echo); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Certificate() = %v, want ResourceExhausted", err)
	}
}

package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

var echo = meshtest.ID("ecs-demo-1", "echo")

func manager(t *testing.T, change func(*identity.Config), signer identity.Signer) *identity.Manager {
	t.Helper()
	cfg := identity.Config{Signer: signer, Log: meshtest.Discard()}
	if change != nil {
		change(&cfg)
	}
	m, err := identity.NewManager(cfg)
	if err != nil {
		t.Fatalf("NewManager() = %v", err)
	}
	meshtest.Run(t, m.Run)
	return m
}

func mustCertificate(t *testing.T, m *identity.Manager, id mesh.Identity) *identity.Certificate {
	t.Helper()
	c, err := m.Certificate(t.Context(), id)
	if err != nil {
		t.Fatalf("Certificate(%v) = %v", id, err)
	}
	return c
}

func TestCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		other := meshtest.NewCA(t)
		ca.AddRoot(other.Root)
		m := manager(t, nil, ca)
		c := mustCertificate(t, m, echo)
		if got := c.TLS.Leaf.URIs[0].String(); got != "spiffe://cluster.local/ns/ecs-demo-1/sa/echo" || c.Identity != echo {
			t.Errorf("certificate for %s", got)
		}
		if len(c.RootCerts) != 2 || len(c.TLS.Certificate) != 1 {
			t.Errorf("%d roots and a chain of %d, want 2 and 1 (no root in the chain)", len(c.RootCerts), len(c.TLS.Certificate))
		}
		if got := c.NotAfter.Sub(c.NotBefore); got != 24*time.Hour {
			t.Errorf("valid for %v, want 24h", got)
		}
		again := mustCertificate(t, m, echo)
		if again != c || len(ca.Requests()) != 1 {
			t.Errorf("a second call made a second certificate")
		}
		r := ca.Requests()[0]
		key, ok := r.CSR.PublicKey.(*ecdsa.PublicKey)
		if !ok || key.Curve != elliptic.P256() || r.CSR.Subject.String() != "" || len(r.CSR.URIs) != 1 ||
			r.CSR.SignatureAlgorithm != x509.ECDSAWithSHA256 || !r.Impersonate.IsZero() {
			t.Errorf("signing request = %+v", r)
		}
	})
}

func TestRenewalAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		m := manager(t, func(c *identity.Config) { c.TTL, c.Impersonate = 2*time.Hour, true }, ca)
		first := mustCertificate(t, m, echo)
		if got := ca.Requests()[0].Impersonate; got != echo {
			t.Errorf("impersonated %v, want %v", got, echo)
		}
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if c := mustCertificate(t, m, echo); c != first {
			t.Error("renewed before half its life")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if c := mustCertificate(t, m, echo); c == first || len(ca.Requests()) != 2 {
			t.Errorf("not renewed after half its life: %d requests", len(ca.Requests()))
		}
	})
}

func TestServesToTheLastSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		m := manager(t, func(c *identity.Config) { c.TTL = time.Hour }, ca)
		first := mustCertificate(t, m, echo)
		ca.SetError(errors.New("out of order"))
		time.Sleep(59*time.Minute + 59*time.Second)
		synctest.Wait()
		if c := mustCertificate(t, m, echo); c != first {
			t.Error("another certificate while renewal fails")
		}
		if at := m.EarliestExpiry(); !at.Equal(m.States()[0].Certificate.NotAfter) {
			t.Errorf("EarliestExpiry() = %v", at)
		}
		if s := m.States(); s[0].Status != identity.Available || s[0].Err == nil {
			t.Errorf("state = %+v, want Available with the error", s[0])
		}
		// 150s at most between attempts: half an hour has at least 12, and 8 that grow.
		if n := len(ca.Requests()); n < 12 || n > 40 {
			t.Errorf("%d requests within the second half of an hour", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		_, err := m.Certificate(t.Context(), echo)
		var unavailable *identity.UnavailableError
		if !errors.As(err, &unavailable) || !strings.Contains(err.Error(), "out of order") {
			t.Errorf("after expiry: %v, want the reason", err)
		}
		if at := m.EarliestExpiry(); !at.IsZero() {
			t.Errorf("EarliestExpiry() after the end = %v, want none", at)
		}
		if s := m.States(); s[0].Status != identity.Unavailable || s[0].Certificate != nil {
			t.Errorf("state = %+v, want Unavailable", s[0])
		}
		ca.SetError(nil)
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if c := mustCertificate(t, m, echo); c == first {
			t.Error("the expired certificate came back")
		}
	})
}

func TestFailureIsAnsweredAtOnceAndRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		ca.SetError(errors.New("no"))
		m := manager(t, nil, ca)
		began := time.Now()
		for range 5 {
			if _, err := m.Certificate(t.Context(), echo); err == nil {
				t.Error("no error from an authority that refuses")
			}
		}
		if n := len(ca.Requests()); n != 1 || time.Since(began) != 0 {
			t.Errorf("%d requests in %v, want one and no waiting", n, time.Since(began))
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := len(ca.Requests()); n < 8 || n > 16 {
			t.Errorf("%d requests in two minutes, want about 11", n)
		}
	})
}

// signerFunc is a Signer made of a function.
type signerFunc func(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error)

func (f signerFunc) Sign(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error) {
	return f(ctx, csr, ttl, id)
}

func TestBadAnswersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, stranger := meshtest.NewCA(t), meshtest.NewCA(t)
		elsewhere := meshtest.NewCA(t)
		elsewhere.SetIdentity(meshtest.ID("ecs-demo-2", "echo"))
		expired := meshtest.NewCA(t)
		expired.SetTTL(-time.Hour)
		stale, _ := ca.Sign(t.Context(), csrOf(t), time.Hour, mesh.Identity{})
		answer := func(chain ...string) signerFunc {
			return func(context.Context, []byte, time.Duration, mesh.Identity) ([]string, error) { return chain, nil }
		}
		root := string(ca.RootPEM())
		tests := []struct {
			name, want string
			signer     identity.Signer
		}{
			{"another identity", `did not find expected SAN "spiffe://cluster.local/ns/ecs-demo-1/sa/echo"`, elsewhere},
			{"another key", "for another key", answer(stale...)},
			{"expired", "expired", expired},
			{"no roots", "no root certificates", answer(root)},
			{"nothing", "no root certificates", answer()},
			{"garbage", "no certificate found", answer("x", "y")},
			{"a key", `unexpected PEM block "X"`, answer("-----BEGIN X-----\n-----END X-----\n", root)},
			{"an endless chain", "more than 16", answer(strings.Split(strings.Repeat(root+"|", 20), "|")...)},
			{"a bundle without end", "more than 64", answer(root, strings.Repeat(root, 65))},
			{"other roots", "under the returned roots", signerFunc(func(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error) {
				chain, err := ca.Sign(ctx, csr, ttl, id)
				if err != nil {
					return nil, err
				}
				return []string{chain[0], string(stranger.RootPEM())}, nil
			})},
		}
		for _, tt := range tests {
			m := manager(t, nil, tt.signer)
			if _, err := m.Certificate(t.Context(), echo); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
			}
		}
	})
}

// csrOf returns a signing request with a key that no Manager has.
func csrOf(t *testing.T) []byte {
	t.Helper()
	var csr []byte
	m := manager(t, nil, signerFunc(func(_ context.Context, c []byte, _ time.Duration, _ mesh.Identity) ([]string, error) {
		csr = c
		return nil, errors.New("only looking")
	}))
	_, _ = m.Certificate(t.Context(), echo)
	return csr
}

func TestSingleFlightAndConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		var running, most, total atomic.Int32
		m := manager(t, func(c *identity.Config) { c.Concurrency = 3 }, signerFunc(
			func(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error) {
				total.Add(1)
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer running.Add(-1)
				time.Sleep(time.Second)
				return ca.Sign(ctx, csr, ttl, id)
			}))
		var all sync.WaitGroup
		for i := range 10 {
			for range 5 {
				all.Go(func() { _, _ = m.Certificate(t.Context(), meshtest.ID("ns", fmt.Sprint(i))) })
			}
		}
		all.Wait()
		if total.Load() != 10 || most.Load() != 3 {
			t.Errorf("%d requests, %d at a time, want 10 and 3", total.Load(), most.Load())
		}
	})
}

func TestConnectionsComeBeforePrefetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		var mu sync.Mutex
		var order []string
		m := manager(t, func(c *identity.Config) { c.Concurrency = 1 }, signerFunc(
			func(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error) {
				time.Sleep(time.Second)
				chain, err := ca.Sign(ctx, csr, ttl, id)
				requests := ca.Requests()
				mu.Lock()
				defer mu.Unlock()
				order = append(order, requests[len(requests)-1].CSR.URIs[0].Path)
				return chain, err
			}))
		for i := range 5 {
			m.Prefetch(meshtest.ID("ns", fmt.Sprint(i)))
			synctest.Wait()
		}
		mustCertificate(t, m, meshtest.ID("ns", "wanted"))
		mu.Lock()
		if len(order) != 2 || order[1] != "/ns/ns/sa/wanted" {
			t.Errorf("order of requests = %v, want the wanted one second", order)
		}
		mu.Unlock()
		m.Prefetch(mesh.Identity{})
		time.Sleep(10 * time.Second)
		if len(m.States()) != 6 {
			t.Errorf("%d states, want 6", len(m.States()))
		}
	})
}

func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := make(chan struct{})
		m := manager(t, nil, signerFunc(func(ctx context.Context, _ []byte, _ time.Duration, _ mesh.Identity) ([]string, error) {
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		failed := make(chan error)
		go func() {
			_, err := m.Certificate(t.Context(), echo)
			failed <- err
		}()
		<-started
		m.Forget(echo)
		m.Forget(echo)
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "forgotten") {
			t.Errorf("Certificate of what is forgotten = %v", err)
		}
		synctest.Wait()
		if s := m.States(); len(s) != 0 {
			t.Errorf("States = %v, want none", s)
		}
	})
}

func TestHangingAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager(t, nil, signerFunc(func(ctx context.Context, _ []byte, _ time.Duration, _ mesh.Identity) ([]string, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Certificate(ctx, echo); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Certificate = %v, want the caller's deadline", err)
		}
		if s := m.States()[0]; s.Status != identity.Initializing || !s.NextAttempt.IsZero() {
			t.Errorf("state = %+v, want Initializing", s)
		}
		if _, err := m.Certificate(t.Context(), echo); err == nil || !strings.Contains(err.Error(), "no answer within 20s") {
			t.Errorf("Certificate = %v, want the manager's deadline", err)
		}
		if _, err := m.Certificate(t.Context(), mesh.Identity{}); err == nil {
			t.Error("a certificate for nobody")
		}
	})
}

func TestNewManagerNamesWhatIsMissing(t *testing.T) {
	if _, err := identity.NewManager(identity.Config{Log: meshtest.Discard()}); err == nil || !strings.Contains(err.Error(), "Config.Signer") {
		t.Errorf("NewManager = %v, want Config.Signer", err)
	}
	if _, err := identity.NewManager(identity.Config{Signer: signerFunc(nil)}); err == nil || !strings.Contains(err.Error(), "Config.Log") {
		t.Errorf("NewManager = %v, want Config.Log", err)
	}
}

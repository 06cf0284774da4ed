package identity_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// TestRenewalAfterAnOutage lets the authority be away from half life until shortly before the end. Whatever the life of
// the certificate, there is no moment without one.
func TestRenewalAfterAnOutage(t *testing.T) {
	for _, tt := range []struct {
		life time.Duration
		back time.Duration // before expiry
	}{
		{10 * time.Second, 2 * time.Second},
		{time.Minute, 3 * time.Second},
		{10 * time.Minute, 5 * time.Second},
		{time.Hour, 5 * time.Second},
		{24 * time.Hour, 10 * time.Second},
	} {
		t.Run(tt.life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := meshtest.NewCA(t)
				m := manager(t, func(c *identity.Config) { c.TTL = tt.life }, signerFunc(
					func(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error) {
						time.Sleep(300 * time.Millisecond) // an attempt at the moment of expiry comes too late
						return ca.Sign(ctx, csr, ttl, id)
					}))
				first := mustCertificate(t, m, echo)
				ca.SetError(errors.New("away"))
				time.Sleep(time.Until(first.NotAfter) - tt.back)
				ca.SetError(nil)
				for left := time.Until(first.NotAfter); left > -2*time.Second; left = time.Until(first.NotAfter) {
					mustCertificate(t, m, echo)
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
				}
				if c := mustCertificate(t, m, echo); c == first {
					t.Error("the certificate was not renewed")
				}
			})
		})
	}
}

// TestHangingRenewalLeavesTimeForAnother lets attempts go unanswered, which takes longer than an error does.
func TestHangingRenewalLeavesTimeForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		var hang atomic.Int64 // until when, in Unix nanoseconds
		m := manager(t, func(c *identity.Config) { c.TTL = time.Minute }, signerFunc(
			func(ctx context.Context, csr []byte, ttl time.Duration, id mesh.Identity) ([]string, error) {
				if time.Now().UnixNano() < hang.Load() {
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
				return ca.Sign(ctx, csr, ttl, id)
			}))
		first := mustCertificate(t, m, echo)
		hang.Store(first.NotAfter.Add(-6 * time.Second).UnixNano())
		time.Sleep(time.Until(first.NotAfter) + time.Second)
		synctest.Wait()
		if c := mustCertificate(t, m, echo); c == first {
			t.Error("the certificate was not renewed")
		}
	})
}

// TestUrgencyIsLoud: failures are warnings at first, and errors in the last fifth of the certificate's life.
func TestUrgencyIsLoud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		var log bytes.Buffer
		m := manager(t, func(c *identity.Config) {
			c.TTL, c.Log = time.Hour, slog.New(slog.NewTextHandler(&log, nil))
		}, ca)
		mustCertificate(t, m, echo)
		ca.SetError(errors.New("away"))
		time.Sleep(47 * time.Minute)
		synctest.Wait()
		if s := m.States()[0]; s.Urgent || strings.Contains(log.String(), "level=ERROR") {
			t.Errorf("urgent %t with a fifth of the life left and more:\n%s", s.Urgent, log.String())
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if s := m.States()[0]; !s.Urgent || s.Status != identity.Available || !strings.Contains(log.String(), "level=ERROR msg=\"certificate is about to expire") {
			t.Errorf("not loud before expiry: %+v\n%s", s, log.String())
		}
	})
}

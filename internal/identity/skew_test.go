package identity_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// TestClockSkew has the authority's clock differ from ours. What can be used is used, to its end by our clock and no longer;
// and whatever the difference, the authority is not asked over and over.
func TestClockSkew(t *testing.T) {
	const life = time.Hour
	for _, tt := range []struct {
		name     string
		skew     time.Duration
		left     time.Duration // of the first certificate, by our clock; 0 is none
		requests [2]int        // within the first hour, at least and at most
	}{
		{"a little ahead", 2 * time.Minute, life + 2*time.Minute, [2]int{2, 3}},
		{"far ahead", 10 * life, 11 * life, [2]int{1, 1}},
		{"a little behind", -2 * time.Minute, life - 2*time.Minute, [2]int{2, 4}},
		{"behind by more than half a life", -50 * time.Minute, 10 * time.Minute, [2]int{10, 14}},
		{"behind by all but a moment", -life + 10*time.Second, 10 * time.Second, [2]int{600, 900}},
		{"behind by a life", -life - time.Second, 0, [2]int{200, 400}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := meshtest.NewCA(t)
				ca.SetSkew(tt.skew)
				m := manager(t, func(c *identity.Config) { c.TTL = life }, ca)
				c, err := m.Certificate(t.Context(), echo)
				if tt.left == 0 {
					if err == nil || !strings.Contains(err.Error(), "the returned certificate expired at") {
						t.Errorf("Certificate() = %v, want the reason", err)
					}
				} else if err != nil || time.Until(c.NotAfter).Round(time.Second) != tt.left {
					t.Errorf("Certificate() = %v with %v left, want %v", err, time.Until(c.NotAfter), tt.left)
				}
				for range 60 {
					time.Sleep(time.Minute)
					synctest.Wait()
					if _, err := m.Certificate(t.Context(), echo); (err == nil) != (tt.left > 0) {
						t.Fatalf("later: Certificate() = %v", err)
					}
				}
				if n := len(ca.Requests()); n < tt.requests[0] || n > tt.requests[1] {
					t.Errorf("%d requests within an hour, want %d to %d", n, tt.requests[0], tt.requests[1])
				}
			})
		})
	}
}

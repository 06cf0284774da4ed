package failover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

var errGone, errDenied, errNoRoute = errors.New("gone"), errors.New("denied"), errors.New("no route")

// world is a service with a number of endpoints, which fail in the ways of fail.
type world struct {
	store     *state.Store
	endpoints int
	fail      func(ctx context.Context, attempt int) error
	tried     []string
}

func (w *world) to(i int) route.Outbound {
	return route.Outbound{Via: route.Direct, Service: &mesh.Service{}, Upstream: &mesh.Workload{UID: fmt.Sprint(i)}, Alternatives: w.endpoints - 1 - i}
}

func (w *world) connect(ctx context.Context, e *Endpoints) (string, error) {
	return Connect(ctx, e, w.to(0), Attempt[string]{
		Connect: func(ctx context.Context, out route.Outbound) (string, error) {
			w.tried = append(w.tried, out.Upstream.UID)
			return out.Upstream.UID, w.fail(ctx, len(w.tried))
		},
		Route: func(_ context.Context, failed []*mesh.Workload) (route.Outbound, error) {
			if len(failed) < w.endpoints {
				return w.to(len(failed)), nil
			}
			return route.Outbound{}, errNoRoute
		},
		Gone: func(err error, _ route.Outbound) bool { return !errors.Is(err, errDenied) },
	})
}

func TestConnect(t *testing.T) {
	gone := func(context.Context, int) error { return errGone }
	for name, c := range map[string]struct {
		world world
		want  string // what is reached
		err   error
		tried int
		took  time.Duration
	}{
		"the first serves":                   {world{endpoints: 3, fail: func(context.Context, int) error { return nil }}, "0", nil, 1, 0},
		"the third serves":                   {world{endpoints: 3, fail: func(_ context.Context, n int) error { return map[bool]error{true: errGone}[n < 3] }}, "2", nil, 3, 0},
		"a denial is an answer":              {world{endpoints: 3, fail: func(context.Context, int) error { return errDenied }}, "0", errDenied, 1, 0},
		"all are gone":                       {world{endpoints: 3, fail: gone}, "2", errGone, 3, DefaultWait},
		"more are gone than are tried":       {world{endpoints: 100, fail: gone}, "7", errGone, maxAttempts, 0},
		"black holes are left after a while": {world{endpoints: 3, fail: func(ctx context.Context, n int) error { return hang(ctx, n < 3) }}, "2", nil, 3, 2 * impatience},
		"the last is given all its time":     {world{endpoints: 1, fail: func(ctx context.Context, _ int) error { return hang(ctx, true) }}, "0", context.DeadlineExceeded, 1, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, began := c.world, time.Now()
				w.store = state.NewStore()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				got, err := w.connect(ctx, New(w.store, 0, nil))
				if got != c.want || !errors.Is(err, c.err) || len(w.tried) != c.tried || time.Since(began) != c.took {
					t.Errorf("reached %q, %v, after %d attempts and %v; want %q, %v, %d, %v", got, err, len(w.tried), time.Since(began), c.want, c.err, c.tried, c.took)
				}
			})
		})
	}
}

// hang takes for ever if it is told to.
func hang(ctx context.Context, forEver bool) error {
	if !forEver {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// Any change of the mesh is a reason to look again, until there is an endpoint; both outcomes are counted, and so is who may
// not wait because too many do.
func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		metrics, err := telemetry.NewMetrics(reg, "test")
		if err != nil {
			t.Fatal(err)
		}
		store := state.NewStore()
		e := New(store, 10*time.Second, metrics)
		var mu sync.Mutex
		served := false
		waiter := func() error {
			_, err := Connect(t.Context(), e, route.Outbound{Via: route.Direct, Service: &mesh.Service{}, Upstream: &mesh.Workload{UID: "old"}}, Attempt[int]{
				Connect: func(_ context.Context, out route.Outbound) (int, error) {
					if out.Upstream.UID == "new" {
						return 0, nil
					}
					return 0, errGone
				},
				Route: func(context.Context, []*mesh.Workload) (route.Outbound, error) {
					mu.Lock()
					defer mu.Unlock()
					if !served {
						return route.Outbound{}, errNoRoute
					}
					return route.Outbound{Via: route.Direct, Service: &mesh.Service{}, Upstream: &mesh.Workload{UID: "new"}}, nil
				},
				Gone: func(error, route.Outbound) bool { return true },
			})
			return err
		}
		change := func(uid string) { store.Apply(mesh.Update{Workloads: []*mesh.Workload{{UID: uid}}}) }
		results := make(chan error, maxWaits)
		for range maxWaits {
			go func() { results <- waiter() }()
		}
		synctest.Wait()
		if n := e.Waiting(); n != maxWaits {
			t.Fatalf("%d connections wait, want %d", n, maxWaits)
		}
		if err := waiter(); !errors.Is(err, errGone) {
			t.Errorf("the one that is too much: %v", err)
		}
		change("noise")
		time.Sleep(5 * time.Second)
		if n := e.Waiting(); n != maxWaits {
			t.Errorf("after a change that does not help %d wait, want all", n)
		}
		mu.Lock()
		served = true
		mu.Unlock()
		change("new")
		for range maxWaits {
			if err := <-results; err != nil {
				t.Fatal(err)
			}
		}
		served = false
		began := time.Now()
		if err := waiter(); !errors.Is(err, errGone) || time.Since(began) != 10*time.Second {
			t.Errorf("in vain: %v after %v", err, time.Since(began))
		}
		if n, err := testutil.GatherAndCount(reg, "isthmus_proxy_endpoint_waits_total", "isthmus_proxy_limit_reached_total"); n != 3 || err != nil {
			t.Errorf("%d series, %v, want both outcomes and the limit", n, err)
		}
	})
}

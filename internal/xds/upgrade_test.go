package xds_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds"
)

// TestRollingUpgrade has istiod replaced by another instance of it, as when it is upgraded or rolled back: one that has
// seen other changes, and that learns from what we name what we must be told. What both know is there all the time.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	oldOne := meshtest.NewIstiod(t, nil)
	oldOne.Set(newWorkload("stays", "10.0.128.1"), newWorkload("goes", "10.0.128.2"), denyAll)
	newOne := meshtest.NewIstiod(t, oldOne.CA)
	newOne.Set(newWorkload("stays", "10.0.128.1"), newWorkload("comes", "10.0.128.3"), echo)
	var serving atomic.Pointer[meshtest.Istiod]
	serving.Store(oldOne)
	c, store := start(t, oldOne, func(cfg *xds.Config) {
		cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, serving.Load().Address())
		}
	})
	meshtest.Closes(t, "synced", c.Synced())

	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			changed := store.Changed()
			if !has(store, "stays")() {
				t.Error("what both instances know was lost for a moment")
				return
			}
			select {
			case <-changed:
			case <-done:
				return
			}
		}
	}()
	move := func(from, to *meshtest.Istiod) {
		to.Refuse(nil)
		serving.Store(to)
		from.Refuse(status.Error(codes.Unavailable, "transport is closing"))
	}
	for range 3 {
		before := len(newOne.Requests())
		move(oldOne, newOne)
		meshtest.Eventually(t, "what the new instance knows", has(store, "comes"))
		meshtest.Eventually(t, "what it does not know goes", hasNot(store, "goes"))
		meshtest.Eventually(t, "a policy it does not know goes", func() bool { return store.Snapshot().Policy(denyAll.Key) == nil })
		if held := newOne.Requests()[before].InitialResourceVersions; held["goes"] == "" || held["stays"] == "" {
			t.Errorf("the new instance is told of %v, want all that is held", held)
		}
		move(newOne, oldOne)
		meshtest.Eventually(t, "what the old instance knows", has(store, "goes"))
		meshtest.Eventually(t, "its policy", func() bool { return store.Snapshot().Policy(denyAll.Key) != nil })
		meshtest.Eventually(t, "what the old instance does not know goes", hasNot(store, "comes"))
		meshtest.Eventually(t, "the service too", func() bool { return store.Snapshot().Service(echo.Key) == nil })
	}
	close(done)
	<-watched
}

// TestBackoff: while istiod cannot be reached, it is asked less and less often, from 10 ms to 15 s apart.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []time.Time
		cfg := xds.Config{Address: "istiod.test:15012", ServerName: meshtest.IstiodName, Roots: meshtest.NewCA(t).RootsFunc, ClusterID: "Kubernetes",
			Sink: state.NewStore(), Log: meshtest.Discard()}
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			asked = append(asked, time.Now())
			return nil, errNotDialled
		}
		c, err := xds.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		time.Sleep(2 * time.Minute) // of the bubble's clock
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run() = %v", err)
		}
		synctest.Wait()
		want := 10 * time.Millisecond
		for i := 1; i < len(asked); i++ {
			if got := asked[i].Sub(asked[i-1]); got != want {
				t.Errorf("the wait before attempt %d is %v, want %v", i+1, got, want)
			}
			want = min(2*want, 15*time.Second)
		}
		if n := len(asked); n < 15 || n > 20 {
			t.Errorf("%d attempts in two minutes, want 11 that grow to 15 s and one each 15 s after that", n)
		}
	})
}

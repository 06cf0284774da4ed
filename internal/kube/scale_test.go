package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// scaleVariable, set to "full", makes TestCacheOfManyObjects list what docs/architecture/limits.md tells of.
const scaleVariable = "ISTHMUS_SCALE"

// onHeap returns what is on the heap in MiB, after a collection or as it is.
func onHeap(collect bool) float64 {
	if collect {
		runtime.GC()
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// TestCacheOfManyObjects lists the objects of a large fleet from a real API server, and tells what they take: while they
// are listed, and from then on.
func TestCacheOfManyObjects(t *testing.T) {
	n := 500
	if os.Getenv(scaleVariable) == "full" {
		n = 110_000
	}
	api := kubetest.StartAPIServer(t)
	api.Apply(t, kubetest.CRDs(t, filepath.Join("..", "..")))
	api.Apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: fleet}\n")
	fill(t, api, n)

	defer debug.SetMemoryLimit(debug.SetMemoryLimit(900 << 20)) // as the controller's manifest has it
	client, err := kube.New(kube.Config{Kubeconfig: api.Kubeconfig(t, kubetest.AdminToken), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := client.NewCache(kube.CacheConfig{Kind: kube.WorkloadEntries, Track: true})
	if err != nil {
		t.Fatal(err)
	}
	base := onHeap(true)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = cache.Run(ctx) })
	var most float64
	listed := make(chan error, 1)
	go func() { listed <- cache.Wait(ctx, 10*time.Minute) }()
	start := time.Now()
	for done := false; !done; most = max(most, onHeap(false)) {
		select {
		case err := <-listed:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		case <-time.After(5 * time.Millisecond):
		}
	}
	took := time.Since(start)
	if got := len(cache.List()); got != n {
		t.Fatalf("%d objects are listed, want %d", got, n)
	}
	live := onHeap(true) - base
	t.Logf("%d objects: %.1f MiB live, %.2f KiB each; at most %.1f MiB on the heap while they were listed, which took %v",
		n, live, live*1024/float64(n), most-base, took.Round(time.Millisecond))
	if each := live * 1024 / float64(n); each > 6 {
		t.Errorf("an object takes %.2f KiB, want 6 at most", each)
	}
	cancel()
	running.Wait()
	runtime.KeepAlive(cache)
}

// fill makes n entries such as the controller makes of tasks.
func fill(t *testing.T, api *kubetest.APIServer, n int) {
	t.Helper()
	entry := func(i int) string {
		return fmt.Sprintf(workloadEntry, i, i, i, i, i/65536, i/256%256, i%256)
	}
	api.Apply(t, entry(1)) // waits until the kind is served
	var next atomic.Int64
	next.Store(1)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				o := parse(t, entry(i))
				if _, err := api.Admin.Apply(t.Context(), o, nil); err != nil {
					t.Errorf("object %d: %v", i, err)
					return
				}
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

const workloadEntry = `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: ecs-task-111111111111-us-east-2-cluster-%d-%032d
  namespace: fleet
  labels: {app.kubernetes.io/managed-by: isthmus, service.istio.io/canonical-name: echo, isthmus.dev/task: "%032d"}
  annotations: {isthmus.dev/source: 'arn:aws:ecs:us-east-2:111111111111:task/cluster/%032d', ambient.istio.io/redirection: enabled}
spec: {address: 10.%d.%d.%d, network: eks, locality: us-east-2/us-east-2a, serviceAccount: app, labels: {app: echo}, weight: 1}
`

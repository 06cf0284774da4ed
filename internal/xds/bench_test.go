package xds_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds"
)

// BenchmarkFirstState is a client that connects to a mesh of 100,000 workloads. It also reports what the state weighs.
func BenchmarkFirstState(b *testing.B) {
	istiod := meshtest.NewIstiod(b, nil)
	var all []any
	for i := range 100_000 {
		w := newWorkload(fmt.Sprintf("Kubernetes/networking.istio.io/WorkloadEntry/ecs-demo-1/ecs-task-%032x", i), "10.0.0.1")
		w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}
		all = append(all, w)
	}
	istiod.Set(append(all, echo)...)
	all = nil
	before := heap()
	for b.Loop() {
		store := state.NewStore()
		c, err := xds.New(xds.Config{Address: istiod.Address(), ServerName: meshtest.IstiodName, Roots: istiod.CA.RootsFunc,
			ClusterID: "Kubernetes", Sink: store, Log: meshtest.Discard()})
		if err != nil {
			b.Fatal(err)
		}
		meshtest.Run(b, c.Run)
		select {
		case <-c.Synced():
		case <-time.After(time.Minute):
			b.Fatal("not synced within a minute")
		}
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/1e6, "MB-held")
		runtime.KeepAlive(store)
		b.StartTimer()
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

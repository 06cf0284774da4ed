package main

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// footprint measures what the proxy weighs, alone and with meshes of different sizes, and what changes cost it.
func (b *bench) footprint() {
	if b.o.named("binary") {
		if info, err := os.Stat(b.o.isthmus); err == nil {
			b.rep.fact("binary/size", "MB", float64(info.Size())/1e6, 25)
		}
	}
	if b.o.named("policy") {
		b.policies()
	}
	if b.o.named("mesh/services=4") {
		b.h.progress("measuring mesh/services=4")
		_, p := b.lone("small", smallMesh())
		b.rep.fact("mesh/services=4/rss", "MB", float64(settle(b.h, p)[0])/1e6, 20)
	}
	if b.o.named("mesh/workloads=10000") && !b.o.quick {
		b.large()
	}
}

// lone starts a proxy that knows a mesh and carries nothing.
func (b *bench) lone(name string, values []any) (*meshtest.Istiod, *process) {
	istiod := meshtest.NewIstiod(b.h, b.ca)
	istiod.Set(values...)
	p := newHosts(b.h)
	p.server.bring(b.h, istiod.Address())
	return istiod, b.ztunnel(p.server, name, b.o.isthmus, serverIP, "ecs-demo-1/echo-1/echo")
}

// smallMesh is the guide's: two clusters with two services each.
func smallMesh() []any {
	local := workload("echo-1", "ecs-demo-1", "echo", serverIP)
	local.Services = map[mesh.ServiceKey]map[uint16]uint16{}
	values := []any{local}
	for i := range 4 {
		key := mesh.ServiceKey{Namespace: fmt.Sprintf("ecs-demo-%d", i/2+1), Hostname: fmt.Sprintf("service-%d.ecs-demo-%d.ecs.local", i, i/2+1)}
		w := workload(fmt.Sprintf("task-%d", i), key.Namespace, "default", netip.AddrFrom4([4]byte{10, 9, 8, byte(i)}))
		w.Services = map[mesh.ServiceKey]map[uint16]uint16{key: {80: 8080}}
		values = append(values, w, &mesh.Service{Key: key, Name: "service", Ports: map[uint16]uint16{80: 8080},
			VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: netip.AddrFrom4([4]byte{240, 240, 1, byte(i)})}}})
	}
	return values
}

// workloads makes the records from to to of a large mesh: ten workloads per service, with names as ECS makes them.
func workloads(from, to int) []any {
	var values []any
	for i := from; i < to; i++ {
		w := workload(fmt.Sprintf("ecs-task-123456789012-us-east-2-demo-%032x", i), fmt.Sprintf("ecs-demo-%d", i%50), "default",
			netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}))
		key := serviceKey(i / 10)
		w.Services = map[mesh.ServiceKey]map[uint16]uint16{key: {80: 8080}}
		values = append(values, w)
		if i%10 == 0 {
			values = append(values, &mesh.Service{Key: key, Name: "service", Ports: map[uint16]uint16{80: 8080},
				VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: netip.AddrFrom4([4]byte{240, byte(241 + i>>20), byte(i / 10 >> 8), byte(i / 10)})}}})
		}
	}
	return values
}

func serviceKey(i int) mesh.ServiceKey {
	return mesh.ServiceKey{Namespace: fmt.Sprintf("ecs-demo-%d", i%50), Hostname: fmt.Sprintf("service-%d.demo.ecs.local", i)}
}

// large pushes 10,000 workloads to a proxy, then 90,000 more, then changes one at a time.
func (b *bench) large() {
	b.h.progress("measuring mesh/workloads=10000")
	istiod, p := b.lone("large", smallMesh())
	settle(b.h, p)
	acks := acknowledged(istiod)
	before := p.cpu()
	istiod.Set(workloads(0, 10_000)...)
	b.acked(istiod, p, acks+1)
	b.rep.fact("mesh/workloads=10000/push", "cpu-ms", us(p.cpu()-before)/1e3, 1000)
	b.rep.fact("mesh/workloads=10000/rss", "MB", float64(settle(b.h, p)[0])/1e6, 60)

	b.h.progress("measuring mesh/workloads=100000")
	acks = acknowledged(istiod)
	istiod.Set(workloads(10_000, 100_000)...)
	b.acked(istiod, p, acks+1)
	b.rep.fact("mesh/workloads=100000/rss", "MB", float64(settle(b.h, p)[0])/1e6, 0)
	const changes = 100
	before = p.cpu()
	for i := range changes {
		acks = acknowledged(istiod)
		w := workloads(i*100+1, i*100+2)[0].(*mesh.Workload)
		w.Unhealthy = true
		istiod.Set(w)
		b.acked(istiod, p, acks+1)
	}
	b.rep.fact("mesh/workloads=100000/change", "cpu-ms", us(p.cpu()-before)/1e3/changes, 1)
}

// acknowledged counts the responses with workloads and services that the proxy has accepted. It does so when they have
// been applied.
func acknowledged(istiod *meshtest.Istiod) int {
	n := 0
	for _, r := range istiod.Requests() {
		if r.TypeUrl == meshtest.AddressType && r.ResponseNonce != "" && r.ErrorDetail == nil {
			n++
		}
	}
	return n
}

func (b *bench) acked(istiod *meshtest.Istiod, p *process, n int) {
	for deadline := time.Now().Add(2 * time.Minute); acknowledged(istiod) < n; pause(b.h.ctx, time.Millisecond) {
		if time.Now().After(deadline) || b.h.ctx.Err() != nil {
			b.h.Fatalf("%s: a push was not acknowledged; rejections: %v", p.name, istiod.Rejections())
		}
	}
}

// policies measures one decision of 1,000 rules of which the last one matches: rules that name clients, addresses or
// beginnings of names, in ten policies, and a policy for each rule.
func (b *bench) policies() {
	ask := policy.Connection{Source: meshtest.ID("default", "shell"), SourceAddr: netip.AddrPortFrom(clientIP, 40000), DestinationAddr: netip.AddrPortFrom(serverIP, echoPort)}
	named := func(kind mesh.StringMatchKind, value string) mesh.Match {
		return mesh.Match{Principals: []mesh.StringMatch{{Kind: kind, Value: value}}}
	}
	for _, k := range []struct {
		name     string
		policies int
		match    func(i int) mesh.Match
	}{
		{"policy/rules=1000", 10, func(i int) mesh.Match {
			return named(mesh.MatchExact, fmt.Sprintf("cluster.local/ns/team-%d/sa/client-%d", i/100, i))
		}},
		{"policy/rules=1000/cidr", 10, func(i int) mesh.Match {
			return mesh.Match{SourceIPs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(10 + i/250), byte(i % 250)}), 24)}}
		}},
		{"policy/rules=1000/prefix", 10, func(i int) mesh.Match {
			return named(mesh.MatchPrefix, fmt.Sprintf("cluster.local/ns/team-%d/", i))
		}},
		{"policy/policies=1000", 1000, func(i int) mesh.Match {
			return named(mesh.MatchExact, fmt.Sprintf("cluster.local/ns/team-%d/sa/client-%d", i/100, i))
		}},
	} {
		b.h.progress("measuring %s", k.name)
		const rules = 1000
		var ps []*mesh.Policy
		for i := range k.policies {
			p := &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: fmt.Sprintf("allow-%d", i)}, Action: mesh.Allow}
			for j := range rules / k.policies {
				n := i*rules/k.policies + j
				m := k.match(n)
				if n == rules-1 {
					m = named(mesh.MatchExact, "cluster.local/ns/default/sa/shell")
				}
				p.Rules = append(p.Rules, mesh.Rule{{m}, {{DestinationPorts: []uint16{echoPort}}}})
			}
			policy.Index(p) // as a push does
			ps = append(ps, p)
		}
		if d := policy.Evaluate(ps, ask); !d.Allowed || d.Policy != ps[len(ps)-1].Key || d.Rule != len(ps[0].Rules)-1 {
			b.h.Fatalf("%s: decision %+v is not what was set up", k.name, d)
		}
		decide := func() { policy.Evaluate(ps, ask) }
		b.rep.fact(k.name, "cpu-ns/op", threadTime(decide, 2000, 15), 5000)
		b.rep.fact(k.name+"/allocs", "allocs/op", testing.AllocsPerRun(1000, decide), 0.001)
	}
}

// threadTime returns the nanoseconds of processor time that f takes: the median of batches of n calls each. Processor
// time, since the clock on the wall also counts the turns of others.
func threadTime(f func(), n, batches int) float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	now := func() int64 {
		var ts unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
		return ts.Nano()
	}
	var took []float64
	for range batches {
		start := now()
		for range n {
			f()
		}
		took = append(took, float64(now()-start)/float64(n))
	}
	slices.Sort(took)
	return median(took)
}

package soak_test

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// operator changes the world, one thing at a time.
type operator struct {
	w *world
	l *ledger
	f *flows

	stop     chan struct{}
	wording  int
	isClosed bool
}

// applied is how long a change may take to show.
const applied = 15 * time.Second

func (o *operator) start() func() {
	o.stop = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(o.run)
	return func() {
		close(o.stop)
		wg.Wait()
	}
}

// pause waits and reports whether to go on.
func (o *operator) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-o.stop:
		return false
	case <-t.C:
		return true
	}
}

func (o *operator) run() {
	actions := []func(){o.reword, o.toggle, o.noise, o.restartIstiod, o.toggle, o.death}
	for i := 0; o.pause(time.Duration(100+rand.IntN(200)) * time.Millisecond); i++ {
		actions[i%len(actions)]()
	}
}

// reword replaces the policy against bob by one that means the same.
func (o *operator) reword() {
	o.wording++
	o.w.istiod.Set(denyBob(o.wording))
	o.l.count("rewordings")
}

// noise adds and removes policies and workloads that concern nobody here.
func (o *operator) noise() {
	p := &mesh.Policy{Key: mesh.PolicyKey{Namespace: "elsewhere", Name: "noise"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny, Rules: []mesh.Rule{{{{}}}}}
	other := workload("noise", aliceIP.Next().Next().Next().Next().Next())
	o.w.istiod.Set(p, other)
	if !o.pause(50 * time.Millisecond) {
		return
	}
	o.w.istiod.Remove(p.Key.String(), other.UID)
}

// toggle opens or closes the toggled server for alice and waits until that has been seen.
func (o *operator) toggle() {
	o.isClosed = !o.isClosed
	p := &mesh.Policy{Key: mesh.PolicyKey{Namespace: namespace, Name: "toggle"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{Principals: []mesh.StringMatch{{Value: "cluster.local/ns/soak/sa/alice"}}}}, {{DestinationIPs: []netip.Prefix{netip.PrefixFrom(toggledIP, 32)}}}}}}
	o.f.toggle(o.isClosed)
	if o.isClosed {
		o.w.istiod.Set(p)
	} else {
		o.w.istiod.Remove(p.Key.String())
	}
	for deadline := time.Now().Add(applied); !o.f.isSettled(); {
		if time.Now().After(deadline) {
			o.l.fault("toggle: closed=%v has not been seen within %v", o.isClosed, applied)
			return
		}
		if !o.pause(5 * time.Millisecond) {
			return
		}
	}
	o.l.count("toggles")
	o.pause(300 * time.Millisecond) // attempts that must all agree
}

// restartIstiod ends all streams; every other time it also stays away for a while, in which certificates may fall due.
func (o *operator) restartIstiod() {
	o.l.count("istiod restarts")
	if rand.IntN(2) == 0 {
		o.w.istiod.Disconnect()
		return
	}
	o.w.istiod.Refuse(status.Error(codes.Unavailable, "istiod is restarting"))
	o.pause(time.Duration(rand.IntN(int(1500 * time.Millisecond))))
	o.w.istiod.Refuse(nil)
}

// death kills the mortal server's proxy. Half the time istiod notices and takes the workload back.
func (o *operator) death() {
	o.w.kill("mortal")
	o.l.count("deaths")
	s := workload("mortal", mortalIP)
	noticed := rand.IntN(2) == 0
	if noticed {
		o.w.istiod.Remove(s.UID)
	}
	o.pause(200 * time.Millisecond)
	if noticed {
		s.Services = map[mesh.ServiceKey]map[uint16]uint16{{Namespace: namespace, Hostname: host("mortal")}: {80: appPort}}
		o.w.istiod.Set(s)
	}
	switch took, err := o.w.run("mortal", mortalIP); {
	case err != nil:
		o.l.fault("after a death: %v", err)
	case took > slowRestart:
		o.l.count("slow restarts")
	}
}

// slowRestart is what a restart may take on a machine that does much else, before it is worth telling.
const slowRestart = 5 * time.Second

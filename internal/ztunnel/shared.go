package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy"
)

// runShared serves the pods of a node, as the CNI agent announces them.
func (a *app) runShared(data, control context.Context, g *group, fail func(error)) error {
	a.ready.Set(taskPods, false)
	who := identityInfo{
		name: a.cfg.PodName, namespace: a.cfg.PodNamespace, serviceAccount: a.cfg.ServiceAccount, network: a.cfg.Network,
		clusterID: a.cfg.ClusterID, instanceIP: a.cfg.InstanceIP, token: tokenOf(a.cfg.AuthToken), impersonate: true,
	}
	synced, err := a.controlPlane(control, g, fail, who)
	if err != nil || !a.synced(data, synced) {
		return err
	}
	g.start(control, fail, a.prefetchNode)
	if err := a.serveSelf(data, g, fail); err != nil {
		return err
	}
	pods := &pods{a: a, data: data, running: map[string]*pod{}}
	client, err := inpod.NewClient(inpod.ClientConfig{Path: a.cfg.InpodSocket, Handler: pods, Log: a.log.With(logattr.Scope("inpod"))})
	if err != nil {
		return err
	}
	err = client.Run(data)
	// When the agent's socket is lost the pods keep being served; here the proxy itself stops.
	pods.wait()
	if data.Err() != nil {
		return nil
	}
	return err
}

// serveSelf accepts tunnels to this proxy's own pod, so that its metrics can be scraped through HBONE, if the proxy was
// told who it is. It listens in its own network namespace.
func (a *app) serveSelf(data context.Context, g *group, fail func(error)) error {
	info := proxy.WorkloadInfo{Name: a.cfg.PodName, Namespace: a.cfg.PodNamespace, ServiceAccount: a.cfg.ServiceAccount, Node: a.cfg.NodeName}
	if info.Name == "" || info.Namespace == "" || info.ServiceAccount == "" || a.cfg.CAAddress == "" {
		return nil
	}
	p, err := proxy.New(proxy.Config{
		Workload: info, Network: a.cfg.Network, Store: a.store, Certs: a.certificate, Dial: a.dialIn(nil),
		LoopbackFallback: true, NoBaggage: !a.cfg.ResponseBaggage, LogDecisions: a.cfg.LogDecisions, Tunnel: a.tunnelConfig(),
		PolicyWait: a.cfg.PolicyWait, AllowMissingPolicies: a.cfg.AllowMissingPolicies,
		Grace: a.cfg.Grace, MaxConnections: maxSelfConnections, Metrics: a.metrics, Access: a.access,
		Log: a.log.With(logattr.Scope("proxy"), logattr.WorkloadName(info.Namespace, info.Name)),
	})
	if err != nil {
		return err
	}
	l, err := a.listen(data, a.cfg.Listen.Self)
	if err != nil {
		return fmt.Errorf("listen for hbone to the proxy itself on %s: %w", a.cfg.Listen.Self, err)
	}
	a.alsoRecheck(p)
	g.start(data, fail, func(ctx context.Context) error { return p.Run(ctx, proxy.Listeners{HBONE: l}) })
	return nil
}

// maxSelfConnections bounds who scrapes the proxy at once.
const maxSelfConnections = 256

// pods is the set of pods that are served. It implements inpod.Handler.
type pods struct {
	a    *app
	data context.Context //nolint:containedctx // the life of everything that Add starts, which is not Add's own

	wg      sync.WaitGroup
	mu      sync.Mutex
	running map[string]*pod // guarded by mu
}

type pod struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

var _ inpod.Handler = (*pods)(nil)

// Add starts serving a pod.
func (p *pods) Add(ctx context.Context, w inpod.Workload, f *os.File) error {
	ns, err := inpod.OpenNetns(f)
	if err != nil {
		return err
	}
	info := proxy.WorkloadInfo{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Node: p.a.cfg.NodeName}
	p.a.addServed(w.UID, &served{info: info})
	wp, err := p.a.newWorkloadProxy(ctx, placement{info: info, network: p.a.cfg.Network, ns: ns, reuse: p.a.cfg.PortReuse})
	if err != nil {
		ns.Close()
		return fmt.Errorf("serve pod %s/%s: %w", w.Namespace, w.Name, err)
	}
	p.stop(w.UID) // it had another namespace
	run, cancel := context.WithCancelCause(p.data)
	this := &pod{cancel: cancel, done: make(chan struct{})}
	p.mu.Lock()
	p.running[w.UID] = this
	p.mu.Unlock()
	p.a.addServed(w.UID, &served{info: info, proxy: wp.proxy})
	p.a.metrics.ProxyStarted()
	p.wg.Go(func() {
		defer close(this.done)
		defer ns.Close()
		defer p.a.metrics.ProxyStopped()
		if err := wp.run(run); err != nil {
			p.a.log.Error("pod is not served any more", logattr.WorkloadName(w.Namespace, w.Name), logattr.Err(err))
		}
	})
	return nil
}

// Remove stops serving a pod at once: its namespace is about to go.
func (p *pods) Remove(uid string) {
	p.stop(uid)
	p.a.removeServed(uid)
}

func (p *pods) stop(uid string) {
	p.mu.Lock()
	old := p.running[uid]
	delete(p.running, uid)
	p.mu.Unlock()
	if old != nil {
		old.cancel(proxy.ErrRemoved)
		<-old.done // connections are cut, not drained, so this is quick
	}
}

// Synced tells readiness whether all pods of the node are served.
func (p *pods) Synced(ok bool) { p.a.ready.Set(taskPods, ok) }

// wait waits for the pods to be drained after data ended.
func (p *pods) wait() { p.wg.Wait() }

// prefetchNode keeps certificates for the pods of this node and forgets those of identities that are gone.
func (a *app) prefetchNode(ctx context.Context) error {
	if a.cfg.NodeName == "" {
		return nil
	}
	m := a.manager.get()
	if m == nil {
		return errors.New("prefetch certificates: there is no certificate manager")
	}
	held := map[mesh.Identity]bool{}
	for {
		changed := a.store.Changed()
		wanted := map[mesh.Identity]bool{}
		for w := range a.store.Snapshot().OnNode(a.cfg.NodeName) {
			if w.Protocol == mesh.HBONE || w.NativeTunnel {
				wanted[w.Identity()] = true
			}
		}
		for id := range wanted {
			if !held[id] {
				m.Prefetch(id)
			}
		}
		for id := range held {
			if !wanted[id] {
				m.Forget(id)
			}
		}
		held = wanted
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

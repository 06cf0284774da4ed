// Package eastwest serves the Gateways of class istio-eastwest: for each it runs our ztunnel in its gateway role behind a
// LoadBalancer Service, and writes what became of it into the Gateway's status.
//
// Stock Istio knows neither this class nor the label istio.io/expose-istiod, so there is nobody to conflict with; a
// GatewayClass of that name that names another controller is left alone, with all its Gateways.
package eastwest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// resync is how often everything is looked at although nothing seems to have changed; it repairs what a failed write or
// a foreign change left behind.
const resync = 30 * time.Second

// retry is the pause after a failed write.
const retry = 2 * time.Second

// Config is what a Controller needs.
type Config struct {
	Kube *kube.Client // required
	// Namespace is istiod's, the only one in which Gateways are served; required.
	Namespace string
	// Image is ztunnel's; empty means install's default. Replicas 0 means 1.
	Image    string
	Replicas int
	// Network is used for a Gateway without the label topology.istio.io/network.
	Network     string
	ClusterID   string
	TrustDomain string
	Log         *slog.Logger // required
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Controller serves Gateways while it runs. Only the leader runs it.
type Controller struct {
	cfg Config
	log *slog.Logger

	gateways    *kube.Cache
	classes     *kube.Cache
	services    *kube.Cache
	deployments *kube.Cache

	round sync.Mutex // held during a round
}

// New returns a Controller.
func New(cfg Config) (*Controller, error) {
	switch {
	case cfg.Kube == nil:
		return nil, errors.New("eastwest: Config.Kube is required")
	case cfg.Namespace == "":
		return nil, errors.New("eastwest: Config.Namespace is required")
	case cfg.Log == nil:
		return nil, errors.New("eastwest: Config.Log is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Controller{cfg: cfg, log: cfg.Log.With(slog.String("scope", "gateway"))}
	ours := kube.ManagedByLabel + "=" + kube.ManagedByValue + ",gateway.networking.k8s.io/gateway-class-name=" + kube.GatewayClassName
	for _, x := range []struct {
		cache **kube.Cache
		cfg   kube.CacheConfig
	}{
		{&c.gateways, kube.CacheConfig{Kind: kube.Gateways}},
		{&c.classes, kube.CacheConfig{Kind: kube.GatewayClasses}},
		{&c.services, kube.CacheConfig{Kind: kube.Services, Namespace: cfg.Namespace, Selector: ours}},
		{&c.deployments, kube.CacheConfig{Kind: kube.Deployments, Namespace: cfg.Namespace, Selector: ours}},
	} {
		cache, err := cfg.Kube.NewCache(x.cfg)
		if err != nil {
			return nil, fmt.Errorf("eastwest: %w", err)
		}
		*x.cache = cache
	}
	return c, nil
}

func (c *Controller) caches() []*kube.Cache {
	return []*kube.Cache{c.gateways, c.classes, c.services, c.deployments}
}

// Run serves Gateways until ctx ends. While the cluster lacks the Gateway API it waits for it.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{}, len(c.caches()))
	for _, k := range c.caches() {
		go func() { _ = k.Run(ctx); stopped <- struct{}{} }()
	}
	defer func() {
		cancel()
		for range c.caches() {
			<-stopped
		}
	}()
	for _, k := range c.caches() {
		if err := k.Wait(ctx, 0); err != nil {
			return nil // ctx ended
		}
	}
	for {
		// Taken before reading, so that a change during the round starts another.
		g, cl, s, d := c.gateways.Changed(), c.classes.Changed(), c.services.Changed(), c.deployments.Changed()
		pause := resync
		if err := c.Reconcile(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("gateway not reconciled", slog.String("error", err.Error()))
			pause = retry
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-g:
		case <-cl:
		case <-s:
		case <-d:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Reconcile brings everything into the state that the Gateways ask for. The caches must be filled. Rounds do not overlap:
// one that decides by what another is about to change would undo it or do it twice.
func (c *Controller) Reconcile(ctx context.Context) error {
	c.round.Lock()
	defer c.round.Unlock()
	ours, err := c.class(ctx)
	if err != nil || !ours {
		return err
	}
	var errs []error
	wanted := map[string]bool{}
	for _, o := range c.gateways.List() {
		var gw kube.Gateway
		if err := kube.Decode(o, &gw); err != nil {
			errs = append(errs, err)
			continue
		}
		if gw.Spec.GatewayClassName != kube.GatewayClassName || gw.Metadata.Deleted != nil {
			continue
		}
		if gw.Metadata.Namespace == c.cfg.Namespace {
			wanted[gw.Metadata.Name] = true
		}
		if err := c.serve(ctx, o, gw); err != nil {
			errs = append(errs, fmt.Errorf("gateway %s/%s: %w", gw.Metadata.Namespace, gw.Metadata.Name, err))
		}
	}
	errs = append(errs, c.removeOrphans(ctx, wanted))
	return errors.Join(errs...)
}

// class makes the GatewayClass, accepts it, and reports whether it is ours.
func (c *Controller) class(ctx context.Context) (bool, error) {
	have := c.classes.Get("", kube.GatewayClassName)
	if have == nil {
		want := &kube.Object{Object: map[string]any{
			"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
			"metadata": map[string]any{"name": kube.GatewayClassName},
			"spec": map[string]any{
				"controllerName": kube.GatewayController,
				"description":    "East-west gateway for ECS tasks, served by Isthmus.",
			},
		}}
		_, err := c.cfg.Kube.Apply(ctx, want, nil)
		return false, err // the cache will show it, and the next round goes on
	}
	var class struct {
		Metadata struct {
			Generation int64 `json:"generation"`
		} `json:"metadata"`
		Spec struct {
			ControllerName string `json:"controllerName"`
		} `json:"spec"`
		Status struct {
			Conditions []kube.Condition `json:"conditions"`
		} `json:"status"`
	}
	if err := kube.Decode(have, &class); err != nil {
		return false, err
	}
	if class.Spec.ControllerName != kube.GatewayController {
		return false, nil
	}
	conds := []kube.Condition{{
		Type: "Accepted", Status: "True", Reason: "Accepted", Message: "served by isthmus-controller", ObservedGeneration: class.Metadata.Generation,
	}}
	kube.KeepTimes(conds, class.Status.Conditions, c.cfg.Now())
	return true, c.writeStatus(ctx, have, map[string]any{"conditions": conds})
}

// serve brings one Gateway's workload and status up to date.
func (c *Controller) serve(ctx context.Context, o *kube.Object, gw kube.Gateway) error {
	d := decide(gw, c.cfg)
	if d.refused == nil {
		if err := c.applyWorkload(ctx, d.workload); err != nil {
			return errors.Join(err, c.status(ctx, o, gw, d, err))
		}
	}
	return c.status(ctx, o, gw, d, nil)
}

func (c *Controller) applyWorkload(ctx context.Context, g install.Gateway) error {
	text, err := g.Render()
	if err != nil {
		return err
	}
	objs, err := kube.ParseYAML(text)
	if err != nil {
		return err
	}
	for _, want := range objs {
		var have *kube.Object
		switch want.GetKind() {
		case "Service":
			have = c.services.Get(want.GetNamespace(), want.GetName())
		case "Deployment":
			have = c.deployments.Get(want.GetNamespace(), want.GetName())
		case "ServiceAccount":
			if have, err = c.cfg.Kube.Get(ctx, kube.ServiceAccounts, want.GetNamespace(), want.GetName()); err != nil && !kube.IsNotFound(err) {
				return err
			}
		}
		out, err := c.cfg.Kube.Apply(ctx, want, have)
		if err != nil {
			return err
		}
		if out != kube.Unchanged {
			c.log.Info("gateway workload applied", slog.String("object", kube.Ref(want)), slog.String("outcome", string(out)))
		}
	}
	return nil
}

func (c *Controller) status(ctx context.Context, o *kube.Object, gw kube.Gateway, d decision, failed error) error {
	name := install.GatewayName(gw.Metadata.Name)
	var svc, dep *kube.Object
	if gw.Metadata.Namespace == c.cfg.Namespace {
		svc, dep = c.services.Get(c.cfg.Namespace, name), c.deployments.Get(c.cfg.Namespace, name)
	}
	st := buildStatus(gw, d, addressesOf(svc), availableOf(dep), failed)
	kube.KeepTimes(st.Conditions, gw.Status.Conditions, c.cfg.Now())
	for i := range st.Listeners {
		for _, h := range gw.Status.Listeners {
			if h.Name == st.Listeners[i].Name {
				kube.KeepTimes(st.Listeners[i].Conditions, h.Conditions, c.cfg.Now())
				break
			}
		}
		if st.Listeners[i].Conditions[0].LastTransitionTime == "" {
			kube.KeepTimes(st.Listeners[i].Conditions, nil, c.cfg.Now())
		}
	}
	if err := c.writeStatus(ctx, o, st); err != nil {
		return err
	}
	if d.refused != nil {
		msg := d.refused.Error() + ". Fix: " + d.refused.Fix
		return c.cfg.Kube.Report(ctx, kube.Event{About: o, Warning: true, Reason: "Refused", Message: msg}, c.cfg.Now())
	}
	return nil
}

// writeStatus writes a status unless the object has it already.
func (c *Controller) writeStatus(ctx context.Context, o *kube.Object, status any) error {
	want, err := kube.Encode(map[string]any{
		"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "metadata": map[string]any{"name": o.GetName()}, "status": status,
	})
	if err != nil {
		return err
	}
	if kube.Same(want, o) && sameAddresses(want, o) {
		return nil
	}
	return c.cfg.Kube.WriteStatus(ctx, o, status)
}

// sameAddresses catches the addresses that must go: a status without any does not differ from one with some otherwise.
func sameAddresses(want, have *kube.Object) bool {
	count := func(o *kube.Object) int {
		status, _ := o.Object["status"].(map[string]any)
		list, _ := status["addresses"].([]any)
		return len(list)
	}
	return count(want) == count(have)
}

// removeOrphans deletes the workloads whose Gateway is gone. Owner references do the same where a garbage collector runs.
func (c *Controller) removeOrphans(ctx context.Context, wanted map[string]bool) error {
	var errs []error
	seen := map[string]bool{}
	for _, k := range []*kube.Cache{c.services, c.deployments} {
		for _, o := range k.List() {
			gw := o.GetLabels()["gateway.networking.k8s.io/gateway-name"]
			if gw == "" || wanted[gw] || seen[gw] || o.GetName() != install.GatewayName(gw) {
				continue
			}
			seen[gw] = true
			for _, kind := range []kube.Kind{kube.Services, kube.Deployments, kube.ServiceAccounts} {
				if _, err := c.cfg.Kube.Delete(ctx, kind, c.cfg.Namespace, o.GetName(), nil); err != nil {
					errs = append(errs, err)
				}
			}
			c.log.Info("gateway workload removed", slog.String("gateway", gw))
		}
	}
	return errors.Join(errs...)
}

// decision is what a Gateway asks for, and why it may not have it.
type decision struct {
	workload  install.Gateway
	listeners map[string]*diag.Error // by listener; nil value means accepted
	refused   *diag.Error            // the Gateway as a whole
}

// decide is pure: a Gateway in, what to run out.
func decide(gw kube.Gateway, cfg Config) decision {
	d := decision{listeners: map[string]*diag.Error{}}
	ns := gw.Metadata.Namespace
	if ns != cfg.Namespace {
		d.refused = diag.Newf(diag.GatewayNamespaceRefused, "the Gateway is in %s, istiod is in %s", ns, cfg.Namespace)
	}
	expose := gw.Metadata.Labels[kube.ExposeIstiodLabel]
	w := install.Gateway{
		Gateway: gw.Metadata.Name, Namespace: ns, UID: gw.Metadata.UID, Image: cfg.Image, Replicas: cfg.Replicas,
		Network: gw.Metadata.Labels[kube.NetworkLabel], ClusterID: cfg.ClusterID, TrustDomain: cfg.TrustDomain,
		Labels: map[string]string{}, Annotations: gw.Spec.Infrastructure.Annotations, TLSRoutes: map[string]string{},
	}
	if w.Network == "" {
		w.Network = cfg.Network
	}
	for k, v := range gw.Spec.Infrastructure.Labels {
		w.Labels[k] = v
	}
	if w.Network != "" {
		w.Labels[kube.NetworkLabel] = w.Network
	}
	ports := map[int32]bool{}
	for _, l := range gw.Spec.Listeners {
		target, problem := listenerTarget(l)
		if problem == nil && ports[l.Port] {
			problem = diag.Newf(diag.GatewayListenerRefused, "listener %s: port %d is another listener's", l.Name, l.Port)
		}
		d.listeners[l.Name] = problem
		if problem != nil {
			continue
		}
		ports[l.Port] = true
		w.Ports = append(w.Ports, install.GatewayPort{Name: portName(l.Name, l.Port), Port: l.Port, Target: target})
		if target == passthroughPort && expose == fmt.Sprint(l.Port) {
			for _, host := range []struct{ name, port string }{{"istiod", "15012"}, {install.BrokerName, "443"}} {
				name := host.name + "." + ns + ".svc"
				w.TLSRoutes[name] = name + ":" + host.port
			}
		}
	}
	if len(w.Ports) == 0 && d.refused == nil {
		d.refused = diag.New(diag.GatewayListenerRefused, "no listener can be served")
	}
	d.workload = w
	return d
}

// Ports of ztunnel's gateway role.
const (
	hbonePort       = 15008
	passthroughPort = 15012
)

func listenerTarget(l kube.GatewayListener) (int32, *diag.Error) {
	mode := ""
	if l.TLS != nil {
		mode = l.TLS.Mode
	}
	switch {
	case l.Protocol == "HBONE":
		return hbonePort, nil
	case l.Protocol == "TLS" && mode == "Passthrough":
		return passthroughPort, nil
	case l.Protocol == "TLS":
		return 0, diag.Newf(diag.GatewayListenerRefused, "listener %s: TLS mode %q, want Passthrough", l.Name, mode)
	}
	return 0, diag.Newf(diag.GatewayListenerRefused, "listener %s: protocol %q", l.Name, l.Protocol)
}

// portName makes a Service's port name of a listener's, which may be longer or contain dots.
func portName(listener string, port int32) string {
	if len(listener) <= 15 && !strings.Contains(listener, ".") {
		return listener
	}
	return fmt.Sprintf("port-%d", port)
}

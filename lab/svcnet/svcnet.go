// Package svcnet makes the Services of the lab's Kubernetes work without kube-proxy, a cloud controller or CoreDNS:
// cluster, node-port and load-balancer addresses are translated by nftables in the lab's root network namespace,
// Services of type LoadBalancer get an address, and a resolver answers the names of Services and pods.
//
// What is to be done is worked out by pure functions from the Services and EndpointSlices (Frontends, Assign and the
// zone); Network watches, applies and answers.
package svcnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// retryAfter is the pause before a change that could not be applied is tried again.
const retryAfter = 500 * time.Millisecond

// Config says which network to serve.
type Config struct {
	// Client watches Services and EndpointSlices and writes the status of Services. It is required.
	Client kubernetes.Interface
	// Interface carries the load-balancer addresses and the route to the service network. It is required.
	Interface string
	// NodeAddr answers on node ports; the zero value serves none.
	NodeAddr netip.Addr
	// ServiceNetwork holds all cluster addresses. It is required.
	ServiceNetwork netip.Prefix
	// LoadBalancers is the pool of load-balancer addresses. It is required.
	LoadBalancers netip.Prefix
	// DNS is where the resolver listens, on UDP and TCP. It is required; port 0 chooses one.
	DNS netip.AddrPort
	// ClusterDomain is the domain of the Services; empty means cluster.local.
	ClusterDomain string
	// Log receives changes and what could not be applied. It is required.
	Log *slog.Logger
}

// Network serves the Services of one lab.
type Network struct {
	cfg      Config
	resolver resolver
	packets  net.PacketConn
	streams  net.Listener

	factory  informers.SharedInformerFactory
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
	changed  chan struct{} // has one slot: changes that come while one is being applied are applied together
	synced   chan struct{}

	installed []Frontend // the rules in force; only the apply loop touches these
	addresses []netip.Addr
	pending   map[types.NamespacedName]netip.Addr // assigned, but not in the cache yet
}

// New opens the resolver's sockets and returns a Network that Run runs.
func New(cfg Config) (*Network, error) {
	switch {
	case cfg.Client == nil:
		return nil, errors.New("svcnet: Config.Client is required")
	case cfg.Interface == "":
		return nil, errors.New("svcnet: Config.Interface is required")
	case !cfg.ServiceNetwork.IsValid():
		return nil, errors.New("svcnet: Config.ServiceNetwork is required")
	case !cfg.LoadBalancers.IsValid():
		return nil, errors.New("svcnet: Config.LoadBalancers is required")
	case !cfg.DNS.IsValid():
		return nil, errors.New("svcnet: Config.DNS is required")
	case cfg.Log == nil:
		return nil, errors.New("svcnet: Config.Log is required")
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	n := &Network{cfg: cfg, changed: make(chan struct{}, 1), synced: make(chan struct{}), pending: map[types.NamespacedName]netip.Addr{}}
	var err error
	if n.packets, n.streams, err = listen(cfg.DNS); err != nil {
		return nil, err
	}
	n.factory = informers.NewSharedInformerFactory(cfg.Client, 0)
	services, endpointSlices := n.factory.Core().V1().Services(), n.factory.Discovery().V1().EndpointSlices()
	n.services, n.slices = services.Lister(), endpointSlices.Lister()
	poke := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { n.poke() }, UpdateFunc: func(any, any) { n.poke() }, DeleteFunc: func(any) { n.poke() },
	}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), endpointSlices.Informer()} {
		if _, err := informer.AddEventHandler(poke); err != nil {
			return nil, errors.Join(fmt.Errorf("watch services: %w", err), n.packets.Close(), n.streams.Close())
		}
	}
	return n, nil
}

// DNSAddr is where the resolver listens.
func (n *Network) DNSAddr() netip.AddrPort {
	a, _ := n.packets.LocalAddr().(*net.UDPAddr) // listen made a UDP socket
	return a.AddrPort()
}

// Synced is closed when the Services that existed at the start have been applied.
func (n *Network) Synced() <-chan struct{} { return n.synced }

// Run serves until ctx ends. The rules and addresses stay: they end with the network namespace.
func (n *Network) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.resolver.serve(ctx, n.packets, n.streams) })
	group.Go(func() error {
		if err := routeNotBridge(); err != nil {
			return err
		}
		if err := addRoute(n.cfg.Interface, n.cfg.ServiceNetwork); err != nil {
			return err
		}
		n.factory.Start(ctx.Done())
		defer n.factory.Shutdown()
		for _, ok := range n.factory.WaitForCacheSync(ctx.Done()) {
			if !ok {
				return nil // only ctx ends the wait
			}
		}
		n.applyLoop(ctx)
		return nil
	})
	return group.Wait()
}

func (n *Network) poke() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// applyLoop applies the state of the caches whenever it has changed, and again after a failure.
func (n *Network) applyLoop(ctx context.Context) {
	first := true
	for {
		var retry <-chan time.Time
		if err := n.apply(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Log.Warn("service network not applied", slog.Any("error", err))
			retry = time.After(retryAfter)
		} else if first && err == nil {
			first = false
			close(n.synced)
		}
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-retry:
		}
	}
}

// apply brings resolver, addresses and rules to the state of the caches.
func (n *Network) apply(ctx context.Context) error {
	services, err := n.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	endpointSlices, err := n.slices.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list endpoint slices: %w", err)
	}
	n.resolver.zone.Store(newZone(n.cfg.ClusterDomain, services, endpointSlices))

	// The addresses first: a Service must not show an address that does not answer yet. The status that assign writes
	// comes back as a change of the Service, which then adds its address and rules.
	errs := []error{n.applyAddresses(services)}
	frontends := Frontends(services, endpointSlices, n.cfg.NodeAddr)
	if n.installed == nil || !reflect.DeepEqual(frontends, n.installed) {
		if err := install(frontends, n.cfg.ServiceNetwork); err != nil {
			errs = append(errs, err)
		} else {
			n.installed = append(make([]Frontend, 0, len(frontends)), frontends...)
			n.cfg.Log.Info("service rules installed", slog.Int("frontends", len(frontends)), slog.Int("services", len(services)))
		}
	}
	return errors.Join(append(errs, n.assign(ctx, services))...)
}

// applyAddresses puts the load-balancer addresses in use on the interface and takes the others off.
func (n *Network) applyAddresses(services []*corev1.Service) error {
	var wanted []netip.Addr
	for _, s := range services {
		for _, a := range loadBalancerIPs(s) {
			if n.cfg.LoadBalancers.Contains(a) {
				wanted = append(wanted, a)
			}
		}
	}
	slices.SortFunc(wanted, netip.Addr.Compare)
	wanted = slices.Compact(wanted)
	if slices.Equal(wanted, n.addresses) {
		return nil
	}
	link, err := netlink.LinkByName(n.cfg.Interface)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", n.cfg.Interface, err)
	}
	for _, a := range n.addresses {
		if !slices.Contains(wanted, a) {
			if err := netlink.AddrDel(link, hostAddr(a)); err != nil {
				return fmt.Errorf("remove load-balancer address %s: %w", a, err)
			}
		}
	}
	for _, a := range wanted {
		if err := netlink.AddrReplace(link, hostAddr(a)); err != nil {
			return fmt.Errorf("add load-balancer address %s: %w", a, err)
		}
	}
	n.addresses = wanted
	return nil
}

// assign writes the load-balancer addresses that Services gain or lose to their status.
func (n *Network) assign(ctx context.Context, services []*corev1.Service) error {
	known := map[types.NamespacedName]bool{}
	for _, s := range services {
		known[nameOf(s)] = len(loadBalancerIPs(s)) == 0
	}
	for name := range n.pending {
		if !known[name] { // gone, or its address has arrived in the cache
			delete(n.pending, name)
		}
	}
	assignments, err := Assign(services, n.cfg.LoadBalancers, n.pending)
	errs := []error{err}
	for _, a := range assignments {
		status := corev1.LoadBalancerStatus{}
		if a.Addr.IsValid() {
			mode := corev1.LoadBalancerIPModeVIP
			status.Ingress = []corev1.LoadBalancerIngress{{IP: a.Addr.String(), IPMode: &mode}}
		}
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"loadBalancer": map[string]any{"ingress": status.Ingress}}})
		if err != nil {
			return fmt.Errorf("encode status: %w", err)
		}
		_, err = n.cfg.Client.CoreV1().Services(a.Namespace).Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		if err != nil {
			errs = append(errs, fmt.Errorf("write load-balancer address of %s/%s: %w", a.Namespace, a.Name, err))
			continue
		}
		if a.Addr.IsValid() {
			n.pending[types.NamespacedName{Namespace: a.Namespace, Name: a.Name}] = a.Addr
		}
		n.cfg.Log.Info("load-balancer address assigned",
			slog.String("namespace", a.Namespace), slog.String("service", a.Name), slog.String("addr", a.Addr.String()))
	}
	return errors.Join(errs...)
}

// routeNotBridge keeps the kernel from applying the rules to frames that a bridge carries, where it has that feature
// and, as is its default, switches it on. A packet would then be translated within the bridge and could not go back
// through the port that it came from, which is the way of a client that reaches itself by its Service.
func routeNotBridge() error {
	err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep the bridge out of the service rules: %w", err)
	}
	return nil
}

// addRoute gives the service network a route, because the kernel looks for one before it translates the address of a
// local connection.
func addRoute(name string, network netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Scope:     netlink.SCOPE_LINK,
		Dst:       &net.IPNet{IP: network.Masked().Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), 32)},
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", network, err)
	}
	return nil
}

func hostAddr(a netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}
}

package svcnet

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Frontend is one address and port of a Service and where its connections go. Without backends they are refused.
type Frontend struct {
	Addr     netip.AddrPort
	UDP      bool
	Backends []netip.AddrPort
}

// serviceKey names a Service.
type serviceKey struct{ namespace, name string }

func keyOf(s *corev1.Service) serviceKey { return serviceKey{s.Namespace, s.Name} }

// endpoints holds the EndpointSlices by the Service they belong to.
type endpoints map[serviceKey]group

func groupSlices(all []*discoveryv1.EndpointSlice) endpoints {
	grouped := endpoints{}
	for _, s := range all {
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" && s.AddressType == discoveryv1.AddressTypeIPv4 {
			key := serviceKey{s.Namespace, name}
			grouped[key] = append(grouped[key], s)
		}
	}
	return grouped
}

// Frontends works out what the packet filter must do for the Services. nodeAddr, when valid, also answers on node
// ports. The result is sorted, so that equal inputs give equal rules.
func Frontends(services []*corev1.Service, slicesOf []*discoveryv1.EndpointSlice, nodeAddr netip.Addr) []Frontend {
	grouped := groupSlices(slicesOf)
	var all []Frontend
	for _, s := range services {
		addrs := append(clusterIPs(s), loadBalancerIPs(s)...)
		for i := range s.Spec.Ports {
			port := &s.Spec.Ports[i]
			if port.Protocol == corev1.ProtocolSCTP {
				continue
			}
			udp := port.Protocol == corev1.ProtocolUDP
			backends := grouped[keyOf(s)].backends(port)
			for _, a := range addrs {
				all = append(all, Frontend{Addr: netip.AddrPortFrom(a, uint16(port.Port)), UDP: udp, Backends: backends})
			}
			if port.NodePort != 0 && nodeAddr.IsValid() {
				all = append(all, Frontend{Addr: netip.AddrPortFrom(nodeAddr, uint16(port.NodePort)), UDP: udp, Backends: backends})
			}
		}
	}
	slices.SortFunc(all, func(a, b Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(btoi(a.UDP), btoi(b.UDP)))
	})
	return all
}

// group is the EndpointSlices of one Service.
type group []*discoveryv1.EndpointSlice

// backends returns where connections to the port go: ready endpoints, by the name of the port.
func (g group) backends(port *corev1.ServicePort) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range g {
		for _, p := range s.Ports {
			if p.Port == nil || valueOr(p.Name, "") != port.Name || valueOr(p.Protocol, corev1.ProtocolTCP) != protocolOf(port) {
				continue
			}
			for i := range s.Endpoints {
				for _, a := range readyAddrs(&s.Endpoints[i]) {
					all = append(all, netip.AddrPortFrom(a, uint16(*p.Port)))
				}
			}
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// addrs returns the addresses of all ready endpoints.
func (g group) addrs() []netip.Addr {
	var all []netip.Addr
	for _, s := range g {
		for i := range s.Endpoints {
			all = append(all, readyAddrs(&s.Endpoints[i])...)
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

func readyAddrs(e *discoveryv1.Endpoint) []netip.Addr {
	if !valueOr(e.Conditions.Ready, true) {
		return nil
	}
	var all []netip.Addr
	for _, text := range e.Addresses {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
			all = append(all, a)
		}
	}
	return all
}

// clusterIPs returns the IPv4 cluster addresses of a Service; a headless Service has none.
func clusterIPs(s *corev1.Service) []netip.Addr {
	var all []netip.Addr
	for _, text := range s.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil && a.Is4() {
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		if a, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil && a.Is4() {
			all = append(all, a)
		}
	}
	return all
}

// loadBalancerIPs returns the addresses that the status of a Service of type LoadBalancer has.
func loadBalancerIPs(s *corev1.Service) []netip.Addr {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var all []netip.Addr
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(ingress.IP); err == nil && a.Is4() {
			all = append(all, a)
		}
	}
	return all
}

func protocolOf(p *corev1.ServicePort) corev1.Protocol {
	return cmp.Or(p.Protocol, corev1.ProtocolTCP)
}

func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

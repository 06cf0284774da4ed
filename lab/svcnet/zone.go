package svcnet

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// target is where a SRV record points.
type target struct {
	name string
	port uint16
}

// record is what a name stands for. A record without content is a name that exists only as part of longer ones.
type record struct {
	addrs []netip.Addr
	alias string // of a Service of type ExternalName
	srv   []target
	ptr   string
}

// zone is everything the resolver knows, by absolute lower-case name. It never changes once built.
type zone struct {
	cluster string // for example "cluster.local."
	records map[string]record
}

// newZone builds the zone of the Services, as the Kubernetes DNS specification (version 1.1.0) lays it out.
func newZone(cluster string, services []*corev1.Service, slicesOf []*discoveryv1.EndpointSlice) *zone {
	z := &zone{cluster: dns.Fqdn(strings.ToLower(cluster)), records: map[string]record{}}
	z.records[z.cluster] = record{}
	z.records["svc."+z.cluster] = record{}
	z.records["pod."+z.cluster] = record{}
	grouped := groupSlices(slicesOf)
	for _, s := range services {
		namespace := s.Namespace + ".svc." + z.cluster
		z.records[namespace] = record{}
		z.addService(s, grouped[keyOf(s)], s.Name+"."+namespace)
	}
	return z
}

func (z *zone) addService(s *corev1.Service, slicesOf group, name string) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		z.records[name] = record{alias: dns.Fqdn(s.Spec.ExternalName)}
		return
	}
	if addrs := clusterIPs(s); len(addrs) > 0 {
		z.records[name] = record{addrs: addrs}
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			z.addSRV(name, p.Name, protocolOf(p), []target{{name, uint16(p.Port)}})
		}
		for _, a := range addrs {
			z.addPTR(a, name)
		}
		return
	}
	z.addHeadless(s, slicesOf, name)
}

// addHeadless adds a Service without a cluster address: its name stands for all ready endpoints, and every endpoint
// has a name of its own.
func (z *zone) addHeadless(s *corev1.Service, slicesOf group, name string) {
	z.records[name] = record{addrs: slicesOf.addrs()}
	srv := map[string][]target{}
	for _, slice := range slicesOf {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			addrs := readyAddrs(e)
			if s.Spec.PublishNotReadyAddresses {
				ready := *e
				ready.Conditions.Ready = nil
				addrs = readyAddrs(&ready)
			}
			for _, a := range addrs {
				own := valueOr(e.Hostname, strings.ReplaceAll(a.String(), ".", "-")) + "." + name
				z.records[own] = record{addrs: []netip.Addr{a}}
				z.addPTR(a, own)
				for _, p := range slice.Ports {
					if p.Port != nil && valueOr(p.Name, "") != "" {
						label := srvLabel(*p.Name, valueOr(p.Protocol, corev1.ProtocolTCP))
						srv[label] = append(srv[label], target{own, uint16(*p.Port)})
					}
				}
			}
		}
	}
	for label, targets := range srv {
		z.records[label+"."+name] = record{srv: targets}
	}
}

func (z *zone) addSRV(name, port string, protocol corev1.Protocol, targets []target) {
	if port != "" {
		z.records[srvLabel(port, protocol)+"."+name] = record{srv: targets}
	}
}

func srvLabel(port string, protocol corev1.Protocol) string {
	return "_" + strings.ToLower(port) + "._" + strings.ToLower(string(protocol))
}

func (z *zone) addPTR(a netip.Addr, name string) {
	if reverse, err := dns.ReverseAddr(a.String()); err == nil {
		z.records[reverse] = record{ptr: name}
	}
}

// lookup returns what a name stands for. Names that hold an address, those of pods and of the VPC's instances, need no
// record.
func (z *zone) lookup(name string) (record, bool) {
	name = strings.ToLower(dns.Fqdn(name))
	if r, ok := z.records[name]; ok {
		return r, true
	}
	labels := dns.SplitDomainName(name)
	if len(labels) == 0 {
		return record{}, false
	}
	if rest, ok := strings.CutSuffix(name, ".pod."+z.cluster); ok && strings.Count(rest, ".") == 1 {
		if a, err := dashedAddr(labels[0]); err == nil {
			return record{addrs: []netip.Addr{a}}, true
		}
	}
	if host, ok := strings.CutPrefix(labels[0], "ip-"); ok && strings.HasSuffix(name, ".compute.internal.") {
		if a, err := dashedAddr(host); err == nil {
			return record{addrs: []netip.Addr{a}}, true
		}
	}
	return record{}, false
}

// dashedAddr reads an IPv4 address written with dashes.
func dashedAddr(label string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", "."))
	if err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("%q does not hold an address", label)
	}
	return a, nil
}

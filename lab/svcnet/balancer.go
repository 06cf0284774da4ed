package svcnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Assignment is the load-balancer address that a Service is to have. An invalid Addr takes the address away.
type Assignment struct {
	Namespace, Name string
	Addr            netip.Addr
}

// Assign works out which Services need a load-balancer address and which must lose theirs. An address that a Service
// has already is never changed, so that assigning is stable over restarts. Services that do not fit into pool any more
// are named in the error; the assignments are valid all the same. pending holds what was assigned before but does not
// show in services yet.
func Assign(services []*corev1.Service, pool netip.Prefix, pending map[types.NamespacedName]netip.Addr) ([]Assignment, error) {
	used := map[netip.Addr]bool{}
	var waiting []*corev1.Service
	var out []Assignment
	for _, s := range services {
		current := statusIPs(s, pool)
		switch {
		case s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.DeletionTimestamp != nil:
			if len(current) > 0 && s.DeletionTimestamp == nil {
				out = append(out, Assignment{Namespace: s.Namespace, Name: s.Name})
			}
		case s.Spec.LoadBalancerClass != nil: // another controller's
		case len(current) > 0:
			used[current[0]] = true
		case pending[nameOf(s)].IsValid():
			used[pending[nameOf(s)]] = true
		default:
			waiting = append(waiting, s)
		}
	}
	slices.SortFunc(waiting, func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	var unserved []string
	for _, s := range waiting {
		a, ok := choose(s, pool, used)
		if !ok {
			unserved = append(unserved, s.Namespace+"/"+s.Name)
			continue
		}
		used[a] = true
		out = append(out, Assignment{Namespace: s.Namespace, Name: s.Name, Addr: a})
	}
	if len(unserved) > 0 {
		return out, fmt.Errorf("no load-balancer address of %s is free for %q", pool, unserved)
	}
	return out, nil
}

// choose returns the address that the Service asks for, or the first free one.
func choose(s *corev1.Service, pool netip.Prefix, used map[netip.Addr]bool) (netip.Addr, bool) {
	if wanted, err := netip.ParseAddr(s.Spec.LoadBalancerIP); err == nil {
		return wanted, pool.Contains(wanted) && !used[wanted]
	}
	// The first address names the network, the last is the broadcast address.
	for a := pool.Masked().Addr().Next(); pool.Contains(a.Next()); a = a.Next() {
		if !used[a] {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func nameOf(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

func statusIPs(s *corev1.Service, pool netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(ingress.IP); err == nil && pool.Contains(a) {
			all = append(all, a)
		}
	}
	return all
}

package eastwest

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// addressesOf reads the addresses that a load balancer gave to a Service.
func addressesOf(svc *kube.Object) []kube.GatewayAddress {
	if svc == nil {
		return nil
	}
	var s struct {
		Status struct {
			LoadBalancer struct {
				Ingress []struct {
					IP       string `json:"ip"`
					Hostname string `json:"hostname"`
				} `json:"ingress"`
			} `json:"loadBalancer"`
		} `json:"status"`
	}
	if err := kube.Decode(svc, &s); err != nil {
		return nil
	}
	var out []kube.GatewayAddress
	for _, in := range s.Status.LoadBalancer.Ingress {
		if _, err := netip.ParseAddr(in.IP); err == nil {
			out = append(out, kube.GatewayAddress{Type: "IPAddress", Value: in.IP})
		} else if in.Hostname != "" {
			out = append(out, kube.GatewayAddress{Type: "Hostname", Value: in.Hostname})
		}
		if len(out) == 16 { // the CRD's own limit
			break
		}
	}
	return out
}

func availableOf(dep *kube.Object) bool {
	if dep == nil {
		return false
	}
	var d struct {
		Status struct {
			AvailableReplicas int32 `json:"availableReplicas"`
		} `json:"status"`
	}
	return kube.Decode(dep, &d) == nil && d.Status.AvailableReplicas > 0
}

// buildStatus is pure: what was decided and what is there in, the Gateway's status out.
//
//	                         Accepted                 Programmed
//	refused                  False Invalid            False Invalid
//	write failed             True  Accepted           False Pending
//	no address yet           True  Accepted           False AddressNotAssigned
//	address, no pod ready    True  Accepted           False NoResources
//	address and pod          True  Accepted           True  Programmed
//
// Accepted becomes ListenersNotValid, still True, when some but not all listeners are refused.
func buildStatus(gw kube.Gateway, d decision, addresses []kube.GatewayAddress, available bool, failed error) kube.GatewayStatus {
	gen := gw.Metadata.Generation
	cond := func(kind string, ok bool, reason, message string) kube.Condition {
		status := "False"
		if ok {
			status = "True"
		}
		if len(message) > 32<<10 {
			message = message[:32<<10]
		}
		return kube.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: gen}
	}
	st := kube.GatewayStatus{Addresses: addresses, Listeners: []kube.GatewayListenerStatus{}}
	bad := 0
	for _, problem := range d.listeners {
		if problem != nil {
			bad++
		}
	}
	accepted := cond("Accepted", true, "Accepted", "served by isthmus-controller")
	if bad > 0 {
		accepted = cond("Accepted", true, "ListenersNotValid", fmt.Sprintf("%d of %d listeners are not served", bad, len(d.listeners)))
	}
	programmed := cond("Programmed", true, "Programmed", "the gateway has an address and serves it")
	switch {
	case d.refused != nil:
		message := d.refused.Error() + ". Fix: " + d.refused.Fix
		accepted = cond("Accepted", false, "Invalid", message)
		programmed = cond("Programmed", false, "Invalid", message)
		st.Addresses = nil
	case failed != nil:
		programmed = cond("Programmed", false, "Pending", failed.Error())
	case len(addresses) == 0:
		programmed = cond("Programmed", false, "AddressNotAssigned", diag.New(diag.GatewayAddressPending, "").Error())
	case !available:
		programmed = cond("Programmed", false, "NoResources", "no pod of the gateway is available yet")
	}
	st.Conditions = []kube.Condition{accepted, programmed}
	for _, l := range gw.Spec.Listeners {
		ls := kube.GatewayListenerStatus{Name: l.Name, SupportedKinds: []map[string]string{}}
		ok := d.refused == nil
		if problem := d.listeners[l.Name]; problem != nil {
			ls.Conditions = []kube.Condition{
				cond("Accepted", false, "UnsupportedProtocol", problem.Error()),
				cond("Programmed", false, "Invalid", problem.Error()),
			}
		} else {
			ls.Conditions = []kube.Condition{
				cond("Accepted", ok, reasonOf(ok, "Accepted", "Invalid"), ""),
				cond("Programmed", ok && programmed.Status == "True", reasonOf(ok && programmed.Status == "True", "Programmed", "Pending"), ""),
			}
		}
		ls.Conditions = append(ls.Conditions,
			cond("ResolvedRefs", true, "ResolvedRefs", ""),
			cond("Conflicted", false, "NoConflicts", ""))
		st.Listeners = append(st.Listeners, ls)
	}
	return st
}

func reasonOf(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

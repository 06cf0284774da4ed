// Package why answers, before anybody tries, whether a connection would be let pass, and which policy and rule says so.
//
// It decides nothing of its own: the policies that apply are those that state selects for the data path, and the verdict
// is policy.Evaluate's. The package is pure.
package why

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/internal/proxy/route"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// Limits of a question and its answer.
const (
	maxText      = 512 // bytes of one part of a question
	maxWorkloads = 100 // that one answer looks at
)

// Query is a question.
type Query struct {
	Network string // of the proxy that is asked: addresses are of it
	Domain  string // of Kubernetes' names; "" means cluster.local

	// Source is who connects: a SPIFFE id, an address, a hostname, or NAMESPACE/NAME of a workload, of what owns it, or
	// of a service, whose workloads have one identity as a rule.
	Source string
	// SourceAddr is from where, for policies about addresses; "" means the source's own, if it is known.
	SourceAddr string
	// Destination is where to: ADDRESS:PORT, HOSTNAME:PORT or NAMESPACE/NAME:PORT.
	Destination string

	// AllowMissing says that policies which a workload names and which are not known are passed over.
	AllowMissing bool
}

// Error is a question that cannot be answered.
type Error struct {
	NotFound bool // it is about something that the proxy does not know; otherwise it is malformed
	Text     string
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Status returns the HTTP status that says the same.
func (e *Error) Status() int {
	if e.NotFound {
		return 404
	}
	return 400
}

func malformed(format string, args ...any) error { return &Error{Text: fmt.Sprintf(format, args...)} }
func unknown(format string, args ...any) error {
	return &Error{NotFound: true, Text: fmt.Sprintf(format, args...)}
}

// Explain answers q.
func Explain(s *state.Snapshot, q Query) (*Answer, error) {
	for name, text := range map[string]string{"source": q.Source, "sourceAddress": q.SourceAddr, "destination": q.Destination} {
		if len(text) > maxText {
			return nil, malformed("%s is longer than %d bytes", name, maxText)
		}
	}
	if q.Domain == "" {
		q.Domain = mesh.DefaultTrustDomain
	}
	src, err := q.source(s)
	if err != nil {
		return nil, err
	}
	a := &Answer{Source: src.view(), Destination: Destination{Asked: q.Destination}, Workloads: []Workload{}}
	targets, svc, err := q.targets(s)
	if err != nil {
		return nil, err
	}
	if svc != nil {
		a.Destination.Service = svc.Key.String()
	}
	if src.note != "" {
		a.Notes = append(a.Notes, src.note)
	}
	if waypoint := waypointOf(svc, targets); waypoint != "" {
		a.Notes = append(a.Notes, "connections go through the waypoint "+waypoint+", which decides too, and whose identity is what the destination sees")
	}
	slices.SortFunc(targets, func(x, y route.Target) int { return strings.Compare(x.Workload.UID, y.Workload.UID) })
	if a.More = len(targets) - maxWorkloads; a.More > 0 {
		targets = targets[:maxWorkloads]
	}
	a.More = max(a.More, 0)
	for _, t := range targets {
		w, byAddress := q.judge(s, src, t)
		a.Workloads = append(a.Workloads, w)
		if byAddress && !src.addr.IsValid() && !slices.Contains(a.Notes, noteAddress) {
			a.Notes = append(a.Notes, noteAddress)
		}
	}
	a.conclude()
	return a, nil
}

// source is who connects, as policies see it.
type source struct {
	id   mesh.Identity // zero without a tunnel
	addr netip.Addr    // invalid when it is not known
	w    *mesh.Workload
	note string
}

func (q Query) source(s *state.Snapshot) (src source, err error) {
	switch {
	case q.Source == "":
		return src, malformed("source is missing")
	case strings.HasPrefix(q.Source, "spiffe://"):
		if src.id, err = mesh.ParseIdentity(q.Source); err != nil {
			return src, malformed("source: %v", err)
		}
	default:
		if src, err = q.sourceWorkload(s); err != nil {
			return src, err
		}
	}
	if q.SourceAddr != "" {
		if src.addr, err = netip.ParseAddr(q.SourceAddr); err != nil {
			return src, malformed("sourceAddress: %q is not an address", q.SourceAddr)
		}
		src.addr = src.addr.Unmap()
	}
	return src, nil
}

func (q Query) sourceWorkload(s *state.Snapshot) (src source, err error) {
	if addr, err := netip.ParseAddr(q.Source); err == nil {
		src.addr = addr.Unmap()
		if src.w = s.WorkloadAt(mesh.NetworkAddress{Network: q.Network, Addr: src.addr}); src.w == nil {
			src.note = "the mesh does not know the source: it has no identity"
			return src, nil
		}
	} else if src.w, err = q.find(s, q.Source); err != nil {
		return src, err
	}
	if !src.addr.IsValid() && len(src.w.Addresses) > 0 {
		src.addr = src.w.Addresses[0]
	}
	if src.w.Protocol == mesh.HBONE {
		src.id = src.w.Identity()
	} else {
		src.note = "the source has no proxy: it connects in the clear, without an identity"
	}
	return src, nil
}

// find returns the workload that text names: itself, what owns it, or a service of which it is a part.
func (q Query) find(s *state.Snapshot, text string) (*mesh.Workload, error) {
	if namespace, name, ok := strings.Cut(text, "/"); ok {
		var owned *mesh.Workload
		for w := range s.Workloads() {
			if w.Namespace != namespace {
				continue
			}
			if w.Name == name {
				return w, nil
			}
			if owned == nil && w.WorkloadName == name {
				owned = w
			}
		}
		if owned != nil {
			return owned, nil
		}
	}
	svc := q.service(s, text)
	if svc == nil {
		return nil, unknown("source: no workload or service %q", text)
	}
	eps := s.Endpoints(svc.Key)
	if len(eps) == 0 {
		return nil, unknown("source: the service %s has no endpoints", svc.Key)
	}
	return slices.MinFunc(eps, func(a, b state.Endpoint) int { return strings.Compare(a.Workload.UID, b.Workload.UID) }).Workload, nil
}

// service returns the service with a hostname, also a Kubernetes name without its end, or NAMESPACE/NAME.
func (q Query) service(s *state.Snapshot, text string) *mesh.Service {
	if namespace, name, ok := strings.Cut(text, "/"); ok {
		for svc := range s.Services() {
			first, _, _ := strings.Cut(svc.Key.Hostname, ".")
			if svc.Key.Namespace == namespace && (svc.Name == name || first == name) {
				return svc
			}
		}
		return nil
	}
	host := strings.ToLower(strings.TrimSuffix(text, "."))
	for _, end := range []string{"", "." + q.Domain, ".svc." + q.Domain} {
		if all := s.ServicesByHost(host + end); len(all) > 0 {
			return all[0] // the canonical one
		}
	}
	return nil
}

// targets are where a connection can end.
func (q Query) targets(s *state.Snapshot) ([]route.Target, *mesh.Service, error) {
	i := strings.LastIndexByte(q.Destination, ':')
	if i <= 0 {
		return nil, nil, malformed("destination: %q is not ADDRESS:PORT, HOSTNAME:PORT or NAMESPACE/NAME:PORT", q.Destination)
	}
	host := strings.Trim(q.Destination[:i], "[]")
	n, err := strconv.ParseUint(q.Destination[i+1:], 10, 16)
	if err != nil || n == 0 {
		return nil, nil, malformed("destination: %q is not a port", q.Destination[i+1:])
	}
	port := uint16(n)
	var svc *mesh.Service
	if addr, err := netip.ParseAddr(host); err == nil {
		at := mesh.NetworkAddress{Network: q.Network, Addr: addr.Unmap()}
		if svc = s.ServiceAt(at, ""); svc == nil {
			w := s.WorkloadAt(at)
			if w == nil {
				return nil, nil, unknown("destination: no service or workload has the address %s: the mesh passes connections to it through", addr)
			}
			return []route.Target{{Workload: w, Addr: netip.AddrPortFrom(at.Addr, port)}}, nil, nil
		}
	} else if svc = q.service(s, host); svc == nil {
		w, err := q.find(s, host)
		if err != nil || len(w.Addresses) == 0 {
			return nil, nil, unknown("destination: no service or workload %q", host)
		}
		return []route.Target{{Workload: w, Addr: netip.AddrPortFrom(w.Addresses[0], port)}}, nil, nil
	}
	if _, known := svc.Ports[port]; !known {
		return nil, nil, unknown("destination: the service %s has no port %d", svc.Key, port)
	}
	return route.Targets(s, svc, q.Network, port), svc, nil
}

func waypointOf(svc *mesh.Service, targets []route.Target) string {
	switch {
	case svc != nil && svc.Waypoint != nil:
		return svc.Waypoint.Destination()
	case svc == nil && len(targets) == 1 && targets[0].Workload.Waypoint != nil:
		return targets[0].Workload.Waypoint.Destination()
	}
	return ""
}

const noteAddress = "some policies look at the source's address, which was not given: they are judged as if it were in none of their ranges"

// judge asks the policies of one workload. byAddress reports that some of them look at the source's address.
func (q Query) judge(s *state.Snapshot, src source, t route.Target) (out Workload, byAddress bool) {
	c := policy.Connection{Source: src.id, SourceAddr: netip.AddrPortFrom(src.addr, 0), DestinationAddr: t.Addr}
	out = Workload{UID: t.Workload.UID, Name: t.Workload.Name, Namespace: t.Workload.Namespace, Address: t.Addr.String(), Protocol: protocol(t.Workload)}
	if t.Workload.Protocol != mesh.HBONE {
		c.Source = mesh.Identity{} // nobody there ends a tunnel
		out.Unenforced = "the destination has no proxy: nothing enforces policies there"
	}
	ps, missing := s.PoliciesFor(t.Workload)
	e := policy.Explain(ps, c)
	d := e.Decision
	if !q.AllowMissing {
		d = d.Without(missing)
	}
	out.Verdict, out.Reason, out.Rule = Denied, d.Reason, d.Rule
	if d.Allowed {
		out.Verdict, out.Reason = Allowed, reasonAllowed(d, ps)
	}
	if d.Policy != (mesh.PolicyKey{}) {
		out.Policy = d.Policy.String()
	}
	for _, k := range missing {
		out.MissingPolicies = append(out.MissingPolicies, k.String())
	}
	for _, v := range e.Verdicts {
		out.Policies = append(out.Policies, newPolicy(v))
		byAddress = byAddress || looksAtSource(v.Policy)
	}
	if out.Unenforced != "" {
		out.Verdict, out.Reason = Allowed, out.Unenforced
	}
	return out, byAddress
}

func looksAtSource(p *mesh.Policy) bool {
	for _, r := range p.Rules {
		for _, c := range r {
			if slices.ContainsFunc(c, func(m mesh.Match) bool { return len(m.SourceIPs) > 0 || len(m.NotSourceIPs) > 0 }) {
				return true
			}
		}
	}
	return false
}

func reasonAllowed(d policy.Decision, ps []*mesh.Policy) string {
	if d.Policy != (mesh.PolicyKey{}) {
		return d.Policy.String() + " allows it"
	}
	for _, p := range ps {
		if !p.DryRun {
			return "no policy denies, and no policy allows only some"
		}
	}
	return "no policy applies"
}

func protocol(w *mesh.Workload) string {
	if w.Protocol == mesh.HBONE {
		return "HBONE"
	}
	return "TCP"
}

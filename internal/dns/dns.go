// Package dns answers the names of mesh services with their virtual addresses and forwards everything else.
//
// A Resolver decides; it does no I/O except when it forwards. A Server speaks UDP and TCP in front of a Resolver.
// The rules are ztunnel's:
//
//	aliases   the name itself, its Kubernetes expansions by label count, the name without a search domain
//	match     exact, then *.rest, for each alias in turn
//	choice    visible to the client; its namespace > canonical > preferred namespace > first
//	answer    VIPs of the family asked for, in the client's network; headless: one address per endpoint
//	          found but nothing of that family: an empty answer, not NXDOMAIN
//	else      forwarded to the upstream resolvers
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// TTL of the records that are answered from the mesh.
const TTL = 30 * time.Second

// View is one consistent view of the mesh.
type View interface {
	// ServicesByHost returns the services of exactly this hostname.
	ServicesByHost(host string) []*mesh.Service
	// EndpointWorkloads returns the workloads behind a service.
	EndpointWorkloads(k mesh.ServiceKey) []*mesh.Workload
}

// Metrics counts questions. Its methods must accept any string.
type Metrics interface {
	DNSRequest(queryType, protocol, canonicalName, canonicalRevision string)
	DNSUpstream(queryType, protocol, canonicalName, canonicalRevision string, took time.Duration, err error)
	// LimitReached counts a question that a named limit refused.
	LimitReached(limit string)
}

// Config configures a Resolver.
type Config struct {
	View   func() View                                                       // required
	Client func(ctx context.Context) (*mesh.Workload, error)                 // required; who asks
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error) // how upstreams are reached; nil means directly

	Domain             string           // "" means cluster.local
	Search             []string         // search domains; nil means the client's Kubernetes ones
	PreferredNamespace string           // breaks ties after the client's own namespace
	DisableIPv6        bool             // AAAA answers are empty
	Upstreams          []netip.AddrPort // where other names are asked for
	UpstreamTimeout    time.Duration    // 0 means 5s per upstream
	MaxForwards        int              // questions forwarded at once; 0 means 512
	Cache              *Cache           // of upstream answers; nil keeps none

	Metrics Metrics      // nil counts nothing
	Log     *slog.Logger // required
}

// Resolver answers names. It is safe for concurrent use.
type Resolver struct {
	cfg      Config
	forwards chan struct{} // one token per forwarded question
}

// ErrNoSuchHost says that a name exists neither in the mesh nor upstream, or has no address.
var ErrNoSuchHost = errors.New("no such host")

// New returns a Resolver.
func New(cfg Config) (*Resolver, error) {
	switch {
	case cfg.View == nil:
		return nil, errors.New("dns: Config.View is required")
	case cfg.Client == nil:
		return nil, errors.New("dns: Config.Client is required")
	case cfg.Log == nil:
		return nil, errors.New("dns: Config.Log is required")
	}
	if cfg.Domain == "" {
		cfg.Domain = mesh.DefaultTrustDomain
	}
	if cfg.UpstreamTimeout == 0 {
		cfg.UpstreamTimeout = 5 * time.Second
	}
	if cfg.MaxForwards == 0 {
		cfg.MaxForwards = defaultMaxForwards
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Metrics == nil {
		cfg.Metrics = noMetrics{}
	}
	return &Resolver{cfg: cfg, forwards: make(chan struct{}, cfg.MaxForwards)}, nil
}

type noMetrics struct{}

func (noMetrics) DNSRequest(_, _, _, _ string)                            {}
func (noMetrics) DNSUpstream(_, _, _, _ string, _ time.Duration, _ error) {}
func (noMetrics) LimitReached(string)                                     {}

// Limits of a Resolver and a Server.
const (
	defaultMaxForwards = 512  // questions forwarded at once
	defaultMaxQueries  = 1024 // questions in flight at once
	maxTCPQueries      = 128  // on one TCP connection
)

// Answer is what the mesh knows about a name.
type Answer struct {
	Service *mesh.Service
	Addrs   []netip.Addr // shuffled; may be empty
	CNAME   string       // the name without its search domain, when it was found through one; else ""
}

// Lookup answers a name from the mesh, or reports false when the name is not the mesh's. It does no I/O.
func (r *Resolver) Lookup(client *mesh.Workload, name string, ipv6 bool) (Answer, bool) {
	view := r.cfg.View()
	for _, a := range r.aliases(client.Namespace, canonicalName(name)) {
		svc, wildcard := r.find(view, client, a.name)
		if svc == nil {
			continue
		}
		ans := Answer{Service: svc, Addrs: r.addresses(view, client, svc, ipv6)}
		if a.stripped != "" && !wildcard {
			ans.CNAME = a.stripped
		}
		rand.Shuffle(len(ans.Addrs), func(i, j int) { ans.Addrs[i], ans.Addrs[j] = ans.Addrs[j], ans.Addrs[i] })
		return ans, true
	}
	return Answer{}, false
}

// Resolve returns the addresses of a host as an application behind this proxy sees them: mesh names first, then the
// upstream resolvers. When both families exist, IPv4 comes first if preferIPv4 is true.
func (r *Resolver) Resolve(ctx context.Context, host string, preferIPv4 bool) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	if !validName(host) {
		return nil, fmt.Errorf("resolve %q: not a domain name", host)
	}
	client, err := r.cfg.Client(ctx)
	if err != nil {
		return nil, err
	}
	order := [2]bool{!preferIPv4, preferIPv4} // ipv6?
	var out []netip.Addr
	var known bool
	for _, v6 := range order {
		if ans, ok := r.Lookup(client, host, v6); ok {
			known, out = true, append(out, ans.Addrs...)
		}
	}
	if known {
		if len(out) == 0 {
			return nil, fmt.Errorf("resolve %q: %w: the service has no usable address", host, ErrNoSuchHost)
		}
		return out, nil
	}
	return r.resolveUpstream(ctx, client, host, order)
}

func (r *Resolver) resolveUpstream(ctx context.Context, client *mesh.Workload, host string, order [2]bool) ([]netip.Addr, error) {
	var errs []error
	for _, v6 := range order {
		if v6 && r.cfg.DisableIPv6 {
			continue
		}
		qtype := mdns.TypeA
		if v6 {
			qtype = mdns.TypeAAAA
		}
		q := new(mdns.Msg).SetQuestion(mdns.Fqdn(host), qtype)
		resp, err := r.Forward(ctx, client, q, "udp")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if out := addressesOf(resp); len(out) > 0 {
			return out, nil
		}
	}
	if len(errs) > 0 {
		return nil, fmt.Errorf("resolve %q: %w", host, errors.Join(errs...))
	}
	return nil, fmt.Errorf("resolve %q: %w", host, ErrNoSuchHost)
}

func addressesOf(m *mdns.Msg) []netip.Addr {
	var out []netip.Addr
	for _, rr := range m.Answer {
		var ip net.IP
		switch rec := rr.(type) {
		case *mdns.A:
			ip = rec.A
		case *mdns.AAAA:
			ip = rec.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// find returns the service the client means by host: exact, then by ever wider wildcards.
func (r *Resolver) find(view View, client *mesh.Workload, host string) (svc *mesh.Service, wildcard bool) {
	if s := r.choose(view.ServicesByHost(host), client, host); s != nil {
		return s, false
	}
	for rest := host; ; {
		_, after, ok := strings.Cut(rest, ".")
		if !ok || after == "" {
			return nil, false
		}
		rest = after
		if s := r.choose(view.ServicesByHost("*."+rest), client, host); s != nil {
			return s, true
		}
	}
}

// choose picks one of several services of a hostname for a client.
func (r *Resolver) choose(candidates []*mesh.Service, client *mesh.Workload, _ string) *mesh.Service {
	var canonical, preferred, first *mesh.Service
	for _, s := range candidates {
		headless := len(s.VIPs) == 0
		if headless && !strings.HasSuffix(s.Key.Hostname, ".svc."+r.cfg.Domain) {
			continue
		}
		if s.NamespacePrivate && s.Key.Namespace != client.Namespace {
			continue
		}
		if s.Key.Namespace == client.Namespace {
			return s
		}
		if s.Canonical {
			canonical = s
		}
		if preferred == nil && r.cfg.PreferredNamespace != "" && s.Key.Namespace == r.cfg.PreferredNamespace {
			preferred = s
		}
		if first == nil {
			first = s
		}
	}
	for _, s := range []*mesh.Service{canonical, preferred, first} {
		if s != nil {
			return s
		}
	}
	return nil
}

func (r *Resolver) addresses(view View, client *mesh.Workload, s *mesh.Service, ipv6 bool) []netip.Addr {
	if ipv6 && r.cfg.DisableIPv6 {
		return nil
	}
	fits := func(a netip.Addr) bool { return a.Is6() == ipv6 && s.IPFamilies.Allows(a) }
	var out []netip.Addr
	if len(s.VIPs) > 0 {
		for _, v := range s.VIPs {
			if v.Network == client.Network && fits(v.Addr) {
				out = append(out, v.Addr)
			}
		}
		return out
	}
	for _, w := range view.EndpointWorkloads(s.Key) {
		if i := slices.IndexFunc(w.Addresses, fits); i >= 0 {
			out = append(out, w.Addresses[i])
		}
		if len(out) == maxHeadlessAnswers {
			break
		}
	}
	return out
}

// maxHeadlessAnswers keeps the answer of a large headless service within a DNS message.
const maxHeadlessAnswers = 1000

func canonicalName(s string) string {
	return strings.ToLower(strings.TrimSuffix(s, "."))
}

func validName(s string) bool {
	_, ok := mdns.IsDomainName(s)
	return ok && s != "" && !strings.ContainsAny(s, " \t\r\n\x00/")
}

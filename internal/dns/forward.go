package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// ErrNoUpstream says that a name is not the mesh's and nobody else can be asked.
var ErrNoUpstream = errors.New("no upstream resolver is configured")

// ErrBusy says that too many questions are being forwarded already.
var ErrBusy = errors.New("too many questions are being forwarded")

// Forward asks the upstream resolvers in turn until one answers. A truncated UDP answer is asked for again by TCP when
// the client itself came by TCP; a UDP client is told to do so by the flag.
func (r *Resolver) Forward(ctx context.Context, client *mesh.Workload, q *mdns.Msg, protocol string) (*mdns.Msg, error) {
	if len(r.cfg.Upstreams) == 0 {
		return nil, ErrNoUpstream
	}
	if m := r.cfg.Cache.get(q); m != nil {
		return m, nil
	}
	select {
	case r.forwards <- struct{}{}:
		defer func() { <-r.forwards }()
	default:
		r.cfg.Metrics.LimitReached("dns-forwards")
		return nil, ErrBusy
	}
	var name, revision string
	if client != nil {
		name, revision = client.CanonicalName, client.CanonicalRevision
	}
	start := time.Now()
	resp, err := r.forward(ctx, q, protocol)
	r.cfg.Metrics.DNSUpstream(queryType(q), protocol, name, revision, time.Since(start), err)
	if err == nil {
		r.cfg.Cache.put(q, resp)
	}
	return resp, err
}

func (r *Resolver) forward(ctx context.Context, q *mdns.Msg, protocol string) (*mdns.Msg, error) {
	out := q.Copy()
	out.Id = mdns.Id() // an upstream must not learn nor be confused by the application's id
	var errs []error
	for _, up := range r.cfg.Upstreams {
		resp, err := r.exchange(ctx, out, protocol, up)
		if err == nil {
			resp.Id = q.Id
			return resp, nil
		}
		errs = append(errs, fmt.Errorf("ask %s: %w", up, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (r *Resolver) exchange(ctx context.Context, q *mdns.Msg, protocol string, up netip.AddrPort) (*mdns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.UpstreamTimeout)
	defer cancel()
	conn, err := r.cfg.Dial(ctx, protocol, up.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := mdns.Conn{Conn: conn, UDPSize: udpSize(q)}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for range maxStrayAnswers {
		resp, err := c.ReadMsg()
		if err != nil {
			return nil, err
		}
		if resp.Id == q.Id && resp.Response && sameQuestion(q, resp) {
			return resp, nil
		}
	}
	return nil, errors.New("only answers to other questions arrived")
}

// maxStrayAnswers bounds how many answers of a wrong id are read before giving up.
const maxStrayAnswers = 8

func sameQuestion(q, resp *mdns.Msg) bool {
	if len(resp.Question) == 0 {
		return resp.Rcode != mdns.RcodeSuccess // FORMERR and the like may come without the question
	}
	a, b := q.Question[0], resp.Question[0]
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && canonicalName(a.Name) == canonicalName(b.Name)
}

func udpSize(q *mdns.Msg) uint16 {
	if opt := q.IsEdns0(); opt != nil {
		return max(opt.UDPSize(), mdns.MinMsgSize)
	}
	return mdns.MinMsgSize
}

func queryType(q *mdns.Msg) string {
	if len(q.Question) != 1 {
		return "unknown"
	}
	if s, ok := mdns.TypeToString[q.Question[0].Qtype]; ok {
		return s // a closed set: a client must not be able to invent label values
	}
	return "unknown"
}

// HostResolver resolves names outside the mesh with the same upstreams, for gateways that are known by name only.
func (r *Resolver) HostResolver() func(ctx context.Context, host string) ([]netip.Addr, error) {
	return func(ctx context.Context, host string) ([]netip.Addr, error) {
		return r.resolveUpstream(ctx, nil, host, [2]bool{false, true})
	}
}

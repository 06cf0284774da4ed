package svcnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// recordTTL is short, because Services come and go quickly in a lab.
	recordTTL = 5
	// maxAliases bounds how many aliases are followed for one answer.
	maxAliases = 8
	// dnsIdle is how long a TCP client may be silent.
	dnsIdle = 8 * time.Second
)

// resolver answers DNS from the current zone.
type resolver struct {
	zone atomic.Pointer[zone]
}

// listen opens the sockets of the resolver, so that a port in use is an error of the start and not of some goroutine.
func listen(addr netip.AddrPort) (net.PacketConn, net.Listener, error) {
	packets, err := net.ListenPacket("udp4", addr.String())
	if err != nil {
		return nil, nil, fmt.Errorf("listen for DNS: %w", err)
	}
	// The TCP socket takes the port that UDP got, in case the caller left the choice to the system.
	streams, err := net.Listen("tcp4", packets.LocalAddr().String())
	if err != nil {
		packets.Close()
		return nil, nil, fmt.Errorf("listen for DNS: %w", err)
	}
	return packets, streams, nil
}

// serve answers on both sockets until ctx ends, and closes them.
func (r *resolver) serve(ctx context.Context, packets net.PacketConn, streams net.Listener) error {
	servers := []*dns.Server{
		{PacketConn: packets, Handler: r},
		{Listener: streams, Handler: r, IdleTimeout: func() time.Duration { return dnsIdle }},
	}
	errs := make([]error, len(servers))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() {
			defer cancel() // one that ended ends the other
			errs[i] = s.ActivateAndServe()
		})
	}
	<-ctx.Done()
	packets.Close() // Shutdown would refuse a server that has not begun to serve yet; closing the socket always works
	streams.Close()
	wg.Wait()
	for i, err := range errs {
		if errors.Is(err, net.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// ServeDNS answers one query. It implements dns.Handler.
func (r *resolver) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := r.answer(query)
	size := dns.MaxMsgSize
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size = dns.MinMsgSize
		if edns := query.IsEdns0(); edns != nil {
			size = max(size, int(edns.UDPSize()))
			reply.SetEdns0(edns.UDPSize(), false)
		}
	}
	reply.Truncate(size)
	_ = w.WriteMsg(reply) // the client asks again when the answer is lost
}

// answer makes the reply to a query.
func (r *resolver) answer(query *dns.Msg) *dns.Msg {
	reply := &dns.Msg{}
	reply.SetReply(query)
	reply.Authoritative, reply.RecursionAvailable = true, true
	switch {
	case query.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	case len(query.Question) != 1:
		reply.Rcode = dns.RcodeFormatError
		return reply
	}
	z := r.zone.Load()
	if z == nil { // not synced yet: a client must ask again, not remember that the name does not exist
		reply.Rcode = dns.RcodeServerFailure
		return reply
	}
	question := query.Question[0]
	name, found := question.Name, false
	for range maxAliases {
		rec, ok := z.lookup(name)
		if !ok {
			break
		}
		found = true
		if rec.alias == "" {
			reply.Answer = append(reply.Answer, rec.resources(name, question.Qtype)...)
			reply.Extra = append(reply.Extra, z.glue(rec, question.Qtype)...)
			break
		}
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: rec.alias})
		name = rec.alias
	}
	if !found {
		reply.Rcode = dns.RcodeNameError
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{z.soa(question.Name)}
	}
	return reply
}

// resources returns the resource records of rec that a query of the type wants.
func (rec record) resources(name string, qtype uint16) []dns.RR {
	var all []dns.RR
	if qtype == dns.TypeA || qtype == dns.TypeANY {
		for _, a := range rec.addrs {
			all = append(all, &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()})
		}
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) // spreads clients that take the first
	}
	if qtype == dns.TypeSRV || qtype == dns.TypeANY {
		for _, t := range rec.srv {
			all = append(all, &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: t.port, Target: t.name})
		}
	}
	if (qtype == dns.TypePTR || qtype == dns.TypeANY) && rec.ptr != "" {
		all = append(all, &dns.PTR{Hdr: header(name, dns.TypePTR), Ptr: rec.ptr})
	}
	return all
}

// glue returns the addresses of the targets of SRV records, which saves the client a query.
func (z *zone) glue(rec record, qtype uint16) []dns.RR {
	if qtype != dns.TypeSRV {
		return nil
	}
	var all []dns.RR
	for _, t := range rec.srv {
		all = append(all, z.records[t.name].resources(t.name, dns.TypeA)...)
	}
	return all
}

// soa bounds how long a client remembers that there is no answer.
func (z *zone) soa(name string) dns.RR {
	origin := "."
	if strings.HasSuffix(strings.ToLower(name), "."+z.cluster) || strings.EqualFold(name, z.cluster) {
		origin = z.cluster
	}
	return &dns.SOA{
		Hdr: header(origin, dns.TypeSOA), Ns: "ns.dns." + z.cluster, Mbox: "hostmaster." + z.cluster,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: recordTTL,
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: recordTTL}
}

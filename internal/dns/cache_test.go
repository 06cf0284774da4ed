package dns

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

func question(name string, qtype uint16) *mdns.Msg { return new(mdns.Msg).SetQuestion(name, qtype) }

func reply(q *mdns.Msg, rcode int, ttls ...uint32) *mdns.Msg {
	m := new(mdns.Msg).SetRcode(q, rcode)
	for i, ttl := range ttls {
		m.Answer = append(m.Answer, &mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: ttl}, A: net.IPv4(192, 0, 2, byte(i))})
	}
	return m
}

func negative(q *mdns.Msg, rcode int, ttl, minimum uint32) *mdns.Msg {
	m := new(mdns.Msg).SetRcode(q, rcode)
	m.Ns = []mdns.RR{&mdns.SOA{Hdr: mdns.RR_Header{Name: "example.org.", Rrtype: mdns.TypeSOA, Class: mdns.ClassINET, Ttl: ttl}, Minttl: minimum}}
	return m
}

func TestCacheLifetime(t *testing.T) {
	q := question("a.example.org.", mdns.TypeA)
	truncated := reply(q, mdns.RcodeSuccess, 60)
	truncated.Truncated = true
	for name, c := range map[string]struct {
		answer *mdns.Msg
		want   time.Duration
	}{
		"least of the records":       {reply(q, mdns.RcodeSuccess, 60, 20, 90), 20 * time.Second},
		"never longer than the cap":  {reply(q, mdns.RcodeSuccess, 86400), maxCacheTTL},
		"TTL 0":                      {reply(q, mdns.RcodeSuccess, 0), 0},
		"no such name":               {negative(q, mdns.RcodeNameError, 20, 10), 10 * time.Second},
		"no such record":             {negative(q, mdns.RcodeSuccess, 10, 20), 10 * time.Second},
		"negative cap":               {negative(q, mdns.RcodeNameError, 3600, 3600), maxNegativeTTL},
		"negative without authority": {reply(q, mdns.RcodeNameError), 0},
		"failure":                    {reply(q, mdns.RcodeServerFailure), 0},
		"truncated":                  {truncated, 0},
	} {
		now := time.Unix(1000, 0)
		cache := NewCache(10)
		cache.now = func() time.Time { return now }
		cache.put(q, c.answer)
		if c.want == 0 {
			if cache.get(q) != nil {
				t.Errorf("%s: was kept", name)
			}
			continue
		}
		now = now.Add(c.want - time.Second)
		if cache.get(q) == nil {
			t.Errorf("%s: gone before %v", name, c.want)
		}
		now = now.Add(time.Second)
		if cache.get(q) != nil {
			t.Errorf("%s: still there after %v", name, c.want)
		}
	}
}

func TestCacheAnswer(t *testing.T) {
	now := time.Unix(1000, 0)
	cache := NewCache(10)
	cache.now = func() time.Time { return now }
	q := question("a.Example.org.", mdns.TypeA)
	cache.put(q, reply(q, mdns.RcodeSuccess, 60))
	now = now.Add(25 * time.Second)
	other := question("A.example.ORG.", mdns.TypeA)
	m := cache.get(other)
	if m == nil || m.Id != other.Id || m.Question[0].Name != "A.example.ORG." || m.Answer[0].Header().Ttl != 35 {
		t.Fatalf("get = %v, want the answer to the question as it was asked, with 35 s left", m)
	}
	m.Answer[0].Header().Ttl = 1 // the caller owns it
	if again := cache.get(other); again.Answer[0].Header().Ttl != 35 {
		t.Error("a caller can change what is kept")
	}
	if cache.get(question("a.example.org.", mdns.TypeAAAA)) != nil {
		t.Error("the answer of another type was given")
	}
	edns := question("a.example.org.", mdns.TypeA)
	edns.SetEdns0(1232, true)
	if cache.get(edns) != nil {
		t.Error("a plain answer was given to a question with EDNS")
	}
	subnet := question("b.example.org.", mdns.TypeA)
	subnet.SetEdns0(1232, false)
	subnet.IsEdns0().Option = append(subnet.IsEdns0().Option, &mdns.EDNS0_SUBNET{Code: mdns.EDNS0SUBNET, Family: 1, Address: net.IPv4(192, 0, 2, 0), SourceNetmask: 24})
	cache.put(subnet, reply(subnet, mdns.RcodeSuccess, 60))
	if cache.get(subnet) != nil {
		t.Error("an answer for one client's subnet was kept for all")
	}
}

func TestCacheBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	cache := NewCache(100)
	cache.now = func() time.Time { return now }
	for i := range 1000 {
		q := question(fmt.Sprintf("n%d.example.org.", i), mdns.TypeA)
		cache.put(q, reply(q, mdns.RcodeSuccess, 60))
		if n := len(cache.entries); n > 100 {
			t.Fatalf("%d answers are kept, want at most 100", n)
		}
	}
	var none *Cache
	none.put(question("a.", mdns.TypeA), reply(question("a.", mdns.TypeA), mdns.RcodeSuccess, 60))
	if none.get(question("a.", mdns.TypeA)) != nil {
		t.Error("no cache answered")
	}
}

// A second question, from another resolver that shares the cache, does not reach upstream, and metrics tell them apart.
func TestForwardUsesTheCache(t *testing.T) {
	var asked atomic.Int32
	up := startUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) { asked.Add(1); upstreamAnswer(w, q) })
	cache := NewCache(0)
	for range 2 {
		r := newResolver(t, func(c *Config) { c.Upstreams, c.Cache = []netip.AddrPort{up}, cache })
		for range 3 {
			q := question("example.com.", mdns.TypeA)
			m, err := r.Forward(t.Context(), client(), q, "udp")
			if err != nil || m.Id != q.Id || len(m.Answer) != 1 {
				t.Fatalf("Forward = %v, %v", m, err)
			}
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want once", n)
	}
}

package dns

import (
	"strings"
	"sync"
	"time"

	mdns "github.com/miekg/dns"
)

// Limits of the cache.
const (
	DefaultCacheSize = 4096 // answers
	maxCacheTTL      = 5 * time.Minute
	maxNegativeTTL   = 30 * time.Second // a name that does not exist yet may exist soon
	maxCachedAnswer  = 4 << 10          // bytes; larger answers are asked for each time
)

// Cache keeps answers of upstream resolvers for as long as their records allow, 5 minutes at most. Several Resolvers
// that have the same upstreams may share one.
type Cache struct {
	max int
	now func() time.Time

	mu      sync.Mutex
	entries map[cacheKey]cached // guarded by mu
}

type cacheKey struct {
	name         string
	qtype, class uint16
	edns, do, cd bool
}

type cached struct {
	msg           *mdns.Msg
	stored, until time.Time
}

// NewCache returns a Cache of up to max answers; 0 means DefaultCacheSize.
func NewCache(max int) *Cache {
	if max == 0 {
		max = DefaultCacheSize
	}
	return &Cache{max: max, now: time.Now, entries: map[cacheKey]cached{}}
}

// keyOf returns the key of a question; false if its answer must not be shared.
func keyOf(q *mdns.Msg) (cacheKey, bool) {
	k := cacheKey{name: strings.ToLower(q.Question[0].Name), qtype: q.Question[0].Qtype, class: q.Question[0].Qclass, cd: q.CheckingDisabled}
	opt := q.IsEdns0()
	if opt != nil {
		k.edns, k.do = true, opt.Do()
	}
	// Options such as a client subnet or a cookie make the answer one for this client.
	return k, q.RecursionDesired && (opt == nil || len(opt.Option) == 0)
}

// get returns the answer to q, with its times to live shortened by its age.
func (c *Cache) get(q *mdns.Msg) *mdns.Msg {
	if c == nil {
		return nil
	}
	k, ok := keyOf(q)
	if !ok {
		return nil
	}
	now := c.now()
	c.mu.Lock()
	e, ok := c.entries[k]
	if ok && !now.Before(e.until) {
		delete(c.entries, k)
		ok = false
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	m := e.msg.Copy() // entries are shared and never change
	m.Id, m.Question = q.Id, q.Copy().Question
	age := uint32(now.Sub(e.stored) / time.Second)
	for _, rrs := range [][]mdns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			if h := rr.Header(); h.Rrtype != mdns.TypeOPT {
				h.Ttl -= min(age, h.Ttl)
			}
		}
	}
	return m
}

// put keeps an answer, if it may be kept.
func (c *Cache) put(q, m *mdns.Msg) {
	if c == nil {
		return
	}
	k, ok := keyOf(q)
	ttl := lifetime(m)
	if !ok || ttl <= 0 || m.Truncated || m.Len() > maxCachedAnswer {
		return
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.entries[k]; !there && len(c.entries) >= c.max {
		c.makeRoomLocked(now)
	}
	c.entries[k] = cached{msg: m.Copy(), stored: now, until: now.Add(ttl)}
}

// makeRoomLocked drops some expired answers, or, without any, one at random.
func (c *Cache) makeRoomLocked(now time.Time) {
	const look = 16
	looked, dropped := 0, false
	var last cacheKey
	for k, e := range c.entries { // in random order
		last = k
		if !now.Before(e.until) {
			delete(c.entries, k)
			dropped = true
		}
		if looked++; looked == look {
			break
		}
	}
	if !dropped {
		delete(c.entries, last)
	}
}

// lifetime is how long an answer may be kept: the least of its records, or for a negative one what its SOA says.
func lifetime(m *mdns.Msg) time.Duration {
	if m.Rcode != mdns.RcodeSuccess && m.Rcode != mdns.RcodeNameError {
		return 0
	}
	ttl := maxCacheTTL
	for _, rr := range m.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if len(m.Answer) > 0 && m.Rcode == mdns.RcodeSuccess {
		return ttl
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*mdns.SOA); ok { // RFC 2308 section 5
			return min(ttl, maxNegativeTTL, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	return 0
}

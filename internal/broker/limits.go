package broker

import (
	"container/list"
	"crypto/sha256"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limitTable is a bounded table of rate limiters by key. When it is full the key that was quiet for longest is
// forgotten, which can only be generous to a key that has been quiet.
type limitTable struct {
	rate  rate.Limit
	burst int
	size  int

	mu    sync.Mutex
	byKey map[string]*list.Element // guarded by mu; values are *limited
	order *list.List               // guarded by mu; the most recently used first
}

type limited struct {
	key     string
	limiter *rate.Limiter
}

func newLimitTable(r rate.Limit, burst, size int) *limitTable {
	return &limitTable{rate: r, burst: burst, size: size, byKey: map[string]*list.Element{}, order: list.New()}
}

// allow takes one event of the key, or says how long to wait for the next.
func (t *limitTable) allow(key string, now time.Time) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.byKey[key]
	if e == nil {
		if t.order.Len() >= t.size {
			oldest := t.order.Back()
			t.order.Remove(oldest)
			if l, ok := oldest.Value.(*limited); ok {
				delete(t.byKey, l.key)
			}
		}
		e = t.order.PushFront(&limited{key: key, limiter: rate.NewLimiter(t.rate, t.burst)})
		t.byKey[key] = e
	}
	t.order.MoveToFront(e)
	l, _ := e.Value.(*limited)
	if l.limiter.AllowN(now, 1) {
		return 0, true
	}
	return time.Duration(float64(time.Second) / float64(t.rate)), false
}

// replayCache remembers the proofs that bought a token until AWS itself would refuse them. A proof that is being worked
// on is in it too, so that two copies that arrive at once cannot both win. A refused proof is forgotten: it bought
// nothing, and whoever has only such proofs must not be able to fill the memory.
type replayCache struct {
	size int

	mu     sync.Mutex
	flying map[[sha256.Size]byte]bool      // guarded by mu
	used   map[[sha256.Size]byte]time.Time // guarded by mu; when it may be forgotten
	queue  []usedProof                     // guarded by mu; in order of expiry
}

type usedProof struct {
	key     [sha256.Size]byte
	expires time.Time
}

func newReplayCache(size int) *replayCache {
	return &replayCache{size: size, flying: map[[sha256.Size]byte]bool{}, used: map[[sha256.Size]byte]time.Time{}}
}

// begin claims a proof; false means that it was used or is being used.
func (c *replayCache) begin(key [sha256.Size]byte, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(now)
	if _, ok := c.used[key]; ok || c.flying[key] {
		return false
	}
	c.flying[key] = true
	return true
}

// end gives up a claim.
func (c *replayCache) end(key [sha256.Size]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flying, key)
}

// spend remembers a claimed proof as used; false means that the memory is full, and then no token may be issued.
func (c *replayCache) spend(key [sha256.Size]byte, now time.Time, keep time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(now)
	if len(c.used) >= c.size {
		return false
	}
	expires := now.Add(keep)
	c.used[key] = expires
	c.queue = append(c.queue, usedProof{key, expires})
	return true
}

func (c *replayCache) forget(now time.Time) {
	n := 0
	for n < len(c.queue) && now.After(c.queue[n].expires) {
		delete(c.used, c.queue[n].key)
		n++
	}
	c.queue = c.queue[n:]
}

func (c *replayCache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.used)
}

package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Times of renewal and retry. The first three are ztunnel's.
const (
	firstBackoff = time.Second
	maxBackoff   = 150 * time.Second // while the present certificate is still valid
	jitter       = 0.2
	// maxOutageBackoff is shorter than ztunnel's: without a certificate nothing works, so that the moment at which the
	// authority can be reached again should be noticed soon.
	maxOutageBackoff = 15 * time.Second
	// minRenewDelay keeps a certificate that is renewed over and over, for example because the clock is wrong, from
	// becoming a busy loop.
	minRenewDelay = time.Second
	// lateShare is the part of the time left to a certificate after which its renewal is tried again at the latest, and the
	// part of it that one attempt may take. Without it, a certificate that lives for a minute would have its last attempts
	// further apart than what is left of it, and an attempt without an answer would outlive it.
	lateShare = 3
	// minAttempt is the least that an attempt may take: a certificate that is about to end must not make every attempt fail.
	minAttempt = 2 * time.Second
	// urgentShare is the last part of a certificate's life, in which failures to renew it are errors and not warnings.
	urgentShare = 5
)

// Config configures a Manager.
type Config struct {
	Signer Signer       // required
	Log    *slog.Logger // required

	TTL         time.Duration // asked of the signer; 0 means 24h
	Impersonate bool          // ask on behalf of the identity, as a node's proxy does for its pods
	Concurrency int           // signing requests at a time; 0 means 8
	Timeout     time.Duration // of one signing request; 0 means 20s
}

// Manager keeps the certificates of any number of identities. Run must be running for any of its methods to make
// progress. Methods may be called from any goroutine.
type Manager struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{} // buffered, 1: the schedule changed

	mu      sync.Mutex
	entries map[mesh.Identity]*entry // guarded by mu
}

// priority orders attempts that are due while all places are taken.
type priority uint8

const (
	background priority = iota // renewal
	warmup                     // Prefetch
	realTime                   // a connection waits
)

// entry is one identity. All fields are guarded by Manager.mu; decided is closed once and only closed.
type entry struct {
	id       mesh.Identity
	priority priority
	cert     *Certificate
	err      error
	decided  chan struct{} // closes when the first attempt ends
	due      time.Time     // of the next attempt
	running  bool
	cancel   context.CancelFunc // of the attempt that runs
	backoff  time.Duration
}

// defaultConcurrency is how many certificates are asked for at once.
const defaultConcurrency = 8

// NewManager returns a Manager that has no identities yet.
func NewManager(cfg Config) (*Manager, error) {
	switch {
	case cfg.Signer == nil:
		return nil, errors.New("identity: Config.Signer is required")
	case cfg.Log == nil:
		return nil, errors.New("identity: Config.Log is required")
	}
	if cfg.TTL == 0 {
		cfg.TTL = 24 * time.Hour
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = defaultConcurrency
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	return &Manager{
		cfg:     cfg,
		log:     cfg.Log.With(logattr.Scope("identity")),
		wake:    make(chan struct{}, 1),
		entries: make(map[mesh.Identity]*entry),
	}, nil
}

// Certificate returns a valid certificate for id. The first call for an identity waits until an attempt to get one has
// ended; later calls return at once, the certificate or the last *UnavailableError.
func (m *Manager) Certificate(ctx context.Context, id mesh.Identity) (*Certificate, error) {
	if id.IsZero() {
		return nil, errors.New("certificate: there is no identity to get one for")
	}
	e, cert, err := m.request(id, realTime)
	if cert != nil || err != nil {
		return cert, err
	}
	m.mu.Lock()
	decided := e.decided
	m.mu.Unlock()
	select {
	case <-decided:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the certificate of %s: %w", id, context.Cause(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.valid(time.Now()) {
		return e.cert, nil
	}
	if e.err == nil {
		return nil, &UnavailableError{Identity: id, Err: errors.New("the certificate has expired")}
	}
	return nil, &UnavailableError{Identity: id, Err: e.err}
}

// Prefetch makes sure that a certificate for id is there before a connection needs it. It does not wait.
func (m *Manager) Prefetch(id mesh.Identity) {
	if !id.IsZero() {
		_, _, _ = m.request(id, warmup) // an error is retried anyway
	}
}

// Forget drops id and its certificate.
func (m *Manager) Forget(id mesh.Identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[id]
	if e == nil {
		return
	}
	delete(m.entries, id)
	if e.cancel != nil {
		e.cancel()
	}
	e.err = errors.New("the identity was forgotten")
	e.decide()
}

// States returns what is known of each identity, sorted by identity.
func (m *Manager) States() []State {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	states := make([]State, 0, len(m.entries))
	for _, e := range m.entries {
		s := State{Identity: e.id, Err: e.err}
		switch {
		case e.valid(now):
			s.Status, s.Certificate, s.Urgent = Available, e.cert, e.urgent(now)
		case e.err != nil:
			s.Status = Unavailable
		}
		if !e.running {
			s.NextAttempt = e.due
		}
		states = append(states, s)
	}
	slices.SortFunc(states, func(a, b State) int { return strings.Compare(a.Identity.String(), b.Identity.String()) })
	return states
}

// EarliestExpiry returns when the certificate ends that ends first; the zero time when there is none.
func (m *Manager) EarliestExpiry() time.Time {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var earliest time.Time
	for _, e := range m.entries {
		if e.valid(now) && (earliest.IsZero() || e.cert.NotAfter.Before(earliest)) {
			earliest = e.cert.NotAfter
		}
	}
	return earliest
}

// Run gets and renews certificates until ctx ends. It returns nil, after every attempt that it started has ended.
func (m *Manager) Run(ctx context.Context) error {
	var attempts sync.WaitGroup
	defer attempts.Wait()
	slots := make(chan struct{}, m.cfg.Concurrency)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		for len(slots) < cap(slots) {
			e, attempt, next := m.start(ctx)
			if e == nil {
				timer.Reset(next)
				break
			}
			slots <- struct{}{}
			attempts.Go(func() {
				cert, err := m.attempt(attempt, e.id)
				m.finish(e, cert, err)
				<-slots
				m.notify()
			})
		}
	}
}

// request registers interest in id and returns what can be said at once; if neither a certificate nor an error can,
// the answer is there when the entry's decided closes.
func (m *Manager) request(id mesh.Identity, p priority) (*entry, *Certificate, error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[id]
	if e == nil {
		e = &entry{id: id, decided: make(chan struct{}), due: now}
		m.entries[id] = e
		m.notify()
	}
	e.priority = max(e.priority, p)
	switch {
	case e.valid(now):
		return e, e.cert, nil
	case e.err != nil:
		return e, nil, &UnavailableError{Identity: id, Err: e.err}
	case e.cert != nil:
		// It expired before an attempt to renew it ended, for example because the machine slept.
		e.cert, e.decided = nil, make(chan struct{})
		if !e.running {
			e.due = now
			m.notify()
		}
	}
	return e, nil, nil
}

// start picks the most urgent identity that is due and marks it as running. If there is none, next tells when to look
// again.
func (m *Manager) start(ctx context.Context) (picked *entry, attempt context.Context, next time.Duration) {
	now := time.Now()
	next = time.Hour
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.running {
			continue
		}
		if wait := e.due.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		if picked == nil || e.priority > picked.priority || e.priority == picked.priority && e.due.Before(picked.due) {
			picked = e
		}
	}
	if picked == nil {
		return nil, nil, next
	}
	picked.running = true
	timeout := m.cfg.Timeout
	if picked.valid(now) {
		timeout = min(timeout, max(picked.cert.NotAfter.Sub(now)/lateShare, minAttempt))
	}
	attempt, picked.cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	return picked, attempt, 0
}

func (m *Manager) attempt(ctx context.Context, id mesh.Identity) (*Certificate, error) {
	key, csr, err := newRequest(id)
	if err != nil {
		return nil, err
	}
	var impersonate mesh.Identity
	if m.cfg.Impersonate {
		impersonate = id
	}
	chain, err := m.cfg.Signer.Sign(ctx, csr, m.cfg.TTL, impersonate)
	if err != nil {
		return nil, err
	}
	cert, err := parseChain(id, key, chain, time.Now())
	if err != nil {
		return nil, err
	}
	return cert, nil
}

// finish records the outcome of an attempt and schedules the next.
func (m *Manager) finish(e *entry, cert *Certificate, err error) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	e.cancel()
	e.cancel, e.running, e.priority = nil, false, background
	if m.entries[e.id] != e { // forgotten meanwhile
		return
	}
	if err == nil {
		first := e.cert == nil
		e.cert, e.err, e.backoff = cert, nil, 0
		e.due = renewal(cert, now)
		e.decide()
		if first {
			m.log.Info("certificate issued", logattr.Identity(e.id), slog.Time("expires", cert.NotAfter))
		} else {
			m.log.Info("certificate renewed", logattr.Identity(e.id), slog.Time("expires", cert.NotAfter))
		}
		return
	}
	e.err = err
	e.backoff = min(max(2*e.backoff, firstBackoff), maxBackoff)
	wait := spread(e.backoff)
	if e.valid(now) {
		// Closer together towards the end, and once more at the moment of expiry, whatever the backoff says.
		left := e.cert.NotAfter.Sub(now)
		wait = min(wait, max(left/lateShare, firstBackoff), left)
	} else {
		e.cert = nil
		wait = min(wait, spread(maxOutageBackoff))
	}
	e.due = now.Add(wait)
	e.decide()
	m.logFailure(e, now, wait)
}

// logFailure tells of a failed attempt; the louder, the less time is left to do something about it.
func (m *Manager) logFailure(e *entry, now time.Time, wait time.Duration) {
	attrs := []any{logattr.Identity(e.id), logattr.Err(e.err), slog.Bool("still_valid", e.cert != nil), slog.Duration("retry_in", wait.Round(time.Millisecond))}
	if e.urgent(now) {
		attrs = append(attrs, slog.Duration("expires_in", e.cert.NotAfter.Sub(now).Round(time.Second)))
		m.log.Error("certificate is about to expire and cannot be renewed", attrs...)
		return
	}
	m.log.Warn("certificate request refused or unanswered", attrs...)
}

func (m *Manager) notify() {
	select {
	case m.wake <- struct{}{}:
	default: // Run will look anyway
	}
}

func (e *entry) valid(now time.Time) bool { return e.cert != nil && now.Before(e.cert.NotAfter) }

// urgent reports whether the certificate is in the last part of its life and its renewal fails.
func (e *entry) urgent(now time.Time) bool {
	return e.valid(now) && e.err != nil && e.cert.NotAfter.Sub(now) <= e.cert.NotAfter.Sub(e.cert.NotBefore)/urgentShare
}

func (e *entry) decide() {
	select {
	case <-e.decided:
	default:
		close(e.decided)
	}
}

// renewal is when a new certificate is due: at half its life. If that has passed already when it comes, our clock and the
// authority's differ by much, and the next one would be no better: then at half of what is left of it.
func renewal(c *Certificate, now time.Time) time.Time {
	half := c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
	if half.After(now.Add(minRenewDelay)) {
		return half
	}
	return now.Add(max(c.NotAfter.Sub(now)/2, minRenewDelay))
}

// spread keeps many proxies that failed together from coming back together.
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - jitter + 2*jitter*rand.Float64()))
}

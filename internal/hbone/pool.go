package hbone

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// PoolConfig configures a Pool. Zero durations and counts mean the default that is named.
type PoolConfig struct {
	Certificate CertSource // required: the certificate of a Key's Source
	// Dial opens the TCP connection of a key; nil means a plain dialer without source address. It must set the packet
	// mark where capture needs one. Its context ends after ConnectTimeout.
	Dial func(ctx context.Context, key Key) (net.Conn, error)
	// VerifyPeer, when set, may refuse an otherwise good chain (leaf first), for example one that is revoked.
	VerifyPeer func(chain []*x509.Certificate) error
	TLS        TLSPolicy // the zero value is TLS 1.3 with the usual key exchanges
	Limits     Limits    // zero fields mean the defaults

	ConnectTimeout   time.Duration // TCP connect; 10 s
	HandshakeTimeout time.Duration // TLS handshake; 10 s
	AnswerTimeout    time.Duration // from CONNECT sent to its answer; 20 s, since the peer itself may dial for 10 s
	IdleTimeout      time.Duration // a connection without streams is closed after it; 5 min
	PingInterval     time.Duration // 10 s
	PingTimeout      time.Duration // 20 s
	MaxStreams       int           // per connection, at most what the peer allows; 100
	MaxConns         int           // in all; 65,536. Beyond it Connect is refused

	Log *slog.Logger // required
}

// maxAttempts bounds how often one Connect turns to another connection, which it does only for requests that were not
// acted on, or whose connection turned out to have died before.
const maxAttempts = 3

// defaultMaxConns is the default of PoolConfig.MaxConns.
const defaultMaxConns = 65_536

// ErrPoolFull refuses a tunnel that would need one connection more than PoolConfig.MaxConns.
var ErrPoolFull = errors.New("connection limit of the pool reached")

// Pool opens tunnels, many of them over one connection.
type Pool struct {
	cfg    PoolConfig
	base   context.Context //nolint:containedctx // bounds dials, which outlive the callers that caused them
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool               // guarded by mu
	groups map[string]*group  // guarded by mu
	conns  map[*conn]struct{} // guarded by mu; all, until their reading has ended
	dials  int                // guarded by mu
}

// group is the connections of one key.
type group struct {
	conns []*conn // that may have room
	dials []*dial
	limit int // streams that a new connection is expected to take
}

// dial is one connection being made, and those who wait for it. The first of them does not open its tunnel itself: its
// request goes out together with the end of the handshake.
type dial struct {
	done    chan struct{}
	err     error // set before done is closed
	waiting int   // guarded by Pool.mu
	first   Request
	left    bool    // guarded by Pool.mu; the first one waits no more
	conn    *conn   // guarded by Pool.mu; of stream
	stream  *Stream // guarded by Pool.mu; the tunnel of the first
}

// NewPool returns a Pool ready to Connect. Run must be called for its connections to be closed in the end.
func NewPool(cfg PoolConfig) (*Pool, error) {
	switch {
	case cfg.Certificate == nil:
		return nil, errors.New("hbone: PoolConfig.Certificate is required")
	case cfg.Log == nil:
		return nil, errors.New("hbone: PoolConfig.Log is required")
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, key Key) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", key.Addr.String())
		}
	}
	orDefault(&cfg.ConnectTimeout, defaultConnectTimeout)
	orDefault(&cfg.HandshakeTimeout, defaultHandshakeTimeout)
	orDefault(&cfg.AnswerTimeout, defaultAnswerTimeout)
	orDefault(&cfg.IdleTimeout, defaultIdleTimeout)
	orDefault(&cfg.PingInterval, defaultPingInterval)
	orDefault(&cfg.PingTimeout, defaultPingTimeout)
	orDefault(&cfg.MaxStreams, assumedStreams)
	orDefault(&cfg.MaxConns, defaultMaxConns)
	p := &Pool{cfg: cfg, groups: make(map[string]*group), conns: make(map[*conn]struct{})}
	p.base, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Run waits for ctx to end and then closes every connection at once.
func (p *Pool) Run(ctx context.Context) error {
	<-ctx.Done()
	p.mu.Lock()
	p.closed = true
	all := make([]*conn, 0, len(p.conns))
	for c := range p.conns {
		all = append(all, c)
	}
	p.mu.Unlock()
	p.cancel()
	for _, c := range all {
		c.fail(fmt.Errorf("%w: %w", ErrConnectionLost, ErrPoolClosed))
	}
	p.wg.Wait()
	return nil
}

// Connect opens a tunnel. A status other than 200 is a *StatusError, and the Response is filled in nevertheless.
func (p *Pool) Connect(ctx context.Context, key Key, req Request) (*Stream, Response, error) {
	if err := req.check(); err != nil {
		return nil, Response{}, err
	}
	name := key.name()
	for attempt := 1; ; attempt++ {
		c, s, first, err := p.begin(ctx, name, &key, &req)
		if c == nil {
			return nil, Response{}, err
		}
		var resp Response
		if err == nil {
			if resp, err = s.await(ctx, p.cfg.AnswerTimeout); err == nil {
				return s, resp, nil
			}
		}
		if attempt == maxAttempts || !again(c, err, first) {
			return nil, resp, err
		}
	}
}

// begin asks for a tunnel. Without a connection there is nothing to try again.
//
// It sends, which goes deep, on the goroutine that is going to wait for the tunnel's end, and what a stack has grown to it
// keeps: large values are passed by reference on the way.
func (p *Pool) begin(ctx context.Context, name string, key *Key, req *Request) (c *conn, s *Stream, first bool, err error) {
	c, s, first, err = p.acquire(ctx, name, key, req)
	if err != nil || s != nil {
		return c, s, first, err
	}
	s, must, err := c.open(req)
	if must {
		_ = c.flush() // a failure ends the stream too
	}
	return c, s, first, err
}

// again reports whether a failed request may be made once more: the peer certainly did not act on it, or its connection
// was an old one that turned out to be dead.
func again(c *conn, err error, first bool) bool {
	var se *StreamError
	if errors.As(err, &se) && se.Remote && se.Code == RefusedStream {
		c.mu.Lock()
		c.peerStreams = min(c.peerStreams, max(1, uint32(len(c.streams))))
		c.mu.Unlock()
		return true
	}
	return errors.Is(err, errUnserved) || errors.Is(err, ErrConnectionLost) && !first
}

// name is the key in a form that can be compared.
func (k Key) name() string {
	var b strings.Builder
	b.WriteString(k.Addr.String())
	b.WriteByte('|')
	b.WriteString(k.SourceIP.String())
	for _, id := range append([]mesh.Identity{k.Source}, k.Peers...) {
		for _, part := range []string{id.TrustDomain, id.Namespace, id.ServiceAccount} {
			b.WriteByte('|')
			b.WriteString(part)
		}
	}
	return b.String()
}

// acquire returns a connection with a promised stream, waiting for one to be made if it must, or the stream itself if that
// was opened with the connection.
func (p *Pool) acquire(ctx context.Context, name string, key *Key, req *Request) (c *conn, s *Stream, first bool, err error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, nil, false, ErrPoolClosed
		}
		g := p.groups[name]
		if g == nil {
			g = &group{limit: p.cfg.MaxStreams}
			p.groups[name] = g
		}
		c, first, pending := g.pick()
		if c != nil {
			p.mu.Unlock()
			return c, nil, first, nil
		}
		if pending != nil {
			p.mu.Unlock()
			if err := p.awaitSettings(ctx, pending); err != nil {
				return nil, nil, false, err
			}
			continue
		}
		d, mine, err := p.joinLocked(name, key, g, req)
		p.mu.Unlock()
		if err != nil {
			return nil, nil, false, err
		}
		if c, s, err := p.awaitDial(ctx, d, mine, key); s != nil || err != nil {
			return c, s, true, err
		}
	}
}

// awaitDial waits for a connection to be made, and takes the stream that was opened with it if that is the caller's.
func (p *Pool) awaitDial(ctx context.Context, d *dial, mine bool, key *Key) (*conn, *Stream, error) {
	var err error
	select {
	case <-d.done:
		err = d.err
	case <-ctx.Done():
		err = fmt.Errorf("wait for connection to %s: %w", key.Addr, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d.waiting--
	if !mine {
		return nil, nil, err
	}
	if err == nil {
		return d.conn, d.stream, nil
	}
	d.left = true
	if d.stream != nil {
		d.stream.Reset(Cancel)
	}
	return nil, nil, err
}

// pick finds a connection with room, or one that may have room once its peer has said so. Dead ones are dropped.
func (g *group) pick() (c *conn, first bool, pending *conn) {
	now := time.Now()
	var found *conn
	g.conns = slices.DeleteFunc(g.conns, func(c *conn) bool {
		if found != nil {
			return false
		}
		got, isFirst := c.reserve(now)
		switch got {
		case slotTaken:
			found, first = c, isFirst
		case slotPending:
			pending = c
		case slotDead:
			return true
		case slotFull:
		}
		return false
	})
	return found, first, pending
}

func (p *Pool) awaitSettings(ctx context.Context, c *conn) error {
	t := time.NewTimer(p.cfg.HandshakeTimeout)
	defer t.Stop()
	select {
	case <-c.settings:
	case <-c.done:
	case <-t.C:
		c.fail(fmt.Errorf("%w: no SETTINGS from %s", ErrConnectionLost, addrString(c.remoteAddr())))
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// joinLocked finds a dial under way that is expected to have room for one more, or starts one, which is the caller's.
func (p *Pool) joinLocked(name string, key *Key, g *group, req *Request) (d *dial, mine bool, err error) {
	for _, d := range g.dials {
		if d.waiting < g.limit {
			d.waiting++
			return d, false, nil
		}
	}
	if len(p.conns)+p.dials >= p.cfg.MaxConns {
		return nil, false, fmt.Errorf("%w: %d", ErrPoolFull, p.cfg.MaxConns)
	}
	d = &dial{done: make(chan struct{}), waiting: 1, first: *req}
	own := *key
	g.dials = append(g.dials, d)
	p.dials++
	p.wg.Go(func() {
		c, err := p.dial(name, own)
		if err = p.dialled(name, g, d, c, err); err == nil {
			p.attend(name, c)
		} else if c != nil {
			c.fail(err)
		}
	})
	return d, true, nil
}

// dialled tells those who wait what came of a dial, and puts the connection at their disposal.
func (p *Pool) dialled(name string, g *group, d *dial, c *conn, err error) error {
	p.mu.Lock()
	p.dials--
	if err == nil && p.closed {
		err = ErrPoolClosed
	}
	g.dials = slices.DeleteFunc(g.dials, func(o *dial) bool { return o == d })
	if err != nil {
		p.sweepLocked(name, g)
		d.err = err
		p.mu.Unlock()
		close(d.done)
		return err
	}
	got := slotDead
	if !d.left {
		got, _ = c.reserve(time.Now())
	}
	p.conns[c] = struct{}{}
	g.conns = append(g.conns, c)
	p.mu.Unlock()
	var s *Stream
	if got == slotTaken {
		s, _, _ = c.open(&d.first) // if it cannot, the first one finds another connection as the others do
	}
	_ = c.flush() // in any case: the end of the handshake

	p.mu.Lock()
	d.conn, d.stream = c, s
	if d.left && s != nil {
		s.Reset(Cancel)
	}
	p.mu.Unlock()
	close(d.done)
	c.recheck(p.cfg.VerifyPeer) // a list that came between the handshake and here did not see it
	return nil
}

// attend reads from a connection until it ends.
func (p *Pool) attend(name string, c *conn) {
	err := c.run()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	p.forget(name, c)
	if err != nil {
		p.cfg.Log.Debug("hbone connection ended", logattr.Identity(c.peer), logattr.Address(addrString(c.remoteAddr())), logattr.Err(err))
	}
}

// forget stops offering a connection.
func (p *Pool) forget(name string, c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.groups[name]; g != nil {
		g.conns = slices.DeleteFunc(g.conns, func(o *conn) bool { return o == c })
		p.sweepLocked(name, g)
	}
}

func (p *Pool) sweepLocked(name string, g *group) {
	if len(g.conns) == 0 && len(g.dials) == 0 && p.groups[name] == g {
		delete(p.groups, name)
	}
}

// dial makes one connection. It is bounded by its timeouts and the pool's life, not by those who wait for it.
func (p *Pool) dial(name string, key Key) (*conn, error) {
	ctx, cancel := context.WithTimeout(p.base, p.cfg.ConnectTimeout+p.cfg.HandshakeTimeout)
	defer cancel()
	cert, err := p.cfg.Certificate(ctx, key.Source)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", key.Source, err)
	}
	dctx, dcancel := context.WithTimeout(p.base, p.cfg.ConnectTimeout)
	raw, err := p.cfg.Dial(dctx, key)
	timedOut := dctx.Err() != nil
	dcancel()
	if err != nil {
		var ne net.Error
		switch {
		case p.base.Err() != nil:
			return nil, ErrPoolClosed
		case timedOut, errors.As(err, &ne) && ne.Timeout():
			return nil, fmt.Errorf("%w: %w", ErrConnectTimeout, err)
		}
		return nil, fmt.Errorf("connect to %s: %w", key.Addr, err)
	}
	hctx, hcancel := context.WithTimeout(p.base, p.cfg.HandshakeTimeout)
	defer hcancel()
	var path []*x509.Certificate
	tlsConfig := clientTLS(cert, key.Peers, remember(p.cfg.VerifyPeer, &path))
	p.cfg.TLS.Apply(tlsConfig)
	tc, w, err := handshakeClient(hctx, raw, tlsConfig)
	if err != nil {
		return nil, err
	}
	leaf := tc.ConnectionState().PeerCertificates[0]
	end := expiry(cert.TLS, leaf)
	if time.Now().After(end) { // nobody could use it
		raw.Close()
		return nil, fmt.Errorf("connect to %s: a certificate has expired at %s", key.Addr, end.UTC().Format(time.RFC3339))
	}
	var c *conn
	c = newConn(tc, w, peerName(leaf, key.Peers), connConfig{
		client: true, maxStreams: p.cfg.MaxStreams, maxHeaderBytes: clientHeaders,
		pingInterval: p.cfg.PingInterval, pingTimeout: p.cfg.PingTimeout, idleTimeout: p.cfg.IdleTimeout, limits: p.cfg.Limits,
		closed: func() { p.forget(name, c) },
	})
	c.path, c.expires = path, end
	return c, nil
}

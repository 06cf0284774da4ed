package hbone

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Defaults of the times; they bound what a silent peer can hold up.
const (
	defaultConnectTimeout   = 10 * time.Second
	defaultHandshakeTimeout = 10 * time.Second
	defaultAnswerTimeout    = 20 * time.Second
	defaultIdleTimeout      = 5 * time.Minute
	defaultPingInterval     = 10 * time.Second
	defaultPingTimeout      = 20 * time.Second
)

// ConnectOver opens one tunnel over conn, which it owns from then on: with a Stream of a Pool as conn, the inner tunnel
// of double HBONE. The connection ends with the tunnel.
func ConnectOver(ctx context.Context, conn net.Conn, cert Certificate, peers []mesh.Identity, req Request) (*Stream, Response, error) {
	return over{
		handshake: defaultHandshakeTimeout, answer: defaultAnswerTimeout,
		cfg:   connConfig{pingInterval: defaultPingInterval, pingTimeout: defaultPingTimeout},
		begin: runAlone,
	}.connect(ctx, conn, cert, peers, req)
}

// ConnectOver is the function of the same name with the pool's settings. The inner connection is not shared, but it
// ends with the pool, and when its peer's certificate is revoked.
func (p *Pool) ConnectOver(ctx context.Context, conn net.Conn, cert Certificate, peers []mesh.Identity, req Request) (*Stream, Response, error) {
	return over{
		handshake: p.cfg.HandshakeTimeout, answer: p.cfg.AnswerTimeout, verify: p.cfg.VerifyPeer, tls: p.cfg.TLS,
		cfg:   connConfig{pingInterval: p.cfg.PingInterval, pingTimeout: p.cfg.PingTimeout, limits: p.cfg.Limits},
		begin: p.adopt,
	}.connect(ctx, conn, cert, peers, req)
}

// runAlone reads from a connection that belongs to nobody, until it ends.
func runAlone(c *conn) { go func() { _ = c.run() }() }

// adopt reads from a connection that is not offered to others, until it ends.
func (p *Pool) adopt(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		go c.fail(ErrPoolClosed)
		return
	}
	p.conns[c] = struct{}{}
	p.wg.Go(func() {
		c.recheck(p.cfg.VerifyPeer)
		_ = c.run()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	})
}

// over is how an inner tunnel is opened.
type over struct {
	handshake, answer time.Duration
	verify            verifyFunc
	tls               TLSPolicy
	cfg               connConfig
	begin             func(c *conn) // reads from the connection until it ends, without blocking
}

func (o over) connect(ctx context.Context, raw net.Conn, cert Certificate, peers []mesh.Identity, req Request) (*Stream, Response, error) {
	if err := req.check(); err != nil {
		raw.Close()
		return nil, Response{}, err
	}
	hctx, cancel := context.WithTimeout(ctx, o.handshake)
	defer cancel()
	var path []*x509.Certificate
	tlsConfig := clientTLS(cert, peers, remember(o.verify, &path))
	o.tls.Apply(tlsConfig)
	tc, w, err := handshakeClient(hctx, raw, tlsConfig)
	if err != nil {
		return nil, Response{}, fmt.Errorf("inner tunnel: %w", err)
	}
	peer := tc.ConnectionState().PeerCertificates[0]
	o.cfg.client, o.cfg.maxStreams, o.cfg.maxHeaderBytes = true, 1, clientHeaders
	c := newConn(tc, w, peerName(peer, peers), o.cfg)
	c.path = path
	o.begin(c)
	c.mu.Lock()
	c.reserved++
	c.mu.Unlock()
	s, _, err := c.open(&req)
	_ = c.flush() // a failure ends the stream too
	if err != nil {
		c.fail(err)
		return nil, Response{}, err
	}
	c.mu.Lock()
	s.owner = c.finish
	ended := s.isEnded
	c.mu.Unlock()
	if ended {
		c.finish()
	}
	resp, err := s.await(ctx, o.answer)
	if err != nil {
		return nil, resp, err
	}
	return s, resp, nil
}

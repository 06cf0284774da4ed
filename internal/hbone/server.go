package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// ErrServerClosed is returned by Server.ServeConn once Drain was called.
var ErrServerClosed = errors.New("hbone server is draining")

// ServerConfig configures a Server. Zero durations and counts mean the default that is named.
type ServerConfig struct {
	Certificate func(ctx context.Context) (Certificate, error) // required; asked once per connection
	// Handler serves one CONNECT request on its own goroutine. It must call Accept or Reject; when it returns, a stream
	// that is still open is reset. Its context ends with ServeConn's, when it returns, and, until Accept, also with the
	// connection and when the client resets the stream: after Accept the Stream tells. Required.
	Handler func(ctx context.Context, s *ServerStream)
	// VerifyPeer, when set, may refuse an otherwise good chain (leaf first), for example one that is revoked.
	VerifyPeer func(chain []*x509.Certificate) error
	TLS        TLSPolicy // the zero value is TLS 1.3 with the usual key exchanges
	Limits     Limits    // zero fields mean the defaults

	HandshakeTimeout time.Duration // TLS handshake, certificate fetch included; 10 s
	PingInterval     time.Duration // 10 s
	PingTimeout      time.Duration // 20 s
	MaxStreams       int           // per connection; 200
	MaxHeaderBytes   int           // header list of a request; 64 KiB

	Log *slog.Logger // required
}

// Server accepts tunnels.
type Server struct {
	cfg ServerConfig

	mu       sync.Mutex
	draining bool               // guarded by mu
	conns    map[*conn]struct{} // guarded by mu
	empty    chan struct{}      // guarded by mu; closed when draining and conns is empty
}

// NewServer returns a Server ready for ServeConn.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case cfg.Certificate == nil:
		return nil, errors.New("hbone: ServerConfig.Certificate is required")
	case cfg.Handler == nil:
		return nil, errors.New("hbone: ServerConfig.Handler is required")
	case cfg.Log == nil:
		return nil, errors.New("hbone: ServerConfig.Log is required")
	}
	orDefault(&cfg.HandshakeTimeout, defaultHandshakeTimeout)
	orDefault(&cfg.PingInterval, defaultPingInterval)
	orDefault(&cfg.PingTimeout, defaultPingTimeout)
	orDefault(&cfg.MaxStreams, serverStreams)
	orDefault(&cfg.MaxHeaderBytes, serverHeaders)
	return &Server{cfg: cfg, conns: make(map[*conn]struct{}), empty: make(chan struct{})}, nil
}

// ServeConn shakes hands on conn and serves its streams until the connection ends; it owns conn. A failed handshake
// is an error, an orderly end is nil. It returns after the last handler has.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		conn.Close()
		return ErrServerClosed
	}
	s.mu.Unlock()
	var path []*x509.Certificate
	tc, w, peer, err := s.handshake(ctx, conn, &path)
	if err != nil {
		conn.Close()
		return err
	}
	hctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var handlers sync.WaitGroup
	c := newConn(tc, w, peer, connConfig{
		maxStreams: s.cfg.MaxStreams, maxHeaderBytes: s.cfg.MaxHeaderBytes,
		pingInterval: s.cfg.PingInterval, pingTimeout: s.cfg.PingTimeout, limits: s.cfg.Limits,
		serve: func(st *Stream, method string) {
			handlers.Go(func() { s.serve(hctx, st, method) })
		},
	})
	c.path = path
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		c.fail(ErrServerClosed)
		return ErrServerClosed
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	c.recheck(s.cfg.VerifyPeer) // a list that came between the handshake and here did not see it
	stop := context.AfterFunc(ctx, func() { c.fail(fmt.Errorf("%w: %w", ErrConnectionLost, ctx.Err())) })
	err = c.run()
	stop()
	handlers.Wait()
	s.mu.Lock()
	delete(s.conns, c)
	if s.draining && len(s.conns) == 0 {
		close(s.empty)
	}
	s.mu.Unlock()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// handshake makes a TLS connection of conn.
func (s *Server) handshake(ctx context.Context, conn net.Conn, path *[]*x509.Certificate) (*tls.Conn, *wire, mesh.Identity, error) {
	var none mesh.Identity
	ctx, cancel := context.WithTimeout(ctx, s.cfg.HandshakeTimeout)
	defer cancel()
	from := addrString(conn.RemoteAddr())
	cert, err := s.cfg.Certificate(ctx)
	if err != nil {
		return nil, nil, none, fmt.Errorf("own certificate: %w", err)
	}
	cfg, err := serverTLS(cert, remember(s.cfg.VerifyPeer, path))
	if err != nil {
		return nil, nil, none, err
	}
	s.cfg.TLS.Apply(cfg)
	w := newWire(conn)
	tc := tls.Server(w, cfg)
	w.beginHandshake()
	err = tc.HandshakeContext(ctx)
	w.endHandshake(err)
	if err != nil {
		return nil, nil, none, fmt.Errorf("tls handshake error: %s: %w", from, handshakeCause(ctx, err))
	}
	leaf, err := leafOf(cert.TLS)
	if err != nil {
		return nil, nil, none, err
	}
	self, _ := spiffeName(leaf, "")
	peer, _ := spiffeName(tc.ConnectionState().PeerCertificates[0], self.TrustDomain)
	return tc, w, peer, nil
}

// serve answers what needs no handler, and calls it for the rest.
func (s *Server) serve(ctx context.Context, st *Stream, method string) {
	c := st.c
	defer func() {
		c.mu.Lock()
		c.handlers--
		c.mu.Unlock()
	}()
	ss := &ServerStream{stream: st}
	if status := precheck(st, method); status != 0 {
		_ = ss.Reject(status) // the connection's own end tells of a failure
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	st.onFail = cancel
	if st.isEnded {
		cancel()
	}
	c.mu.Unlock()
	s.cfg.Handler(ctx, ss)
	code := Cancel
	c.mu.Lock()
	if !ss.answered {
		code = InternalError
	}
	c.mu.Unlock()
	st.Reset(code)
}

// precheck returns the status to refuse a request with, or 0.
func precheck(st *Stream, method string) int {
	switch {
	case method == "":
		return 431
	case method != "CONNECT", st.authority == "":
		return 400
	}
	return 0
}

// Drain tells every client to open no more streams (GOAWAY), waits for the open ones until ctx ends, and then closes
// what is left. New connections are refused from then on.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		if len(s.conns) == 0 {
			close(s.empty)
		}
	}
	open := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		open = append(open, c)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range open {
		wg.Go(c.drain)
	}
	var err error
	select {
	case <-s.empty:
	case <-ctx.Done():
		err = ctx.Err()
		for _, c := range open {
			c.fail(fmt.Errorf("%w: %w", ErrConnectionLost, ErrServerClosed))
		}
	}
	wg.Wait()
	return err
}

// ServerStream is one CONNECT request and, once accepted, its tunnel.
type ServerStream struct {
	stream   *Stream
	answered bool // guarded by the connection's mu
}

// Authority is the :authority of the request.
func (s *ServerStream) Authority() string { return s.stream.authority }

// Header returns the request's header fields in order, pseudo-headers excluded.
func (s *ServerStream) Header() []Header { return s.stream.header }

// Get returns the first value of the named header, which must be given in lower case, or "".
func (s *ServerStream) Get(name string) string { return headerValue(s.stream.header, name) }

// Peer is the identity in the client's certificate.
func (s *ServerStream) Peer() mesh.Identity { return s.stream.c.peer }

// LocalAddr is the local address of the TCP connection: what the client dialled.
func (s *ServerStream) LocalAddr() net.Addr { return s.stream.c.localAddr() }

// RemoteAddr is the remote address of the TCP connection.
func (s *ServerStream) RemoteAddr() net.Addr { return s.stream.c.remoteAddr() }

// Accept answers 200 and returns the tunnel. It is called once, after the destination has been reached.
func (s *ServerStream) Accept(header []Header) (*Stream, error) {
	if err := (Request{Authority: "-", Header: header}).check(); err != nil {
		return nil, err
	}
	if err := s.answer(200, header); err != nil {
		return nil, err
	}
	return s.stream, nil
}

// Reject answers with a status other than 200 and ends the stream.
func (s *ServerStream) Reject(status int) error {
	if status < 300 || status > 599 {
		return fmt.Errorf("invalid status %d for a refusal", status)
	}
	return s.answer(status, nil)
}

// answer sends the one answer. A refusal ends the stream in both directions.
func (s *ServerStream) answer(status int, header []Header) error {
	st := s.stream
	c := st.c
	c.mu.Lock()
	if s.answered || st.sendErr != nil {
		err := st.sendErr
		c.mu.Unlock()
		if err == nil {
			err = errors.New("already answered")
		}
		return fmt.Errorf("answer %d: %w", status, err)
	}
	s.answered = true
	st.onFail = nil
	end := status != 200
	block := c.encodeLocked([]Header{{":status", strconv.Itoa(status)}}, header)
	must := c.queueLocked(func(b []byte) []byte { return appendHeaderBlock(b, block, st.id, end, defaultMaxFrame) })
	if end {
		st.sendErr = errWriteClosed
		if st.recvErr == nil { // the client may stop sending; RFC 9113 section 8.1
			must = st.resetLocked(NoError) || must
		} else {
			st.endLocked()
		}
	}
	c.mu.Unlock()
	if must {
		return c.flush()
	}
	return nil
}

package hbone

import (
	"context"
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
	if err := req.check(); err != nil {
		conn.Close()
		return nil, Response{}, err
	}
	hctx, cancel := context.WithTimeout(ctx, defaultHandshakeTimeout)
	defer cancel()
	tc, w, err := handshakeClient(hctx, conn, clientTLS(cert, peers, nil))
	if err != nil {
		return nil, Response{}, fmt.Errorf("inner tunnel: %w", err)
	}
	peer := tc.ConnectionState().PeerCertificates[0]
	c := newConn(tc, w, peerName(peer, peers), connConfig{
		client: true, maxStreams: 1, maxHeaderBytes: clientHeaders,
		pingInterval: defaultPingInterval, pingTimeout: defaultPingTimeout,
	})
	go func() { _ = c.run() }() // ends with the connection
	c.mu.Lock()
	c.reserved++
	c.mu.Unlock()
	s, err := c.open(req)
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
	resp, err := s.await(ctx, defaultAnswerTimeout)
	if err != nil {
		return nil, resp, err
	}
	return s, resp, nil
}

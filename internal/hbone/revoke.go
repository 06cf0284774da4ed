package hbone

import (
	"crypto/x509"
	"errors"
	"time"
)

// ErrRevoked is wrapped by what VerifyPeer returns for a certificate that was good once and is not any more. It ends
// connections that are open as well as new ones.
var ErrRevoked = errors.New("connection closed: peer certificate revoked by CRL")

// Recheck asks VerifyPeer again about the peer of every connection, those of inner tunnels included, and ends at once
// those that it refuses now. It is called when what VerifyPeer goes by has changed.
func (p *Pool) Recheck() {
	p.mu.Lock()
	all := keysOf(p.conns)
	p.mu.Unlock()
	for _, c := range all {
		c.recheck(p.cfg.VerifyPeer)
	}
}

// Recheck asks VerifyPeer again about the client of every connection, and ends at once those that it refuses now.
func (s *Server) Recheck() {
	s.mu.Lock()
	all := keysOf(s.conns)
	s.mu.Unlock()
	for _, c := range all {
		c.recheck(s.cfg.VerifyPeer)
	}
}

func keysOf(m map[*conn]struct{}) []*conn {
	all := make([]*conn, 0, len(m))
	for c := range m {
		all = append(all, c)
	}
	return all
}

func (c *conn) recheck(verify verifyFunc) {
	if verify == nil || c.path == nil {
		return
	}
	err := verify(c.path)
	if err == nil {
		return
	}
	if !c.cfg.client { // tell the peer; a client just goes
		c.wire.SetWriteDeadline(time.Now().Add(lingerTimeout))
		c.mu.Lock()
		c.ctl = appendGoAway(c.ctl, c.lastPeer, NoError, "")
		c.mu.Unlock()
		c.flushNow()
	}
	c.fail(err)
}

// remember returns verify with a memory of the path it accepted, for Recheck; nil stays nil.
func remember(verify verifyFunc, path *[]*x509.Certificate) verifyFunc {
	if verify == nil {
		return nil
	}
	return func(chain []*x509.Certificate) error {
		err := verify(chain)
		if err == nil {
			*path = chain
		}
		return err
	}
}

// Package capture tells apart the protocols with which an application may hand over a connection on one port.
package capture

import (
	"fmt"
	"net"
)

// Protocol is what a client speaks on the proxy port.
type Protocol uint8

// The protocols told apart by the first byte.
const (
	SOCKS5 Protocol = iota // first byte 0x05
	HTTP                   // anything else
)

// Detect reads the first byte of conn and returns the protocol it begins, and a connection that yields that byte again.
// The caller sets conn's deadline.
func Detect(conn net.Conn) (Protocol, *Conn, error) {
	c := &Conn{Conn: conn, early: make([]byte, 1)}
	if _, err := conn.Read(c.early); err != nil {
		return 0, nil, fmt.Errorf("read first byte: %w", err)
	}
	if c.early[0] == 0x05 {
		return SOCKS5, c, nil
	}
	return HTTP, c, nil
}

// Conn is a connection whose first bytes have been read already and are yielded again.
type Conn struct {
	net.Conn
	early []byte
}

// Read yields the early bytes and then those of the connection.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.early) > 0 {
		n := copy(p, c.early)
		c.early = c.early[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Drained reports whether all early bytes were read, so that the embedded connection may be used directly.
func (c *Conn) Drained() bool { return len(c.early) == 0 }

package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// A reset of one application is a reset to the other, in both directions and whoever is in the middle of what: no end of
// data may look complete that is not. A tunnel that is given up says CONNECT_ERROR.
func TestResetReachesTheOtherEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		busy bool // bytes are on their way both ways when it happens
	}{{"idle", false}, {"busy", true}} {
		for _, fromServer := range []bool{true, false} {
			name := c.name + ", by the client"
			if fromServer {
				name = c.name + ", by the server"
			}
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				accepted, seen := make(chan *net.TCPConn, 1), make(chan error, 1)
				serveTCP(t, netip.AddrPortFrom(serverIP, 9005), func(c *net.TCPConn) {
					accepted <- c
					<-seen
				})
				w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9005)))
				client := w.dial()
				if _, err := io.WriteString(client, "hello"); err != nil {
					t.Fatal(err)
				}
				server := <-accepted
				defer func() { seen <- nil }()
				if _, err := io.ReadFull(server, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				breaks, sees := client, server
				if fromServer {
					breaks, sees = server, client
				}
				wrote := make(chan error, 2)
				if c.busy {
					for _, side := range []net.Conn{breaks, sees} {
						go func() {
							_, err := io.Copy(onlyWriter{side}, zeros{})
							if side == net.Conn(sees) {
								wrote <- err
							}
						}()
					}
					if _, err := io.CopyN(io.Discard, sees, 1<<20); err != nil {
						t.Fatal(err)
					}
				}
				if err := errors.Join(breaks.SetLinger(0), breaks.Close()); err != nil {
					t.Fatal(err)
				}
				_, err := io.Copy(io.Discard, onlyReader{sees})
				if c.busy { // the kernel tells of a reset once: the reader or the writer
					err = errors.Join(err, <-wrote)
				}
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("the other end sees %v, want a reset", err)
				}
				meshtest.Eventually(t, "nothing is left", func() bool {
					return len(w.client.proxy.Connections()) == 0 && len(w.server.proxy.Connections()) == 0
				})
				for _, side := range []*side{w.client, w.server} { // an end like others: no error
					side.logged(t, "\tinfo\taccess\tconnection complete\t")
				}
			})
		}
	}
}

// onlyReader and onlyWriter hide the kernel's short cuts.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// Package relay moves bytes between two connections until both directions have ended, and ends connections abruptly
// when something went wrong, so that the application sees a reset and never a silent end of data.
package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
)

// Conn is one side: a connection whose two directions end independently.
type Conn interface {
	net.Conn
	CloseWrite() error
}

var (
	_ Conn = (*net.TCPConn)(nil)
	_ Conn = (*hbone.Stream)(nil)
)

// Pipe is a pair of connections being relayed. Down is the side that asked, up the side that answers.
type Pipe struct {
	Down, Up Conn
	// Early is sent to Up before anything that Down sends.
	Early []byte

	toUp, toDown atomic.Uint64 // bytes moved, where no stream counts them
	abort        sync.Once
}

// spliceChunk bounds how many bytes move inside the kernel before they are counted.
const spliceChunk = 1 << 20

// Run copies both ways until both directions have ended, and closes both connections. The orderly and the usual abrupt
// ends of a connection are not errors.
func (p *Pipe) Run() error {
	var other sync.WaitGroup // the direction that this goroutine does not copy
	var upErr, downErr error
	switch {
	case p.deliver(p.Down, p.Up, &downErr, &other): // the usual client's side
		upErr = p.upward()
	case len(p.Early) == 0 && p.deliver(p.Up, p.Down, &upErr, &other): // the usual server's side
		downErr = p.copy(p.Down, p.Up, &p.toDown)
	default:
		other.Go(func() { upErr = p.upward() })
		downErr = p.copy(p.Down, p.Up, &p.toDown)
	}
	other.Wait()
	p.Down.Close()
	p.Up.Close()
	return unusual(errors.Join(unusual(upErr), unusual(downErr)))
}

// deliver lets a stream's bytes be written to dst by the goroutine that receives them, if that is possible: an idle
// connection then takes one goroutine instead of two. It sets err before it lets go of wg.
func (p *Pipe) deliver(dst, src Conn, err *error, wg *sync.WaitGroup) bool {
	st, ok1 := src.(*hbone.Stream)
	to, ok2 := dst.(*net.TCPConn)
	if !ok1 || !ok2 {
		return false
	}
	wg.Add(1)
	st.Deliver(to, func(cause error) {
		defer wg.Done()
		*err = p.end(dst, cause)
	})
	return true
}

// upward sends what was read before, and what Down says from then on.
func (p *Pipe) upward() error {
	if len(p.Early) > 0 {
		n, err := p.Up.Write(p.Early)
		p.count(&p.toUp, p.Up, n)
		if err != nil {
			p.Abort()
			return err
		}
	}
	return p.copy(p.Up, p.Down, &p.toUp)
}

// copy moves one direction and ends it.
func (p *Pipe) copy(dst, src Conn, n *atomic.Uint64) error {
	return p.end(dst, p.move(dst, src, n))
}

// end ends a direction that was copied until err. A failure ends both directions: half a broken connection helps nobody.
func (p *Pipe) end(dst Conn, err error) error {
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		p.Abort()
	}
	return err
}

func (p *Pipe) move(dst, src Conn, n *atomic.Uint64) error {
	dt, ok1 := dst.(*net.TCPConn)
	st, ok2 := src.(*net.TCPConn)
	if !ok1 || !ok2 {
		// A stream counts for itself, and knows the fast way in both roles.
		_, err := io.Copy(dst, src)
		return err
	}
	for {
		lr := io.LimitedReader{R: st, N: spliceChunk}
		m, err := dt.ReadFrom(&lr) // splice(2): the bytes stay in the kernel
		n.Add(uint64(m))
		if err != nil || lr.N > 0 {
			return err
		}
	}
}

func (p *Pipe) count(n *atomic.Uint64, to Conn, m int) {
	if _, ok := to.(*hbone.Stream); !ok && m > 0 {
		n.Add(uint64(m))
	}
}

// Counts returns the bytes moved so far: sent to the side that asked, received from it.
func (p *Pipe) Counts() (sent, received uint64) {
	sent, received = p.toDown.Load(), p.toUp.Load()
	if s, ok := p.Up.(*hbone.Stream); ok {
		return s.BytesReceived(), s.BytesSent()
	}
	if s, ok := p.Down.(*hbone.Stream); ok {
		return s.BytesSent(), s.BytesReceived()
	}
	return sent, received
}

// Abort ends both connections at once with a reset.
func (p *Pipe) Abort() {
	p.abort.Do(func() {
		Abort(p.Down)
		Abort(p.Up)
	})
}

// Abort ends a connection with a reset.
func Abort(c net.Conn) {
	switch v := c.(type) {
	case *hbone.Stream:
		v.Reset(hbone.ConnectError)
	case interface{ SetLinger(int) error }:
		_ = v.SetLinger(0)
	}
	c.Close()
}

// firstWordTimeout is how long a refused application is given to say its first word; see Refuse.
const firstWordTimeout = 250 * time.Millisecond

// Refuse ends an application's connection with a reset, once the application has sent something, or after a moment. A
// client that was reset while it was still connecting or sending would report another error than one that was reset
// while it waits for the answer: curl says (7), (55) or (56). Waiting for its first bytes makes it always the last.
// Nothing is read.
func Refuse(c *net.TCPConn) {
	if raw, err := c.SyscallConn(); err == nil && c.SetReadDeadline(time.Now().Add(firstWordTimeout)) == nil {
		var b [1]byte
		_ = raw.Read(func(fd uintptr) bool {
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			return !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR)
		})
	}
	Abort(c)
}

// unusual returns err unless it is one of the ways in which connections end every day. CONNECT_ERROR is how a tunnel says
// that the connection at its other end was reset (RFC 9113, section 8.5).
func unusual(err error) error {
	if reset, ok := errors.AsType[*hbone.StreamError](err); ok && reset.Code == hbone.ConnectError {
		return nil
	}
	for _, usual := range []error{io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed, os.ErrClosed,
		syscall.ECONNRESET, syscall.EPIPE, syscall.ENOTCONN} {
		if errors.Is(err, usual) {
			return nil
		}
	}
	return err
}

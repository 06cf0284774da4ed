package hbone

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

var (
	_ net.Conn      = (*Stream)(nil)
	_ io.ReaderFrom = (*Stream)(nil)
	_ io.WriterTo   = (*Stream)(nil)
)

// chunkLen is the most payload sent in one go: with its frame header it fills four TLS records exactly.
const chunkLen = blockLen - frameHeaderLen

// Stream is one tunnel: a net.Conn whose two directions end independently.
//
// At most one goroutine may read, and one write, at a time; everything else may be called by any goroutine.
type Stream struct {
	c  *conn
	id uint32

	sent     atomic.Uint64
	received atomic.Uint64
	owner    func() // releases what is bound to the stream, such as the connection of a ConnectOver; may be nil

	// The rest is guarded by c.mu.
	rcond, wcond sync.Cond
	q            queue
	recvWindow   int64
	sendWindow   int64
	recvErr      error // set once the peer sends no more; io.EOF after END_STREAM
	sendErr      error // set once this end may send no more
	sink         *sink // where WriteTo or Deliver writes to, for the reading goroutine to write at once
	busy         bool  // segments of q are being written by somebody
	discard      bool  // reset or closed here: nobody reads any more
	dirty        bool  // has data that its reader was not told of; reading goroutine only
	rdl, wdl     deadline
	ended        chan struct{}
	isEnded      bool

	// The request and its answer.
	authority string
	header    []Header
	status    int
	answered  chan struct{}
	onFail    func() // server: cancels the handler's context; nil once accepted
}

func (c *conn) newStream(id uint32) *Stream {
	s := &Stream{
		c: c, id: id, recvWindow: int64(c.cfg.limits.StreamWindow), sendWindow: c.peerWindow,
		ended: make(chan struct{}), answered: make(chan struct{}),
	}
	s.rcond.L, s.wcond.L = &c.mu, &c.mu
	return s
}

// reserve waits until at least one byte may be sent and returns how many of want, and the frame size to use.
func (s *Stream) reserve(want int) (n, frame int, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if s.sendErr != nil {
			return 0, 0, s.sendErr
		}
		if s.wdl.expired {
			return 0, 0, os.ErrDeadlineExceeded
		}
		if w := min(s.sendWindow, c.sendWindow); w > 0 {
			frame = payloadLen(c.peerMaxFrame)
			n = min(want, int(w), chunkLen/frame*frame)
			s.sendWindow -= int64(n)
			c.sendWindow -= int64(n)
			return n, frame, nil
		}
		s.wcond.Wait()
	}
}

// payloadLen chooses the payload of full DATA frames: the most that the peer takes, such that frames fill TLS records.
func payloadLen(peerMax int) int {
	if peerMax >= chunkLen {
		return chunkLen
	}
	return (peerMax+frameHeaderLen)/recordPlaintext*recordPlaintext - frameHeaderLen
}

// sendChunk sends n bytes that begin at buf[frameHeaderLen:], for which reserve was called, and overwrites buf.
func (s *Stream) sendChunk(buf []byte, n, frame int) error {
	c := s.c
	c.lockWrite()
	err := c.sendControl(s)
	for off := frameHeaderLen; err == nil && n > 0; {
		m := min(n, frame)
		if err = c.writeData(s, buf, off, m); err == nil {
			s.sent.Add(uint64(m))
		}
		off += m
		n -= m
	}
	if n > 0 {
		c.mu.Lock()
		c.sendWindow += int64(n)
		c.mu.Unlock()
	}
	return c.unlockWrite(err)
}

// Write sends p, waiting for flow control.
func (s *Stream) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, frame, err := s.reserve(min(len(p), chunkLen))
		if err != nil {
			return total, err
		}
		b := newBlock(n+frameHeaderLen <= smallBlockLen)
		copy(b.buf[frameHeaderLen:], p[:n])
		err = s.sendChunk(b.buf, n, frame)
		b.release()
		if err != nil {
			return total, err
		}
		total += n
		p = p[n:]
	}
	return total, nil
}

// Read reads tunnel bytes; io.EOF follows the last of them.
func (s *Stream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	for s.busy || s.q.size == 0 {
		switch {
		case s.rdl.expired:
			c.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case !s.busy && s.recvErr != nil:
			err := s.recvErr
			c.mu.Unlock()
			return 0, err
		case len(p) == 0:
			c.mu.Unlock()
			return 0, nil
		}
		s.rcond.Wait()
	}
	if s.rdl.expired {
		c.mu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
	n := s.q.read(p)
	must := c.consumedLocked(s, n)
	c.mu.Unlock()
	s.received.Add(uint64(n))
	if must {
		_ = c.flush()
	}
	return n, nil
}

// CloseWrite ends the sending direction (END_STREAM); the other continues.
func (s *Stream) CloseWrite() error {
	c := s.c
	c.mu.Lock()
	if s.sendErr != nil {
		err := s.sendErr
		c.mu.Unlock()
		if errors.Is(err, errWriteClosed) {
			return nil
		}
		return err
	}
	s.sendErr = errWriteClosed
	must := c.queueLocked(func(b []byte) []byte { return appendFrameHeader(b, 0, typeData, flagEndStream, s.id) })
	s.wcond.Broadcast()
	s.endLocked()
	c.mu.Unlock()
	if must {
		return c.flush()
	}
	return nil
}

var errWriteClosed = fmt.Errorf("write on a tunnel closed for writing: %w", net.ErrClosed)

// endLocked forgets the stream once both directions have ended.
func (s *Stream) endLocked() {
	if s.sendErr == nil || s.recvErr == nil || s.isEnded {
		return
	}
	s.isEnded = true
	close(s.ended)
	s.answerLocked()
	if s.owner != nil {
		go s.owner()
	}
	s.c.removeLocked(s)
}

// answerLocked lets a caller waiting for the answer look.
func (s *Stream) answerLocked() {
	select {
	case <-s.answered:
	default:
		close(s.answered)
	}
}

// failLocked ends both directions; what was received before can still be read.
func (s *Stream) failLocked(err error) {
	if s.recvErr == nil {
		s.recvErr = err
	}
	if s.sendErr == nil {
		s.sendErr = err
	}
	s.rcond.Broadcast()
	s.wcond.Broadcast()
	if s.sink != nil && s.sink.done != nil && !s.busy {
		go s.settle()
	}
	if s.onFail != nil {
		s.onFail()
	}
	s.endLocked()
}

// resetByPeerLocked maps the peer's code as ztunnel does: it may end a tunnel it has no more use for with NO_ERROR or
// CANCEL, which reads as the end and writes as a broken pipe.
func (s *Stream) resetByPeerLocked(code ErrCode) {
	broken := fmt.Errorf("stream reset by peer: %s: %w", code, syscall.EPIPE)
	switch code {
	case NoError, Cancel:
		if s.recvErr == nil {
			s.recvErr = io.EOF
			if s.c.cfg.client && s.status == 0 { // to a caller waiting for the answer this is no tunnel
				s.recvErr = &StreamError{Code: code, Remote: true}
			}
		}
		s.failLocked(broken)
	case StreamClosed:
		s.failLocked(broken)
	default:
		s.failLocked(&StreamError{Code: code, Remote: true})
	}
}

// Reset ends both directions at once with RST_STREAM. It does not wait.
func (s *Stream) Reset(code ErrCode) {
	c := s.c
	c.mu.Lock()
	must := s.resetLocked(code)
	c.mu.Unlock()
	c.goFlush(must)
}

func (s *Stream) resetLocked(code ErrCode) (must bool) {
	c := s.c
	s.rdl.stop()
	s.wdl.stop()
	if !s.isEnded {
		must = c.queueLocked(func(b []byte) []byte { return appendRST(b, s.id, code) })
		c.resets[c.resetNext%rememberedResets] = s.id
		c.resetNext++
	}
	if s.recvErr != nil {
		s.recvErr = net.ErrClosed
	}
	s.discard = true
	s.failLocked(&StreamError{Code: code})
	n := s.q.drop()
	return c.consumedLocked(s, n) || must
}

// Close ends the stream: quietly if both directions are done, with RST_STREAM(CANCEL) otherwise.
func (s *Stream) Close() error {
	s.Reset(Cancel)
	return nil
}

// Done is closed when both directions have ended or the stream or its connection has failed.
func (s *Stream) Done() <-chan struct{} { return s.ended }

// BytesSent counts the tunnel bytes sent so far.
func (s *Stream) BytesSent() uint64 { return s.sent.Load() }

// BytesReceived counts the tunnel bytes handed to the reader so far.
func (s *Stream) BytesReceived() uint64 { return s.received.Load() }

// Peer is the identity in the certificate of the other end.
func (s *Stream) Peer() mesh.Identity { return s.c.peer }

// LocalAddr is the local address of the connection beneath.
func (s *Stream) LocalAddr() net.Addr { return s.c.localAddr() }

// RemoteAddr is the remote address of the connection beneath.
func (s *Stream) RemoteAddr() net.Addr { return s.c.remoteAddr() }

// deadline wakes a condition at a time. The connection's mutex guards it.
type deadline struct {
	timer   *time.Timer
	expired bool
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) set(cond *sync.Cond, t time.Time) {
	cond.L.Lock()
	defer cond.L.Unlock()
	d.stop()
	d.expired = false
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.expired = true
		cond.Broadcast()
		return
	}
	var self *time.Timer
	self = time.AfterFunc(wait, func() {
		cond.L.Lock()
		if d.timer == self {
			d.expired = true
			cond.Broadcast()
		}
		cond.L.Unlock()
	})
	d.timer = self
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	s.rdl.set(&s.rcond, t)
	s.wdl.set(&s.wcond, t)
	return nil
}

// SetReadDeadline bounds reads.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.rdl.set(&s.rcond, t)
	return nil
}

// SetWriteDeadline bounds the wait for flow control in writes. A connection that takes no bytes at all is ended by its
// pings instead.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.wdl.set(&s.wcond, t)
	return nil
}

package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ReadFrom sends everything r has, until io.EOF; it does not end the direction. Given a socket it holds no buffer while
// there is nothing to read.
func (s *Stream) ReadFrom(r io.Reader) (int64, error) {
	src := source{r: r}
	if sc, ok := r.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			src.raw = raw
			src.try = src.readNow
		}
	}
	var total int64
	for {
		if err := s.awaitWindow(); err != nil {
			return total, err
		}
		n, err := src.next()
		if n > 0 {
			sent, werr := s.sendBlock(src.block.buf, n)
			total += int64(sent)
			if werr != nil {
				src.drop()
				return total, werr
			}
		}
		src.drop()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// awaitWindow waits until something may be sent, so that a stalled stream takes no buffer to fill.
func (s *Stream) awaitWindow() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.sendErr == nil && !s.wdl.expired && min(s.sendWindow, c.sendWindow) <= 0 {
		s.wcond.Wait()
	}
	if s.sendErr == nil && s.wdl.expired {
		return os.ErrDeadlineExceeded
	}
	return s.sendErr
}

// sendBlock sends buf[frameHeaderLen:][:n], as flow control allows.
func (s *Stream) sendBlock(buf []byte, n int) (sent int, err error) {
	for n > 0 {
		m, frame, err := s.reserve(n)
		if err != nil {
			return sent, err
		}
		if err := s.sendChunk(buf[sent:], m, frame); err != nil {
			return sent, err
		}
		sent += m
		n -= m
	}
	return sent, nil
}

// source reads into blocks, leaving room for a frame header.
type source struct {
	r     io.Reader
	raw   syscall.RawConn
	try   func(fd uintptr) bool
	block *block
	n     int
	err   error
}

func (r *source) drop() {
	if r.block != nil {
		r.block.release()
		r.block = nil
	}
}

func (r *source) next() (int, error) {
	if r.raw == nil {
		r.block = newBlock(false)
		return r.r.Read(r.block.buf[frameHeaderLen:])
	}
	r.n, r.err = 0, nil
	if err := r.raw.Read(r.try); err != nil {
		return 0, err
	}
	return r.n, r.err
}

func (r *source) readNow(fd uintptr) bool {
	r.block = newBlock(false)
	for {
		n, err := syscall.Read(int(fd), r.block.buf[frameHeaderLen:])
		switch {
		case err == nil && n > 0:
			r.n = n
			return true
		case err == nil:
			r.err = io.EOF
			return true
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			r.drop()
			return false
		}
		r.err = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", err)}
		return true
	}
}

// maxSegments is how many segments are written with one call.
const maxSegments = 16

// burst is what one write needs besides the sink. An idle stream has none.
type burst struct {
	segs [maxSegments]segment
	iov  [maxSegments][]byte
}

var bursts = sync.Pool{New: func() any { return new(burst) }}

func newBurst() *burst { return bursts.Get().(*burst) } //nolint:errcheck // the pool holds nothing else

func (b *burst) release() {
	clear(b.segs[:])
	bursts.Put(b)
}

// sink writes segments to where a stream's bytes go. The stream's busy flag says who may use it.
type sink struct {
	w    io.Writer
	raw  syscall.RawConn // nil when w has no descriptor
	try  func(fd uintptr) bool
	done func(err error) // called once at the end; nil when somebody waits in WriteTo

	todo []segment
	iov  [][]byte // room for todo
	n    int
	err  error
}

func newSink(w io.Writer, done func(err error)) *sink {
	k := &sink{w: w, done: done}
	if sc, ok := w.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			k.raw = raw
			k.try = k.writeNow
		}
	}
	return k
}

// writeNow is called with the descriptor and writes what it takes without waiting.
func (k *sink) writeNow(fd uintptr) bool {
	iov := k.iov[:0]
	for _, s := range k.todo {
		iov = append(iov, s.data)
	}
	for {
		n, err := unix.Writev(int(fd), iov)
		switch {
		case err == nil:
			k.n, k.err = n, nil
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			k.n, k.err = 0, nil
		default:
			k.n, k.err = 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("writev", err)}
		}
		clear(iov)
		return true
	}
}

// write writes the segments of b: all of them if wait is set. It returns what was written and what is left, and releases
// the rest.
func (k *sink) write(b *burst, segs []segment, wait bool) (n int, left []segment, err error) {
	for len(segs) > 0 {
		m := 0
		if k.raw != nil {
			k.todo, k.iov = segs, b.iov[:]
			if err = k.raw.Write(k.try); err == nil {
				m, err = k.n, k.err
			}
			k.todo, k.iov = nil, nil
		}
		if err == nil && m == 0 && wait {
			m, err = k.w.Write(segs[0].data)
		}
		n += m
		for m > 0 && len(segs) > 0 {
			used := min(m, len(segs[0].data))
			segs[0].data = segs[0].data[used:]
			m -= used
			if len(segs[0].data) == 0 {
				segs[0].block.release()
				segs = segs[1:]
			}
		}
		if err != nil || !wait {
			break
		}
	}
	return n, segs, err
}

// WriteTo copies everything that arrives to w. Given a socket, bytes are written to it by the goroutine that received
// them as long as it takes them at once, and by the caller's when it does not.
func (s *Stream) WriteTo(w io.Writer) (total int64, err error) {
	c := s.c
	k := newSink(w, nil)
	start := s.received.Load()
	c.mu.Lock()
	if k.raw != nil {
		s.sink = k
	}
	for {
		for s.busy || (s.q.size == 0 && s.recvErr == nil && k.err == nil && !s.rdl.expired) {
			s.rcond.Wait()
		}
		if k.err != nil || s.rdl.expired || s.q.size == 0 {
			break
		}
		s.emitLocked(k, true)
	}
	s.sink = nil
	err = s.outcomeLocked(k)
	if err == nil && s.rdl.expired {
		err = os.ErrDeadlineExceeded
	}
	c.mu.Unlock()
	return int64(s.received.Load() - start), err
}

// Deliver begins to copy everything that arrives to w and returns. Bytes are written by the goroutine that received them
// as long as w takes them at once, so that nobody waits on behalf of an idle stream. done is called once, when all has
// been written that the peer sent before it ended its direction (nil) or when copying failed; it may run on the
// goroutine that reads the connection and must not block. Read deadlines do not apply.
func (s *Stream) Deliver(w *net.TCPConn, done func(err error)) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s.sink = newSink(w, done)
	c.goFlush(c.deliverLocked(s))
}

// outcomeLocked is the error with which copying to k ended; nil is the peer's end.
func (s *Stream) outcomeLocked(k *sink) error {
	switch {
	case k.err != nil:
		return k.err
	case s.q.size == 0 && s.recvErr != nil && s.recvErr != io.EOF: //nolint:errorlint // the bare value alone says that the peer is done
		return s.recvErr
	}
	return nil
}

// emitLocked writes one burst of what is queued: all of it if wait is set. Nobody else is doing so. It lets go of c.mu for
// the time. It reports whether there is something to flush, and flushes itself if it may wait.
func (s *Stream) emitLocked(k *sink, wait bool) (must bool) {
	c := s.c
	s.busy = true
	b := newBurst()
	segs := s.q.take(b.segs[:0])
	c.mu.Unlock()
	n, left, err := k.write(b, segs, wait)
	s.received.Add(uint64(n))
	c.mu.Lock()
	must = s.wroteLocked(n, left, err, k)
	b.release()
	if must && wait {
		c.mu.Unlock()
		_ = c.flush()
		c.mu.Lock()
	}
	return must
}

// wroteLocked accounts for segments that busy covered, and lets go of it. left goes back to the queue.
func (s *Stream) wroteLocked(n int, left []segment, err error, k *sink) (must bool) {
	s.busy = false
	if err != nil {
		k.err = err
	}
	if s.discard { // while the segments were out
		for _, seg := range left {
			n += len(seg.data)
			seg.block.release()
		}
	} else {
		s.q.untake(left)
	}
	if s.q.size > 0 || s.recvErr != nil || k.err != nil || s.rdl.expired {
		s.rcond.Broadcast()
	}
	return s.c.consumedLocked(s, n)
}

// deliverLocked tells the reader of s of news, or writes them on the spot. It is called by the reading goroutine with
// c.mu held, and may let go of it for a moment. It reports whether there is something to flush.
func (c *conn) deliverLocked(s *Stream) (must bool) {
	if k := s.sink; k != nil && !s.busy && s.q.size > 0 {
		must = s.emitLocked(k, false)
	} else {
		s.rcond.Signal()
	}
	s.settleLocked()
	return must
}

// settleLocked sees to what is left after a burst or an end, if it is nobody's who waits: the rest that the socket did
// not take is written by a goroutine that may wait, and an end is told. It may let go of c.mu for a moment.
func (s *Stream) settleLocked() {
	k := s.sink
	switch {
	case k == nil || k.done == nil || s.busy:
	case s.q.size > 0 && k.err == nil:
		s.busy = true // handed over
		go s.settleRest(k)
	case s.recvErr != nil || k.err != nil:
		s.sink = nil
		err := s.outcomeLocked(k)
		s.c.mu.Unlock()
		k.done(err)
		s.c.mu.Lock()
	}
}

func (s *Stream) settleRest(k *sink) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for s.busy = false; !s.busy && s.q.size > 0 && k.err == nil; {
		s.emitLocked(k, true)
	}
	s.settleLocked()
}

// settle is settleLocked for those who hold no lock.
func (s *Stream) settle() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.settleLocked()
}

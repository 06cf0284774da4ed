package hbone

import (
	"errors"
	"io"
	"net"
	"os"
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

// sink writes segments to where a stream's bytes go. The stream's busy flag says who may use it.
type sink struct {
	w    io.Writer
	raw  syscall.RawConn // nil when w has no descriptor
	segs [maxSegments]segment
	iov  [maxSegments][]byte
	try  func(fd uintptr) bool

	todo []segment
	n    int
	err  error
}

func newSink(w io.Writer) *sink {
	k := &sink{w: w}
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
		clear(k.iov[:len(iov)])
		return true
	}
}

// write writes segments: all of them if wait is set. It returns what was written and what is left, and releases the rest.
func (k *sink) write(segs []segment, wait bool) (n int, left []segment, err error) {
	for len(segs) > 0 {
		m := 0
		if k.raw != nil {
			k.todo = segs
			if err = k.raw.Write(k.try); err == nil {
				m, err = k.n, k.err
			}
			k.todo = nil
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
	k := newSink(w)
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
		s.busy = true
		segs := s.q.take(k.segs[:0])
		c.mu.Unlock()
		n, left, werr := k.write(segs, true)
		must := s.wrote(n, left, werr, k)
		if must {
			_ = c.flush()
		}
		c.mu.Lock()
	}
	s.sink = nil
	err = k.err
	switch {
	case err != nil:
	case s.q.size == 0 && s.recvErr != nil:
		if s.recvErr != io.EOF { //nolint:errorlint // the bare value alone says that the peer is done
			err = s.recvErr
		}
	case s.rdl.expired:
		err = os.ErrDeadlineExceeded
	}
	c.mu.Unlock()
	return int64(s.received.Load() - start), err
}

// wrote accounts for segments that busy covered, and lets go of it. left goes back to the queue.
func (s *Stream) wrote(n int, left []segment, err error, k *sink) (must bool) {
	c := s.c
	s.received.Add(uint64(n))
	c.mu.Lock()
	defer c.mu.Unlock()
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
	clear(k.segs[:])
	if s.q.size > 0 || s.recvErr != nil || k.err != nil || s.rdl.expired {
		s.rcond.Broadcast()
	}
	return c.consumedLocked(s, n)
}

// deliverLocked tells the reader of s of new data, or writes it on the spot. It is called by the reading goroutine with
// c.mu held, and may let go of it for a moment.
func (c *conn) deliverLocked(s *Stream) {
	k := s.sink
	if k == nil || s.busy || s.q.size == 0 {
		s.rcond.Signal()
		return
	}
	s.busy = true
	segs := s.q.take(k.segs[:0])
	c.mu.Unlock()
	n, left, err := k.write(segs, false)
	must := s.wrote(n, left, err, k)
	c.goFlush(must)
	c.mu.Lock()
}

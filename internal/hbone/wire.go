package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	recordHeaderLen = 5
	maxRecordLen    = recordHeaderLen + 16384 + 256 // of TLS 1.3, RFC 8446 section 5.2
	recordPlaintext = 16384                         // most plaintext that one record carries

	wireReadLen  = 4 * maxRecordLen
	wireWriteLen = 5 * maxRecordLen
	wireFlushAt  = 4 * recordPlaintext
)

// The pools below hold scratch memory only: a connection that is idle keeps none of it.
var (
	wireReadPool  = sync.Pool{New: func() any { b := make([]byte, wireReadLen); return &b }}
	wireWritePool = sync.Pool{New: func() any { b := make([]byte, 0, wireWriteLen); return &b }}
)

// wire is the connection beneath crypto/tls. It reads many TLS records with one system call and knows where records
// end, so that the reading loop can tell whether another one is here already; and it gathers the records of one or more
// writes into one system call.
type wire struct {
	net.Conn
	raw syscall.RawConn // nil when the connection has no descriptor

	// The reading side belongs to the one goroutine that reads.
	rbuf     *[]byte // nil when nothing is buffered
	rpos     int
	rend     int
	rerr     error // sticky
	inRecord int   // bytes not yet handed out of the record being read
	tryRead  func(fd uintptr) bool
	readErr  error // result of tryRead

	shaking  bool // the TLS handshake goes on, in which who reads has written everything before
	tryWrite func(fd uintptr) bool
	wroteAll bool // result of tryWrite

	wmu     sync.Mutex
	corked  bool    // guarded by wmu
	wbuf    *[]byte // guarded by wmu; nil when nothing waits
	writErr error   // guarded by wmu; sticky
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		if _, isTCP := conn.(*net.TCPConn); isTCP {
			if raw, err := sc.SyscallConn(); err == nil {
				w.raw = raw
			}
		}
	}
	w.tryRead, w.tryWrite = w.readNow, w.writeNow
	return w
}

// beginHandshake makes Write gather until something is read, and the last flight, after which a client reads nothing,
// until uncork: it goes together with the first request.
func (w *wire) beginHandshake() {
	w.shaking = true
	w.cork()
}

// endHandshake ends what beginHandshake began. After a failure it sends the alert that tells the peer of it.
func (w *wire) endHandshake(err error) {
	w.shaking = false
	if err != nil {
		w.SetWriteDeadline(time.Now().Add(lingerTimeout))
		_ = w.uncork()
	}
}

// readNow is called by the runtime's poller with the descriptor. The buffer is taken only once there is something to
// read, so that a waiting connection holds none.
func (w *wire) readNow(fd uintptr) bool {
	held := w.rbuf != nil
	if !held {
		w.rbuf = wireReadPool.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
		w.rpos, w.rend = 0, 0
	}
	for {
		n, err := syscall.Read(int(fd), (*w.rbuf)[w.rend:])
		switch {
		case err == nil && n > 0:
			w.rend += n
			w.readErr = nil
			return true
		case err == nil:
			w.readErr = io.EOF
			return true
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			if !held {
				w.dropReadBuffer()
			}
			return false
		}
		w.readErr = &net.OpError{Op: "read", Net: "tcp", Source: w.LocalAddr(), Addr: w.RemoteAddr(), Err: os.NewSyscallError("read", err)}
		return true
	}
}

func (w *wire) dropReadBuffer() {
	if w.rbuf != nil {
		wireReadPool.Put(w.rbuf)
		w.rbuf, w.rpos, w.rend = nil, 0, 0
	}
}

// fill reads once, blocking, and appends to what is buffered.
func (w *wire) fill() error {
	if w.rerr != nil {
		return w.rerr
	}
	if w.shaking {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if w.rpos == w.rend {
		w.dropReadBuffer()
	} else if w.rpos > 0 && w.rend+maxRecordLen > wireReadLen {
		copy(*w.rbuf, (*w.rbuf)[w.rpos:w.rend])
		w.rpos, w.rend = 0, w.rend-w.rpos
	}
	if w.raw != nil {
		if err := w.raw.Read(w.tryRead); err != nil {
			w.rerr = err
			return err
		}
		w.rerr = w.readErr
		return w.rerr
	}
	if w.rbuf == nil {
		w.rbuf = wireReadPool.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
		w.rpos, w.rend = 0, 0
	}
	n, err := w.Conn.Read((*w.rbuf)[w.rend:])
	w.rend += n
	w.rerr = err
	if n > 0 {
		return nil
	}
	return err
}

// recordLen is the length of the record that starts at rpos, or 0 while its header is incomplete.
func (w *wire) recordLen() int {
	if w.rend-w.rpos < recordHeaderLen {
		return 0
	}
	h := (*w.rbuf)[w.rpos:]
	return recordHeaderLen + int(h[3])<<8 + int(h[4])
}

// recordReady reports whether a Read through TLS finds a whole record without waiting. It is meant for record
// boundaries, where every TLS read that returned data ends.
func (w *wire) recordReady() bool {
	n := w.recordLen()
	return w.inRecord == 0 && n > 0 && w.rend-w.rpos >= n
}

// awaitRecord blocks until recordReady or until reading can only fail, which the next Read through TLS will then tell.
func (w *wire) awaitRecord() {
	for !w.recordReady() && w.inRecord == 0 && w.recordLen() <= maxRecordLen {
		if w.fill() != nil {
			return
		}
	}
}

// Read hands out bytes of at most one record.
func (w *wire) Read(p []byte) (int, error) {
	if w.inRecord == 0 {
		for w.recordLen() == 0 {
			if err := w.fill(); err != nil {
				if w.rpos < w.rend && errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return 0, err
			}
		}
		w.inRecord = w.recordLen()
	}
	if w.rpos == w.rend {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p[:min(len(p), w.inRecord)], (*w.rbuf)[w.rpos:w.rend])
	w.rpos += n
	w.inRecord -= n
	if w.rpos == w.rend {
		w.dropReadBuffer()
	}
	return n, nil
}

// cork makes Write gather until flush or uncork.
func (w *wire) cork() {
	w.wmu.Lock()
	w.corked = true
	w.wmu.Unlock()
}

// Write sends p, or keeps it for the next flush while corked.
func (w *wire) Write(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if w.writErr != nil {
		return 0, w.writErr
	}
	if !w.corked && w.wbuf == nil {
		n, err := w.Conn.Write(p)
		w.writErr = err
		return n, err
	}
	if w.wbuf != nil && len(*w.wbuf)+len(p) > cap(*w.wbuf) {
		if err := w.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) > wireWriteLen {
		n, err := w.Conn.Write(p)
		w.writErr = err
		return n, err
	}
	if w.wbuf == nil {
		w.wbuf = wireWritePool.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	}
	*w.wbuf = append(*w.wbuf, p...)
	return len(p), nil
}

// pending is the number of bytes that wait for a flush.
func (w *wire) pending() int {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if w.wbuf == nil {
		return 0
	}
	return len(*w.wbuf)
}

// uncork sends what was gathered.
func (w *wire) uncork() error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	w.corked = false
	return w.flushLocked()
}

// flush sends what was gathered, and goes on gathering.
func (w *wire) flush() error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	return w.flushLocked()
}

// tryUncork sends what was gathered as far as that is possible without waiting, and reports whether it was all of it, or
// can be none. Otherwise uncork must follow. Only a wire with a descriptor has it.
func (w *wire) tryUncork() bool {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	w.corked = false
	if w.wbuf == nil || w.writErr != nil {
		_ = w.flushLocked()
		return w.writErr == nil
	}
	w.wroteAll = false
	if err := w.raw.Write(w.tryWrite); err != nil {
		w.writErr = err
	}
	if w.wroteAll {
		w.dropWriteBuffer()
	}
	w.corked = !w.wroteAll
	return w.wroteAll
}

// writeNow is called by the runtime's poller with the descriptor, and never makes it wait. An error shows again in
// flushLocked.
func (w *wire) writeNow(fd uintptr) bool {
	b := *w.wbuf
	n, err := syscall.Write(int(fd), b)
	if err == nil && n > 0 {
		*w.wbuf = b[:copy(b, b[n:])]
		w.wroteAll = n == len(b)
	}
	return true
}

func (w *wire) dropWriteBuffer() {
	*w.wbuf = (*w.wbuf)[:0]
	wireWritePool.Put(w.wbuf)
	w.wbuf = nil
}

func (w *wire) flushLocked() error {
	if w.wbuf == nil {
		return w.writErr
	}
	if w.writErr == nil {
		_, w.writErr = w.Conn.Write(*w.wbuf)
	}
	w.dropWriteBuffer()
	return w.writErr
}

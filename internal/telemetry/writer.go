package telemetry

import (
	"errors"
	"io"
	"sync"
)

// MaxQueuedLogBytes bounds the lines that wait to be written. A full queue makes the writer wait: a line is never lost.
const MaxQueuedLogBytes = 1 << 20

// ErrWriterClosed is returned by Write after Close.
var ErrWriterClosed = errors.New("log writer is closed")

// QueuedWriter takes lines at memory speed and writes them, many per system call, from one goroutine, so that a slow
// log reader does not slow a connection until the queue is full.
type QueuedWriter struct {
	out  io.Writer
	mu   sync.Mutex
	cond sync.Cond
	done chan struct{}

	pending []byte // guarded by mu
	writing bool   // guarded by mu
	closed  bool   // guarded by mu
	err     error  // guarded by mu; the last error of out
}

// NewQueuedWriter returns a writer in front of out. Close must be called to write what is still queued.
func NewQueuedWriter(out io.Writer) *QueuedWriter {
	w := &QueuedWriter{out: out, done: make(chan struct{})}
	w.cond.L = &w.mu
	go w.loop()
	return w
}

// Write queues p, which is copied. It waits while the queue is full.
func (w *QueuedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pending) > 0 && len(w.pending)+len(p) > MaxQueuedLogBytes && !w.closed {
		w.cond.Wait()
	}
	if w.closed {
		return 0, ErrWriterClosed
	}
	w.pending = append(w.pending, p...)
	w.cond.Broadcast()
	return len(p), nil
}

// Flush waits until everything queued so far has been handed to the underlying writer.
func (w *QueuedWriter) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.pending) > 0 || w.writing {
		w.cond.Wait()
	}
	return w.err
}

// Close writes what is queued and stops. It does not close the underlying writer.
func (w *QueuedWriter) Close() error {
	w.mu.Lock()
	w.closed = true
	w.cond.Broadcast()
	w.mu.Unlock()
	<-w.done
	return w.Flush()
}

func (w *QueuedWriter) loop() {
	defer close(w.done)
	var buf []byte
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.pending) == 0 {
			if w.closed {
				return
			}
			w.cond.Wait()
		}
		buf, w.pending, w.writing = w.pending, buf[:0], true
		w.cond.Broadcast()
		w.mu.Unlock()
		_, err := w.out.Write(buf)
		if cap(buf) > 64<<10 {
			buf = nil // do not keep the memory of one burst for ever
		}
		w.mu.Lock()
		w.writing = false
		if err != nil {
			w.err = err
		}
		w.cond.Broadcast()
	}
}

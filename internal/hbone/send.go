package hbone

import (
	"fmt"
	"time"
)

// queueLocked appends control frames with f and reports whether the caller must see to their being sent, by flush or,
// on the reading goroutine, by reader.later.
func (c *conn) queueLocked(f func(b []byte) []byte) bool {
	if c.err != nil {
		return false
	}
	c.ctl = f(c.ctl)
	first := !c.scheduled
	c.scheduled = true
	return first
}

// goFlush sends what is in ctl from another goroutine.
func (c *conn) goFlush(must bool) {
	if must {
		go func() { _ = c.flush() }()
	}
}

// flush sends what is in ctl.
func (c *conn) flush() error {
	c.lockWrite()
	err := c.sendControl(nil)
	return c.unlockWrite(err)
}

// flushNow sends what is in ctl and leaves it to nobody else, for the connection is about to be closed.
func (c *conn) flushNow() {
	c.lockWrite()
	_ = c.sendControl(nil)
	_ = c.wire.uncork()
	c.wmu.Unlock()
}

func (c *conn) lockWrite() {
	c.waiters.Add(1)
	c.wmu.Lock()
	c.waiters.Add(-1)
}

// sendControl puts ctl into TLS, ahead of DATA of stream s if that is given, and returns the error with which s may not
// send any more. The check and the taking of ctl are one step, so that no DATA can follow its stream's RST_STREAM.
func (c *conn) sendControl(s *Stream) error {
	c.mu.Lock()
	out := c.ctl
	c.ctl = c.spare[:0]
	c.spare = nil
	c.scheduled = false
	if c.late != nil {
		c.late.Stop()
	}
	err := c.err
	if err == nil && s != nil {
		err = s.sendErr
	}
	c.mu.Unlock()
	c.wire.cork()
	if len(out) > 0 {
		if _, werr := c.tls.Write(out); werr != nil {
			err = werr
		}
	}
	if cap(out) <= 4<<10 {
		c.spare = out[:0]
	}
	return err
}

// tryFlush sends what is in ctl as far as that is possible without waiting, and leaves the rest to another goroutine. The
// reading goroutine calls it.
func (c *conn) tryFlush() {
	c.mu.Lock()
	n := len(c.ctl)
	c.mu.Unlock()
	if n > smallBlockLen || c.wire.raw == nil || !c.wmu.TryLock() {
		c.goFlush(true)
		return
	}
	err := c.sendControl(nil) // into memory: wireWriteLen has room for it beside wireFlushAt
	if err == nil && c.waiters.Load() > 0 || c.wire.tryUncork() {
		c.wmu.Unlock()
		return
	}
	go func() { _ = c.unlockWrite(err) }()
}

// lateTimeout is how long a frame that is in no hurry waits for others to go with.
const lateTimeout = time.Millisecond

// sendLate sends what is in ctl with whatever else is sent next, or after lateTimeout.
func (c *conn) sendLate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil || c.scheduled || len(c.ctl) == 0:
	case c.late == nil:
		c.late = time.AfterFunc(lateTimeout, func() { _ = c.flush() })
	default:
		c.late.Reset(lateTimeout)
	}
}

// unlockWrite flushes, unless the next writer is going to, and ends the connection if sending failed.
func (c *conn) unlockWrite(err error) error {
	if c.waiters.Load() == 0 || c.wire.pending() >= wireFlushAt {
		if ferr := c.wire.uncork(); ferr != nil {
			err = ferr
			c.wmu.Unlock()
			c.fail(fmt.Errorf("%w: %w", ErrConnectionLost, ferr))
			return err
		}
	}
	c.wmu.Unlock()
	return err
}

// writeData sends one DATA frame whose payload is buf[off:off+n]; the nine bytes before off are overwritten. Flow
// control has been obtained. The frame may wait in the wire for the caller's or the next writer's flush when more is true.
func (c *conn) writeData(s *Stream, buf []byte, off, n int) error {
	putFrameHeader(buf[off-frameHeaderLen:], n, typeData, 0, s.id)
	_, err := c.tls.Write(buf[off-frameHeaderLen : off+n])
	if err == nil && c.wire.pending() >= wireFlushAt {
		err = c.wire.uncork()
		c.wire.cork()
	}
	if err != nil {
		go c.fail(fmt.Errorf("%w: %w", ErrConnectionLost, err))
	}
	return err
}

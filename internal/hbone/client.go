package hbone

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// slot is the outcome of asking a connection for room.
type slot int

const (
	slotTaken   slot = iota // promised; open must follow
	slotFull                // not now
	slotPending             // not known before the peer's SETTINGS
	slotDead                // never again
)

// reserve promises a stream, if there is room. first tells whether it is the connection's first.
func (c *conn) reserve(now time.Time) (got slot, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	used := len(c.streams) + c.reserved
	switch {
	case c.err != nil || c.goAwayRecv || c.draining || c.finishing || int64(c.nextID)+int64(2*c.reserved) > maxStreamID-2:
		return slotDead, false
	case !c.expires.IsZero() && now.After(c.expires):
		c.draining = true
		if used == 0 {
			go c.finish()
		}
		return slotDead, false
	case !c.gotSettings && used > 0:
		return slotPending, false
	case used >= min(c.cfg.maxStreams, int(min(c.peerStreams, uint32(c.cfg.maxStreams)))):
		return slotFull, false
	}
	c.reserved++
	if c.idleTimer != nil {
		c.idleTimer.Stop()
	}
	return slotTaken, c.nextID == 1 && c.reserved == 1
}

// retire ends the connection if it is idle.
func (c *conn) retire() { c.finish() }

// open makes a CONNECT request on a promised stream. If must is set the caller flushes.
func (c *conn) open(req *Request) (s *Stream, must bool, err error) {
	c.mu.Lock()
	c.reserved--
	if c.err != nil || c.goAwayRecv {
		err := c.err
		if err == nil {
			err = &GoAwayError{Remote: true}
		}
		idle := c.err == nil && len(c.streams) == 0 && c.reserved == 0
		c.mu.Unlock()
		if idle {
			c.finish()
		}
		return nil, false, fmt.Errorf("%w: %w", errUnserved, err)
	}
	id := c.nextID
	c.nextID += 2
	s = c.newStream(id)
	s.authority = req.Authority
	c.streams[id] = s
	block := c.encodeLocked([]Header{{":method", "CONNECT"}, {":authority", req.Authority}}, req.Header)
	must = c.queueLocked(func(b []byte) []byte { return appendHeaderBlock(b, block, id, false, defaultMaxFrame) })
	c.mu.Unlock()
	return s, must, nil
}

// await waits for the answer to a request.
func (s *Stream) await(ctx context.Context, timeout time.Duration) (Response, error) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-s.answered:
	case <-ctx.Done():
		s.Reset(Cancel)
		return Response{}, fmt.Errorf("wait for answer to CONNECT %s: %w", s.authority, ctx.Err())
	case <-t.C:
		s.Reset(Cancel)
		return Response{}, fmt.Errorf("no answer to CONNECT %s within %s: %w", s.authority, timeout, os.ErrDeadlineExceeded)
	}
	c := s.c
	c.mu.Lock()
	resp := Response{Status: s.status, Header: s.header, Peer: c.peer}
	err := s.recvErr
	c.mu.Unlock()
	if resp.Status == 0 {
		if err == nil || err == io.EOF { //nolint:errorlint // the bare value: END_STREAM without an answer
			err = io.ErrUnexpectedEOF
		}
		return resp, fmt.Errorf("CONNECT %s: %w", s.authority, err)
	}
	if resp.Status != 200 {
		s.Reset(Cancel)
		return resp, &StatusError{Status: resp.Status}
	}
	return resp, nil
}

// check refuses requests that no peer could accept.
func (r Request) check() error {
	if r.Authority == "" || !validValue(r.Authority) {
		return fmt.Errorf("invalid authority %q", r.Authority)
	}
	for _, h := range r.Header {
		if !validName(h.Name) || !validValue(h.Value) || strings.HasPrefix(h.Name, ":") {
			return fmt.Errorf("invalid header field %q", h.Name)
		}
	}
	return nil
}

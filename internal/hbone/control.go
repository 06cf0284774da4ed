package hbone

import (
	"encoding/binary"
	"fmt"
)

// idleLocked reports whether no stream of this number has been opened yet.
func (c *conn) idleLocked(id uint32) bool {
	if id%2 == 1 == c.cfg.client { // ours
		return id >= c.nextID || id%2 == 0
	}
	return id > c.lastPeer
}

// forgottenLocked reports whether the stream was reset here not long ago, so that frames for it may still be under way.
func (c *conn) forgottenLocked(id uint32) bool {
	for _, r := range c.resets {
		if r == id {
			return true
		}
	}
	return false
}

// overflowLocked ends connections whose peer provokes answers without reading them.
func (c *conn) overflowLocked() error {
	if len(c.ctl) > maxControlBytes {
		return &GoAwayError{Code: EnhanceYourCalm, Reason: "too many frames to answer"}
	}
	return nil
}

// refuse resets a stream, known or not.
func (r *reader) refuse(id uint32, code ErrCode) {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[id]; s != nil {
		r.later(s.resetLocked(code))
		return
	}
	c.resets[c.resetNext%rememberedResets] = id
	c.resetNext++
	r.later(c.queueLocked(func(b []byte) []byte { return appendRST(b, id, code) }))
}

func (r *reader) onReset(body []byte) error {
	c := r.c
	if len(body) != 4 {
		return &GoAwayError{Code: FrameSizeError, Reason: "RST_STREAM"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[r.frame.stream]
	if s == nil {
		if c.idleLocked(r.frame.stream) {
			return protocolError("RST_STREAM on an idle stream")
		}
		return nil
	}
	s.resetByPeerLocked(ErrCode(binary.BigEndian.Uint32(body)))
	return nil
}

func (r *reader) onSettings(body []byte) error {
	c := r.c
	if r.frame.has(flagAck) {
		if len(body) != 0 {
			return &GoAwayError{Code: FrameSizeError, Reason: "SETTINGS"}
		}
		return nil
	}
	if len(body)%6 != 0 {
		return &GoAwayError{Code: FrameSizeError, Reason: "SETTINGS"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(body) > 0; body = body[6:] {
		if err := c.settingLocked(binary.BigEndian.Uint16(body), binary.BigEndian.Uint32(body[2:])); err != nil {
			return err
		}
	}
	if !c.gotSettings {
		c.gotSettings = true
		close(c.settings)
	}
	if c.err == nil {
		c.ctl = appendFrameHeader(c.ctl, 0, typeSettings, flagAck, 0)
		r.idle = true
	}
	return c.overflowLocked()
}

func (c *conn) settingLocked(id uint16, value uint32) error {
	switch id {
	case settingHeaderTableSize:
		c.enc.SetMaxDynamicTableSizeLimit(value)
		c.enc.SetMaxDynamicTableSize(min(value, headerTable))
	case settingEnablePush:
		if value > 1 || (value == 1 && c.cfg.client) {
			return protocolError("ENABLE_PUSH")
		}
	case settingMaxConcurrentStreams:
		c.peerStreams = value
	case settingInitialWindowSize:
		if value > maxWindow {
			return &GoAwayError{Code: FlowControlError, Reason: "INITIAL_WINDOW_SIZE"}
		}
		delta := int64(value) - c.peerWindow
		c.peerWindow = int64(value)
		for _, s := range c.streams {
			s.sendWindow += delta
			if s.sendWindow > maxWindow {
				return &GoAwayError{Code: FlowControlError, Reason: "INITIAL_WINDOW_SIZE"}
			}
			s.wcond.Broadcast()
		}
	case settingMaxFrameSize:
		if value < defaultMaxFrame || value > 1<<24-1 {
			return protocolError("MAX_FRAME_SIZE")
		}
		c.peerMaxFrame = int(value)
	}
	return nil
}

func (r *reader) onPing(body []byte) error {
	c := r.c
	if len(body) != 8 {
		return &GoAwayError{Code: FrameSizeError, Reason: "PING"}
	}
	data := [8]byte(body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !r.frame.has(flagAck) {
		r.later(c.queueLocked(func(b []byte) []byte { return appendPing(b, flagAck, data) }))
		return c.overflowLocked()
	}
	switch {
	case data == drainPing && c.drainPing != nil:
		close(c.drainPing)
		c.drainPing = nil
	case data == livenessPing && c.pingOut && c.err == nil:
		c.pingOut = false
		c.pingTimer.Reset(c.cfg.pingInterval)
	}
	return nil
}

func (r *reader) onGoAway(body []byte) error {
	c := r.c
	if len(body) < 8 {
		return &GoAwayError{Code: FrameSizeError, Reason: "GOAWAY"}
	}
	last := binary.BigEndian.Uint32(body) & maxStreamID
	code := ErrCode(binary.BigEndian.Uint32(body[4:]))
	if r.first {
		return &GoAwayError{Code: code, Remote: true}
	}
	c.mu.Lock()
	c.goAwayRecv = true
	var unserved []*Stream
	for id, s := range c.streams {
		if c.cfg.client && id > last {
			unserved = append(unserved, s)
		}
	}
	for _, s := range unserved {
		s.failLocked(fmt.Errorf("%w: %w", errUnserved, &GoAwayError{Code: code, Remote: true}))
	}
	final := last != maxStreamID || code != NoError
	if final || !c.cfg.client {
		c.draining = true
	}
	empty := len(c.streams) == 0 && c.reserved == 0
	c.mu.Unlock()
	if c.cfg.closed != nil {
		c.cfg.closed()
	}
	if empty && final {
		go c.finish()
	}
	return nil
}

func (r *reader) onWindowUpdate(body []byte) error {
	c, id := r.c, r.frame.stream
	if len(body) != 4 {
		return &GoAwayError{Code: FrameSizeError, Reason: "WINDOW_UPDATE"}
	}
	n := int64(binary.BigEndian.Uint32(body) & maxWindow)
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if n == 0 {
			return protocolError("WINDOW_UPDATE of 0")
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return &GoAwayError{Code: FlowControlError, Reason: "connection window overflow"}
		}
		for _, s := range c.streams {
			s.wcond.Broadcast()
		}
		return nil
	}
	s := c.streams[id]
	switch {
	case s == nil && c.idleLocked(id):
		return protocolError("WINDOW_UPDATE on an idle stream")
	case s == nil:
		return nil
	case n == 0:
		r.later(s.resetLocked(ProtocolError))
	case s.sendWindow+n > maxWindow:
		r.later(s.resetLocked(FlowControlError))
	default:
		s.sendWindow += n
		s.wcond.Broadcast()
	}
	return nil
}

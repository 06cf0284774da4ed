package hbone

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/net/http2/hpack"
)

// reader takes frames apart. It belongs to the reading goroutine. DATA is delivered as it arrives; every other frame is
// gathered first, and is small.
type reader struct {
	c     *conn
	block *block // what TLS decrypts into

	preface int // bytes of the client's preface still expected
	first   bool
	head    [frameHeaderLen]byte
	headLen int
	frame   frameHeader
	body    []byte // of a frame that did not arrive in one piece
	inBody  bool
	data    int     // payload bytes of the DATA frame still to come
	pad     int     // padding still to come
	padByte bool    // the length of the padding is still to come
	to      *Stream // whom data is for; nil discards it
	end     bool    // the frame has END_STREAM
	empty   int     // DATA frames without data, in a row

	dirty []*Stream // streams with news, told when a batch has been taken apart
	due   bool      // ctl is to be sent when a batch has been taken apart
	idle  bool      // and is to be sent before waiting for more, or with what else is going to be sent then

	dec        *hpack.Decoder
	fields     []Header
	listSize   int
	tooLarge   bool
	headerID   uint32 // stream of the header block in progress; 0 if none
	headerEnd  bool   // and whether it ends the stream
	headerSelf bool   // and whether it depends on itself, by a priority
	blockBuf   []byte
}

func (r *reader) init(c *conn) {
	r.c = c
	r.first = true
	if !c.cfg.client {
		r.preface = len(clientPreface)
	}
	r.dec = hpack.NewDecoder(headerTable, r.field)
	r.dec.SetMaxStringLength(c.cfg.maxHeaderBytes)
}

func protocolError(reason string) error { return &GoAwayError{Code: ProtocolError, Reason: reason} }

// loop reads and takes apart until an error.
func (r *reader) loop() error {
	defer func() {
		if r.block != nil {
			r.block.release()
		}
	}()
	w := r.c.wire
	for {
		r.reuse()
		r.flush()
		w.awaitRecord()
		if r.block == nil {
			r.block = newBlock(false)
		}
		b := r.block
		from := b.used
		var err error
		for {
			var n int
			n, err = r.c.tls.Read(b.buf[b.used:])
			b.used += n
			if err != nil || len(b.buf)-b.used < recordPlaintext || !w.recordReady() {
				break
			}
		}
		if ferr := r.feed(b.buf[from:b.used]); ferr != nil {
			err = ferr
		}
		r.tell()
		if err != nil {
			if errors.Is(err, io.EOF) && (r.headLen > 0 || r.inBody || r.data > 0) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// reuse makes sure that a whole record fits the block, and gives up a block nobody else refers to before waiting.
func (r *reader) reuse() {
	b := r.block
	if b == nil {
		return
	}
	if b.refs.Load() == 1 {
		b.used = 0
		if !r.c.wire.recordReady() {
			r.block = nil
			b.release()
		}
		return
	}
	if len(b.buf)-b.used < recordPlaintext {
		r.block = nil
		b.release()
	}
}

// later says that ctl must be sent, if must is set.
func (r *reader) later(must bool) { r.due = r.due || must }

// flush sends what the frames of a batch made necessary. What is in no hurry waits a little while something is under way
// that is going to be sent too: a request's answer, or an answered request's data.
func (r *reader) flush() {
	c := r.c
	switch {
	case r.due:
		c.tryFlush()
	case !r.idle || c.wire.recordReady():
		return
	default:
		c.mu.Lock()
		busy := c.handlers > 0 || c.cfg.client && len(c.streams) > 0
		c.mu.Unlock()
		if busy {
			c.sendLate()
		} else {
			c.tryFlush()
		}
	}
	r.due, r.idle = false, false
}

// tell wakes the readers of streams that got something, once per batch.
func (r *reader) tell() {
	if len(r.dirty) == 0 {
		return
	}
	r.c.mu.Lock()
	for i, s := range r.dirty {
		s.dirty = false
		r.later(r.c.deliverLocked(s))
		r.dirty[i] = nil
	}
	r.c.mu.Unlock()
	r.dirty = r.dirty[:0]
}

func (r *reader) mark(s *Stream) {
	if !s.dirty {
		s.dirty = true
		r.dirty = append(r.dirty, s)
	}
}

// feed takes p apart; p lies in r.block.
func (r *reader) feed(p []byte) error {
	for len(p) > 0 {
		var err error
		switch {
		case r.preface > 0:
			n := min(len(p), r.preface)
			at := len(clientPreface) - r.preface
			if string(p[:n]) != clientPreface[at:at+n] {
				return protocolError("bad preface")
			}
			r.preface -= n
			p = p[n:]
		case r.padByte:
			p, err = r.padLength(p)
		case r.data > 0:
			n := min(len(p), r.data)
			r.deliver(p[:n])
			r.data -= n
			p = p[n:]
			r.endData()
		case r.pad > 0:
			n := min(len(p), r.pad)
			r.pad -= n
			p = p[n:]
			r.endData()
		case r.inBody:
			n := min(len(p), r.frame.length-len(r.body))
			r.body = append(r.body, p[:n]...)
			p = p[n:]
			if len(r.body) == r.frame.length {
				r.inBody = false
				err = r.handle(r.body)
				r.body = r.body[:0]
				if cap(r.body) > smallBlockLen {
					r.body = nil
				}
			}
		default:
			p, err = r.header(p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// header reads a frame's head, and the whole frame if it is not DATA and all there.
func (r *reader) header(p []byte) ([]byte, error) {
	if r.headLen == 0 && len(p) >= frameHeaderLen {
		r.frame = parseFrameHeader(p)
		p = p[frameHeaderLen:]
	} else {
		n := copy(r.head[r.headLen:], p)
		r.headLen += n
		p = p[n:]
		if r.headLen < frameHeaderLen {
			return p, nil
		}
		r.frame = parseFrameHeader(r.head[:])
		r.headLen = 0
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.frame.typ == typeData {
		return p, r.startData()
	}
	if n := r.frame.length; n <= len(p) {
		return p[n:], r.handle(p[:n])
	}
	r.inBody = true
	r.body = r.body[:0]
	return p, nil
}

// check refuses frames that may not come here, and those longer than anything sensible.
func (r *reader) check() error {
	f := r.frame
	if r.first {
		if f.typ == typeGoAway { // from one that refuses to talk at all
			return nil
		}
		if f.typ != typeSettings || f.has(flagAck) {
			return protocolError("first frame is not SETTINGS")
		}
		r.first = false
	}
	if r.headerID != 0 && (f.typ != typeContinuation || f.stream != r.headerID) {
		return protocolError("header block interrupted")
	}
	if f.length > r.c.cfg.limits.FrameSize {
		return &GoAwayError{Code: FrameSizeError, Reason: "frame longer than advertised"}
	}
	if f.typ != typeData && f.length > r.c.cfg.maxHeaderBytes+smallBlockLen {
		return &GoAwayError{Code: EnhanceYourCalm, Reason: "frame too long for its kind"}
	}
	switch f.typ {
	case typeData, typeHeaders, typePriority, typeRSTStream, typeContinuation:
		if f.stream == 0 {
			return protocolError("frame of a stream on stream 0")
		}
	case typeSettings, typePing, typeGoAway:
		if f.stream != 0 {
			return protocolError("frame of the connection on a stream")
		}
	}
	return nil
}

// startData accounts for a DATA frame's flow control, padding included, and finds its stream.
func (r *reader) startData() error {
	c, f := r.c, r.frame
	if f.length == 0 && !f.has(flagEndStream) {
		if r.empty++; r.empty > maxEmptyFrames {
			return &GoAwayError{Code: EnhanceYourCalm, Reason: "too many empty frames"}
		}
	} else {
		r.empty = 0
	}
	if f.has(flagPadded) && f.length == 0 {
		return &GoAwayError{Code: FrameSizeError, Reason: "padded frame without padding"}
	}
	r.data, r.pad, r.padByte, r.to, r.end = f.length, 0, f.has(flagPadded), nil, f.has(flagEndStream)
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(f.length) > c.recvWindow {
		return &GoAwayError{Code: FlowControlError, Reason: "connection window exceeded"}
	}
	c.recvWindow -= int64(f.length)
	s := c.streams[f.stream]
	switch {
	case s == nil && c.idleLocked(f.stream):
		return protocolError("DATA on an idle stream")
	case s == nil:
		if !c.forgottenLocked(f.stream) {
			r.later(c.queueLocked(func(b []byte) []byte { return appendRST(b, f.stream, StreamClosed) }))
		}
	case s.recvErr != nil:
		if !c.forgottenLocked(f.stream) {
			r.later(s.resetLocked(StreamClosed))
		}
	case c.cfg.client && s.status == 0:
		return protocolError("DATA before the answer")
	case int64(f.length) > s.recvWindow:
		r.later(s.resetLocked(FlowControlError))
	default:
		s.recvWindow -= int64(f.length)
		r.to = s
	}
	r.later(c.grantLocked())
	r.endDataLocked()
	return c.overflowLocked()
}

func (r *reader) padLength(p []byte) ([]byte, error) {
	r.pad = int(p[0])
	r.padByte = false
	r.data-- // the length byte itself
	if r.pad > r.data {
		return nil, protocolError("padding longer than its frame")
	}
	r.data -= r.pad
	if r.to != nil { // padding counts for flow control and nobody reads it
		r.c.mu.Lock()
		r.to.recvWindow += int64(r.pad + 1)
		give := uint32(r.pad + 1)
		id := r.to.id
		r.later(r.c.queueLocked(func(b []byte) []byte { return appendWindowUpdate(b, id, give) }))
		r.c.mu.Unlock()
	}
	r.endData()
	return p[1:], nil
}

// deliver hands payload to its stream.
func (r *reader) deliver(p []byte) {
	s := r.to
	if s == nil {
		return
	}
	c := r.c
	c.mu.Lock()
	if s.recvErr == nil {
		s.q.push(p, r.block)
		c.buffered += int64(len(p))
		r.mark(s)
	}
	c.mu.Unlock()
}

// endData acts on END_STREAM once the frame is complete.
func (r *reader) endData() {
	if r.data > 0 || r.pad > 0 || r.to == nil {
		return
	}
	r.c.mu.Lock()
	r.endDataLocked()
	r.c.mu.Unlock()
}

func (r *reader) endDataLocked() {
	s := r.to
	if r.data > 0 || r.pad > 0 || r.padByte || s == nil {
		return
	}
	r.to = nil
	if r.end && s.recvErr == nil {
		s.recvErr = io.EOF
		r.mark(s)
		s.endLocked()
	}
}

// handle acts on a whole frame other than DATA.
func (r *reader) handle(body []byte) error {
	switch r.frame.typ {
	case typeHeaders:
		return r.onHeaders(body)
	case typeContinuation:
		return r.onContinuation(body)
	case typePriority:
		if len(body) != 5 {
			return &GoAwayError{Code: FrameSizeError, Reason: "PRIORITY"}
		}
		if binary.BigEndian.Uint32(body)&maxStreamID == r.frame.stream {
			r.refuse(r.frame.stream, ProtocolError)
		}
		return nil
	case typeRSTStream:
		return r.onReset(body)
	case typeSettings:
		return r.onSettings(body)
	case typePushPromise:
		return protocolError("PUSH_PROMISE")
	case typePing:
		return r.onPing(body)
	case typeGoAway:
		return r.onGoAway(body)
	case typeWindowUpdate:
		return r.onWindowUpdate(body)
	}
	return nil // unknown types are ignored
}

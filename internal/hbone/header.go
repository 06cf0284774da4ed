package hbone

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// errUnserved is wrapped by the errors of requests that the peer certainly did not act on.
var errUnserved = errors.New("request not served")

// fieldOverhead is what RFC 9113 section 6.5.2 adds for each field of a header list.
const fieldOverhead = 32

// field receives decoded fields. Beyond the limit they are dropped, but decoded on, to keep the table in step.
func (r *reader) field(f hpack.HeaderField) {
	r.listSize += len(f.Name) + len(f.Value) + fieldOverhead
	if r.listSize > r.c.cfg.maxHeaderBytes {
		r.tooLarge = true
		return
	}
	r.fields = append(r.fields, Header{f.Name, f.Value})
}

func (r *reader) onHeaders(p []byte) error {
	f := r.frame
	pad := 0
	if f.has(flagPadded) {
		if len(p) == 0 {
			return &GoAwayError{Code: FrameSizeError, Reason: "HEADERS"}
		}
		pad, p = int(p[0]), p[1:]
	}
	r.headerSelf = false
	if f.has(flagPriority) {
		if len(p) < 5 {
			return &GoAwayError{Code: FrameSizeError, Reason: "HEADERS"}
		}
		r.headerSelf = binary.BigEndian.Uint32(p)&maxStreamID == f.stream
		p = p[5:]
	}
	if pad > len(p) {
		return protocolError("padding longer than its frame")
	}
	p = p[:len(p)-pad]
	r.headerID, r.headerEnd = f.stream, f.has(flagEndStream)
	if f.has(flagEndHeaders) {
		return r.onBlock(p)
	}
	r.blockBuf = append(r.blockBuf[:0], p...)
	return nil
}

func (r *reader) onContinuation(p []byte) error {
	if r.headerID == 0 {
		return protocolError("CONTINUATION without HEADERS")
	}
	if len(r.blockBuf)+len(p) > r.c.cfg.maxHeaderBytes || len(p) == 0 && !r.frame.has(flagEndHeaders) {
		return &GoAwayError{Code: EnhanceYourCalm, Reason: "header block too long"}
	}
	r.blockBuf = append(r.blockBuf, p...)
	if !r.frame.has(flagEndHeaders) {
		return nil
	}
	b := r.blockBuf
	r.blockBuf = nil
	return r.onBlock(b)
}

// onBlock acts on a whole header block.
func (r *reader) onBlock(p []byte) error {
	id, end, self := r.headerID, r.headerEnd, r.headerSelf
	r.headerID = 0
	r.fields, r.listSize, r.tooLarge = nil, 0, false
	if _, err := r.dec.Write(p); err != nil {
		return &GoAwayError{Code: CompressionError, Reason: err.Error()}
	}
	if err := r.dec.Close(); err != nil {
		return &GoAwayError{Code: CompressionError, Reason: err.Error()}
	}
	if r.c.cfg.client {
		return r.onAnswer(id, end)
	}
	return r.onRequest(id, end, self)
}

// message is a header block sorted out: pseudo-fields apart.
type message struct {
	method, scheme, path, authority, protocol, status string

	has    map[string]bool
	fields []Header
}

// parseMessage sorts out and checks a header block as RFC 9113 section 8.2 and 8.3 demand.
func parseMessage(fields []Header) (message, error) {
	m := message{has: make(map[string]bool, 4)}
	regular := 0
	for i, f := range fields {
		if f.Name == "" {
			return m, errors.New("field without name")
		}
		if f.Name[0] != ':' {
			if !validName(f.Name) || !validValue(f.Value) {
				return m, fmt.Errorf("bad field %q", f.Name)
			}
			switch f.Name {
			case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
				return m, fmt.Errorf("field %q of HTTP/1", f.Name)
			case "te":
				if f.Value != "trailers" {
					return m, errors.New("bad field te")
				}
			}
			regular++
			continue
		}
		if regular > 0 || m.has[f.Name] {
			return m, fmt.Errorf("misplaced field %q", f.Name)
		}
		m.has[f.Name] = true
		m.fields = fields[i+1:]
		if !validValue(f.Value) {
			return m, fmt.Errorf("bad field %q", f.Name)
		}
		switch f.Name {
		case ":method":
			m.method = f.Value
		case ":scheme":
			m.scheme = f.Value
		case ":path":
			m.path = f.Value
		case ":authority":
			m.authority = f.Value
		case ":protocol":
			m.protocol = f.Value
		case ":status":
			m.status = f.Value
		default:
			return m, fmt.Errorf("unknown field %q", f.Name)
		}
	}
	if len(m.has) == 0 {
		m.fields = fields
	}
	return m, nil
}

// validName reports whether s is a token (RFC 9110 section 5.6.2) without upper-case letters.
func validName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// validValue reports whether s may be a field's value: no control characters but tabs, no space around it.
func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return s == "" || !isSpace(s[0]) && !isSpace(s[len(s)-1])
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// checkRequest refuses requests that are malformed rather than merely unwelcome.
func (m message) checkRequest() error {
	switch {
	case m.has[":status"] || m.method == "":
		return errors.New("not a request")
	case m.method == "CONNECT" && !m.has[":protocol"] && (m.has[":scheme"] || m.has[":path"]):
		return errors.New("CONNECT with scheme or path")
	case m.method != "CONNECT" && (m.has[":protocol"] || m.scheme == "" || m.path == ""):
		return errors.New("request without scheme or path")
	}
	return nil
}

// onRequest opens a stream for a client's request.
func (r *reader) onRequest(id uint32, end, self bool) error {
	c := r.c
	c.mu.Lock()
	if s := c.streams[id]; s != nil {
		defer c.mu.Unlock()
		return r.onTrailersLocked(s, end)
	}
	if id%2 == 0 {
		c.mu.Unlock()
		return protocolError("request on an even stream")
	}
	if id <= c.lastPeer {
		known := c.forgottenLocked(id)
		c.mu.Unlock()
		if known {
			return nil
		}
		return &GoAwayError{Code: StreamClosed, Reason: "HEADERS on a closed stream"}
	}
	if c.goAwaySent && id > c.goAwayLast || c.err != nil {
		c.mu.Unlock()
		return nil // told before that it would not be served
	}
	c.lastPeer = id
	full := len(c.streams) >= c.cfg.maxStreams || c.handlers >= 2*c.cfg.maxStreams
	c.mu.Unlock()
	m, err := parseMessage(r.fields)
	if err == nil {
		err = m.checkRequest()
	}
	switch {
	case full:
		r.refuse(id, RefusedStream)
	case self || err != nil:
		r.refuse(id, ProtocolError)
	default:
		c.mu.Lock()
		s := c.newStream(id)
		s.authority, s.header = m.authority, m.fields
		c.streams[id] = s
		c.handlers++
		if end {
			s.recvErr = io.EOF
		}
		c.mu.Unlock()
		method := m.method
		if r.tooLarge {
			method = "" // answered 431
		}
		c.cfg.serve(s, method)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.overflowLocked()
}

// onTrailersLocked ignores what trailers say, but not that they end the stream.
func (r *reader) onTrailersLocked(s *Stream, end bool) error {
	switch {
	case s.recvErr != nil && !errors.Is(s.recvErr, io.EOF):
		return nil
	case s.recvErr != nil:
		return &GoAwayError{Code: StreamClosed, Reason: "HEADERS after the end of the stream"}
	case !end:
		r.later(s.resetLocked(ProtocolError))
	default:
		s.recvErr = io.EOF
		r.mark(s)
		s.endLocked()
	}
	return nil
}

// onAnswer takes the answer to a request of ours.
func (r *reader) onAnswer(id uint32, end bool) error {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	if s == nil {
		if c.idleLocked(id) {
			return protocolError("HEADERS on an idle stream")
		}
		return nil
	}
	if s.status != 0 {
		return r.onTrailersLocked(s, end)
	}
	m, err := parseMessage(r.fields)
	status, serr := strconv.Atoi(m.status)
	if err != nil || serr != nil || len(m.status) != 3 || r.tooLarge || status < 100 || (status < 200 && end) {
		r.later(s.resetLocked(ProtocolError))
		return nil
	}
	if status < 200 {
		return nil
	}
	s.status, s.header = status, m.fields
	if end && s.recvErr == nil {
		s.recvErr = io.EOF
		r.mark(s)
	}
	s.answerLocked()
	s.endLocked()
	return nil
}

// encodeLocked encodes a header block; the result is valid until the next call. Values that differ each time are kept
// out of the compression tables.
func (c *conn) encodeLocked(pseudo, header []Header) []byte {
	c.encBuf.Reset()
	for _, h := range pseudo {
		_ = c.enc.WriteField(hpack.HeaderField{Name: h.Name, Value: h.Value})
	}
	for _, h := range header {
		once := h.Name == "traceparent" || h.Name == "forwarded"
		_ = c.enc.WriteField(hpack.HeaderField{Name: h.Name, Value: h.Value, Sensitive: once})
	}
	return c.encBuf.Bytes()
}

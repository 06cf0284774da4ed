package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// maxClientHello bounds what is buffered of a client before it is known where it goes. The largest greetings in use,
// with post-quantum key shares, are below 3 KiB.
const maxClientHello = 16 << 10

// Errors of ParseClientHello.
var (
	errIncomplete = errors.New("more bytes are needed")
	errNoSNI      = errors.New("the client named no server")
)

const (
	recordHandshake  = 22
	typeClientHello  = 1
	extServerName    = 0
	nameTypeHost     = 0
	recordHeaderLen  = 5
	maxRecordPayload = 1 << 14
)

// ParseClientHello returns the server name in the TLS greeting at the start of b, in lower case. It returns
// errIncomplete while b holds only a part of the greeting, and errNoSNI if it names no server.
func ParseClientHello(b []byte) (string, error) {
	hello, err := handshakeMessage(b)
	if err != nil {
		return "", err
	}
	r := reader{b: hello}
	r.skip(2 + 32) // version, random
	r.vector(1)    // session id
	r.vector(2)    // cipher suites
	r.vector(1)    // compression methods
	exts := reader{b: r.vector(2)}
	if r.bad {
		return "", errors.New("malformed client hello")
	}
	for len(exts.b) > 0 {
		typ := exts.uint16()
		body := exts.vector(2)
		if exts.bad {
			return "", errors.New("malformed client hello: extensions")
		}
		if typ == extServerName {
			return serverName(body)
		}
	}
	return "", errNoSNI
}

func serverName(ext []byte) (string, error) {
	outer := reader{b: ext}
	names := reader{b: outer.vector(2)}
	if outer.bad || len(outer.b) > 0 {
		return "", errors.New("malformed client hello: server name")
	}
	for len(names.b) > 0 {
		typ := names.uint8()
		name := names.vector(2)
		if names.bad {
			return "", errors.New("malformed client hello: server name")
		}
		if typ != nameTypeHost {
			continue
		}
		s := strings.ToLower(string(name))
		if !validServerName(s) {
			return "", fmt.Errorf("malformed client hello: server name %q", s)
		}
		return s, nil
	}
	return "", errNoSNI
}

func validServerName(s string) bool {
	if s == "" || len(s) > 253 || strings.HasPrefix(s, ".") || strings.HasSuffix(s, ".") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '.' && c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// handshakeMessage joins the records at the start of b that carry the client hello, and returns its body.
func handshakeMessage(b []byte) ([]byte, error) {
	var msg []byte
	want := -1
	for {
		if len(b) > 0 && b[0] != recordHandshake {
			return nil, errors.New("not a TLS client hello")
		}
		if len(b) > 1 && b[1] != 3 {
			return nil, errors.New("not a TLS client hello: unknown version")
		}
		if len(b) < recordHeaderLen {
			return nil, errIncomplete
		}
		n := int(binary.BigEndian.Uint16(b[3:]))
		if n == 0 || n > maxRecordPayload {
			return nil, fmt.Errorf("malformed TLS record of %d bytes", n)
		}
		part := b[recordHeaderLen:]
		whole := len(part) >= n
		if whole {
			part = part[:n]
		}
		msg = append(msg, part...)
		if want < 0 && len(msg) >= 4 {
			if msg[0] != typeClientHello {
				return nil, errors.New("not a TLS client hello")
			}
			if want = 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3]); want > maxClientHello {
				return nil, fmt.Errorf("client hello of %d bytes is longer than %d", want, maxClientHello)
			}
		}
		if want >= 0 && len(msg) >= want {
			return msg[4:want], nil
		}
		if !whole {
			return nil, errIncomplete
		}
		b = b[recordHeaderLen+n:]
	}
}

// reader reads length-prefixed fields; bad is set, and stays so, once something does not fit.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) skip(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint8() uint8 {
	if b := r.skip(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.skip(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// vector reads a field whose length stands before it in size bytes.
func (r *reader) vector(size int) []byte {
	var n int
	for _, c := range r.skip(size) {
		n = n<<8 | int(c)
	}
	return r.skip(n)
}

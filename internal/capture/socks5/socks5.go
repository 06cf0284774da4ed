// Package socks5 is the server's side of SOCKS version 5 (RFC 1928), as far as a mesh needs it: no authentication,
// CONNECT only. It speaks the protocol and nothing else: names are resolved, and connections made, by the caller.
package socks5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// Request is what the client asks to be connected to: a Host name or an Addr, never both.
type Request struct {
	Host string     // "" when Addr is valid
	Addr netip.Addr // never v4-mapped
	Port uint16
}

// ReplyCode is the result told to the client.
type ReplyCode byte

// The codes in use: those of RFC 1928 section 6. CommandNotSupported answers every violation of the protocol, as
// ztunnel does.
const (
	Succeeded           ReplyCode = 0
	GeneralFailure      ReplyCode = 1
	NotAllowed          ReplyCode = 2
	NetworkUnreachable  ReplyCode = 3
	HostUnreachable     ReplyCode = 4
	ConnectionRefused   ReplyCode = 5
	CommandNotSupported ReplyCode = 7
)

const (
	version        = 5
	noAuth         = 0
	noneAcceptable = 0xff
	connect        = 1
	typeIPv4       = 1
	typeName       = 3
	typeIPv6       = 4
)

// Handshake reads the greeting and the request and answers the greeting. It reads no byte beyond the request, so the
// connection can be used directly afterwards. After an error caused by the client's bytes the client has been told. The
// caller sets deadlines, and answers the request with Reply.
func Handshake(rw io.ReadWriter) (Request, error) {
	if err := greet(rw); err != nil {
		return Request{}, err
	}
	req, err := readRequest(rw)
	var v *violation
	if errors.As(err, &v) {
		if rerr := Reply(rw, CommandNotSupported); rerr != nil {
			return Request{}, errors.Join(err, rerr)
		}
	}
	return req, err
}

// violation is a fault in the client's bytes.
type violation struct{ what string }

func (v *violation) Error() string { return "socks5: " + v.what }

func violated(format string, args ...any) error { return &violation{fmt.Sprintf(format, args...)} }

func greet(rw io.ReadWriter) error {
	var head [2]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return fmt.Errorf("read socks5 greeting: %w", err)
	}
	if head[0] != version {
		return violated("version %d is not supported", head[0])
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(rw, methods); err != nil {
		return fmt.Errorf("read socks5 methods: %w", err)
	}
	answer := byte(noneAcceptable)
	for _, m := range methods {
		if m == noAuth {
			answer = noAuth
		}
	}
	if _, err := rw.Write([]byte{version, answer}); err != nil {
		return fmt.Errorf("answer socks5 greeting: %w", err)
	}
	if answer != noAuth {
		return violated("client does not offer to go without authentication")
	}
	return nil
}

func readRequest(r io.Reader) (Request, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Request{}, fmt.Errorf("read socks5 request: %w", err)
	}
	switch {
	case head[0] != version:
		return Request{}, violated("version %d in the request", head[0])
	case head[1] != connect:
		return Request{}, violated("command %d is not supported", head[1])
	case head[2] != 0:
		return Request{}, violated("reserved byte is %d", head[2])
	}
	n := 0
	switch head[3] {
	case typeIPv4:
		n = 4
	case typeIPv6:
		n = 16
	case typeName:
		var l [1]byte
		if _, err := io.ReadFull(r, l[:]); err != nil {
			return Request{}, fmt.Errorf("read socks5 name: %w", err)
		}
		n = int(l[0])
	default:
		return Request{}, violated("address type %d is not supported", head[3])
	}
	rest := make([]byte, n+2)
	if _, err := io.ReadFull(r, rest); err != nil {
		return Request{}, fmt.Errorf("read socks5 address: %w", err)
	}
	req := Request{Port: binary.BigEndian.Uint16(rest[n:])}
	if head[3] == typeName {
		return req.named(string(rest[:n]))
	}
	addr, _ := netip.AddrFromSlice(rest[:n])
	req.Addr = addr.Unmap()
	return req.checked()
}

// named fills in the destination from a name, which may be an address in text.
func (r Request) named(host string) (Request, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return Request{}, violated("address %q has a zone", host)
		}
		r.Addr = addr.Unmap()
		return r.checked()
	}
	if host == "" {
		return Request{}, violated("empty name")
	}
	for i := range len(host) {
		if c := host[i]; c <= ' ' || c >= 0x7f {
			return Request{}, violated("name %q has characters that no host name has", host)
		}
	}
	r.Host = host
	return r.checked()
}

func (r Request) checked() (Request, error) {
	if r.Port == 0 {
		return Request{}, violated("port 0")
	}
	return r, nil
}

// Reply tells the client the result; the bound address is always 0.0.0.0:0.
func Reply(w io.Writer, code ReplyCode) error {
	if _, err := w.Write([]byte{version, byte(code), 0, typeIPv4, 0, 0, 0, 0, 0, 0}); err != nil {
		return fmt.Errorf("send socks5 reply: %w", err)
	}
	return nil
}

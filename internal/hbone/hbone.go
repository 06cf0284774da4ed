// Package hbone speaks HBONE, the tunnel of Istio's ambient mesh: HTTP/2 CONNECT over mutual TLS.
//
// It has three ways in. A Pool opens tunnels and shares connections between them; ConnectOver opens one tunnel inside
// another (double HBONE); a Server accepts connections and hands every CONNECT request to a handler. The HTTP/2 layer
// is the package's own, made for few long streams that carry bulk data: there is one reading goroutine per connection,
// DATA is handed over without waiting for whole frames, and a stream's writer encrypts and sends on its own goroutine.
//
// The package knows nothing of policy, state or discovery: it proves who both ends are and moves bytes.
package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// ErrPoolClosed is returned by Pool.Connect once the pool's Run has ended.
var ErrPoolClosed = errors.New("pool draining")

// ErrConnectTimeout is wrapped by the error of a TCP connect that was not answered in time: the usual cause is a
// NetworkPolicy or security group that drops packets to the HBONE port.
var ErrConnectTimeout = errors.New("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008")

// ErrConnectionLost is wrapped by the errors of streams whose connection ended under them.
var ErrConnectionLost = errors.New("hbone connection lost")

// Certificate is what one end shows and trusts: its own chain with key, and the roots of the mesh.
type Certificate struct {
	TLS   tls.Certificate
	Roots *x509.CertPool
}

// CertSource returns the current certificate of an identity, waiting for the CA if it must.
type CertSource func(ctx context.Context, id mesh.Identity) (Certificate, error)

// Header is one header field of a CONNECT request or of its answer. Names are sent in lower case.
type Header struct{ Name, Value string }

// Key names what a pooled connection may be shared by: who asks, whom it must meet, where, and from which address.
// The order of Peers is part of the key.
type Key struct {
	Source   mesh.Identity
	Peers    []mesh.Identity
	Addr     netip.AddrPort
	SourceIP netip.Addr
}

// Request is a CONNECT request. Authority is "ip:port" or "hostname:port".
type Request struct {
	Authority string
	Header    []Header
}

// Response is the answer to a CONNECT request. Peer is the identity in the certificate of the other end.
type Response struct {
	Status int
	Header []Header
	Peer   mesh.Identity
}

// Get returns the first value of the named header, which must be given in lower case, or "".
func (r Response) Get(name string) string { return headerValue(r.Header, name) }

// StatusError says that the peer answered a CONNECT request with a status other than 200.
type StatusError struct{ Status int }

// Error returns the text operators know from ztunnel, such as "http status: 401 Unauthorized".
func (e *StatusError) Error() string {
	text := http.StatusText(e.Status)
	if text == "" {
		text = "<unknown status code>"
	}
	return fmt.Sprintf("http status: %d %s", e.Status, text)
}

// IdentityError says that a peer's certificate is genuine but does not name who was expected.
type IdentityError struct {
	Expected    []mesh.Identity // acceptable identities; nil when only a trust domain was demanded
	TrustDomain string          // the trust domain demanded, on a server
	Got         []string        // the URI names presented
}

// Error returns the text operators know from ztunnel.
func (e *IdentityError) Error() string {
	got := strings.Join(e.Got, ",")
	if e.TrustDomain != "" {
		return fmt.Sprintf("identity verification error: peer did not present the expected trustdomain (%s), got %s", e.TrustDomain, got)
	}
	want := make([]string, len(e.Expected))
	for i, id := range e.Expected {
		want[i] = id.String()
	}
	return fmt.Sprintf("identity verification error: peer did not present the expected SAN (%s), got %s", strings.Join(want, ","), got)
}

// ErrCode is an HTTP/2 error code, RFC 9113 section 7.
type ErrCode uint32

// The codes of RFC 9113.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

// String returns the name RFC 9113 gives the code.
func (c ErrCode) String() string {
	names := [...]string{
		"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
		"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
		"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code 0x%x", uint32(c))
}

// StreamError says that one stream was reset. Remote tells whether the peer did it.
type StreamError struct {
	Code   ErrCode
	Remote bool
}

// Error names the code and who reset the stream.
func (e *StreamError) Error() string {
	if e.Remote {
		return "stream reset by peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}

// GoAwayError says that the peer or this end ended a whole connection with an error.
type GoAwayError struct {
	Code   ErrCode
	Remote bool
	Reason string // what was wrong, when this end found it
}

// Error names the code, who ended the connection, and why.
func (e *GoAwayError) Error() string {
	who := "connection error"
	if e.Remote {
		who = "connection closed by peer"
	}
	if e.Reason != "" {
		return who + ": " + e.Code.String() + ": " + e.Reason
	}
	return who + ": " + e.Code.String()
}

func headerValue(hs []Header, name string) string {
	for _, h := range hs {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}

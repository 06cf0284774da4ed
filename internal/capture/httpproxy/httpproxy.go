// Package httpproxy is the server's side of an HTTP/1 forward proxy: CONNECT tunnels, and plain requests in
// absolute-form, which are rewritten for the origin server. It speaks the protocol and nothing else: names are
// resolved, and connections made, by the caller.
package httpproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Limits of a request's head; a client that exceeds one gets 431.
const (
	MaxHeadBytes = 64 << 10
	maxFields    = 256
)

// Request is what the client asks to be connected to: a Host name or an Addr, never both.
type Request struct {
	Host string     // "" when Addr is valid
	Addr netip.Addr // never v4-mapped
	Port uint16

	// Tunnel is true for CONNECT, which wants an answer (Established) before bytes flow. A plain request wants none:
	// the origin server answers.
	Tunnel bool
	// Early are the bytes to send to the destination before the client's next ones: for CONNECT what the client sent
	// early, otherwise the rewritten request with what was read of its body.
	Early []byte

	// TraceParent and TraceState are the values of the headers of these names, unchecked.
	TraceParent, TraceState []string
}

// refusal is a fault in the client's bytes, with the status to answer it.
type refusal struct {
	status int
	what   string
}

func (r *refusal) Error() string { return "http proxy: " + r.what }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// Handshake reads the request. After an error caused by the client's bytes the client has been told. The caller sets
// deadlines.
func Handshake(rw io.ReadWriter) (Request, error) {
	head, rest, err := readHead(rw)
	var req Request
	if err == nil {
		req, err = parse(head, rest)
	}
	var r *refusal
	if errors.As(err, &r) {
		if werr := Fail(rw, r.status, r.what); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	if err != nil {
		return Request{}, err
	}
	return req, nil
}

// readHead reads until the empty line and returns the head without it, and what was read beyond.
func readHead(r io.Reader) (head, rest []byte, err error) {
	buf := make([]byte, 0, 4<<10)
	for {
		from := max(0, len(buf)-3)
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, len(buf))
		}
		n, err := r.Read(buf[len(buf):min(cap(buf), MaxHeadBytes+1)])
		buf = buf[:len(buf)+n]
		if i := bytes.Index(buf[from:], []byte("\r\n\r\n")); i >= 0 {
			return buf[:from+i], buf[from+i+4:], nil
		}
		switch {
		case len(buf) > MaxHeadBytes:
			return nil, nil, refuse(http.StatusRequestHeaderFieldsTooLarge, "request head is too long")
		case errors.Is(err, io.EOF):
			return nil, nil, fmt.Errorf("read request head: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return nil, nil, fmt.Errorf("read request head: %w", err)
		}
	}
}

// parse understands a head and what was read after it.
func parse(head, rest []byte) (Request, error) {
	lines := strings.Split(string(head), "\r\n")
	parts := strings.Split(lines[0], " ")
	if len(parts) != 3 || !isToken(parts[0]) || (parts[2] != "HTTP/1.1" && parts[2] != "HTTP/1.0") {
		return Request{}, refuse(http.StatusBadRequest, "not a request of HTTP/1: %.60q", lines[0])
	}
	fields, err := parseFields(lines[1:])
	if err != nil {
		return Request{}, err
	}
	if parts[0] == http.MethodConnect {
		req := Request{Tunnel: true, Early: rest, TraceParent: values(fields, "traceparent"), TraceState: values(fields, "tracestate")}
		return req.to(parts[1], "")
	}
	u, err := url.Parse(parts[1])
	switch {
	case err != nil || u.Host == "":
		return Request{}, refuse(http.StatusBadRequest, "a proxy needs the absolute form of the target, not %.60q", parts[1])
	case u.Scheme != "http":
		return Request{}, refuse(http.StatusBadRequest, "scheme %q: use CONNECT", u.Scheme)
	case u.User != nil || u.Opaque != "":
		return Request{}, refuse(http.StatusBadRequest, "bad target %.60q", parts[1])
	}
	req, err := Request{TraceParent: values(fields, "traceparent"), TraceState: values(fields, "tracestate")}.to(u.Host, "80")
	if err != nil {
		return Request{}, err
	}
	req.Early = append(rewrite(parts[0], origin(parts[1]), u.Host, parts[2], fields), rest...)
	return req, nil
}

// origin cuts scheme and authority from an absolute-form target, leaving the rest as the client wrote it.
func origin(target string) string {
	rest := target[len("http://"):]
	i := strings.IndexAny(rest, "/?#")
	if i < 0 {
		return "/"
	}
	rest, _, _ = strings.Cut(rest[i:], "#")
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest
}

// to fills in the destination.
func (r Request) to(authority, defaultPort string) (Request, error) {
	bad := refuse(http.StatusBadRequest, "bad destination %.60q", authority)
	host, port := authority, defaultPort
	bracketed := strings.HasPrefix(authority, "[")
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && (!bracketed || authority[i-1] == ']') {
		host, port = authority[:i], authority[i+1:]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '+' {
		return Request{}, bad
	}
	r.Port = uint16(n)
	if bracketed {
		addr, err := netip.ParseAddr(strings.TrimSuffix(host[1:], "]"))
		if err != nil || !strings.HasSuffix(host, "]") || addr.Zone() != "" || !addr.Is6() {
			return Request{}, bad
		}
		r.Addr = addr.Unmap()
		return r, nil
	}
	if addr, err := netip.ParseAddr(host); err == nil && addr.Is4() {
		r.Addr = addr
		return r, nil
	}
	if host == "" || len(host) > 255 {
		return Request{}, bad
	}
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '-', c == '_':
		default:
			return Request{}, bad
		}
	}
	r.Host = host
	return r, nil
}

type field struct{ name, value string }

func parseFields(lines []string) ([]field, error) {
	if len(lines) > maxFields {
		return nil, refuse(http.StatusRequestHeaderFieldsTooLarge, "more than %d header fields", maxFields)
	}
	fields := make([]field, 0, len(lines))
	for _, l := range lines {
		name, value, ok := strings.Cut(l, ":")
		if !ok || !isToken(name) || strings.ContainsAny(value, "\r\n\x00") {
			return nil, refuse(http.StatusBadRequest, "bad header field %.60q", l)
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
	}
	return fields, nil
}

// values returns the values of the fields with a name, which is in lower case.
func values(fields []field, name string) []string {
	var out []string
	for _, f := range fields {
		if strings.EqualFold(f.name, name) {
			out = append(out, f.value)
		}
	}
	return out
}

// rewrite makes the request that the origin server gets: target in origin-form, Host from the target, the fields that
// concern only this hop left out, and an end after one exchange, since the next request may be for another server.
func rewrite(method, target, host, version string, fields []field) []byte {
	drop := []string{"host", "connection", "proxy-connection", "proxy-authorization", "keep-alive"}
	upgrade := false
	for _, f := range fields {
		if strings.EqualFold(f.name, "connection") {
			for option := range strings.SplitSeq(strings.ToLower(f.value), ",") {
				option = strings.TrimSpace(option)
				if option == "upgrade" {
					upgrade = true
				} else if option != "content-length" && option != "transfer-encoding" {
					drop = append(drop, option)
				}
			}
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s %s\r\nHost: %s\r\n", method, target, version, host)
	for _, f := range fields {
		if !slices.Contains(drop, strings.ToLower(f.name)) {
			fmt.Fprintf(&b, "%s: %s\r\n", f.name, f.value)
		}
	}
	if upgrade {
		b.WriteString("Connection: upgrade\r\n\r\n")
	} else {
		b.WriteString("Connection: close\r\n\r\n")
	}
	return b.Bytes()
}

func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// Established answers a CONNECT request with 200.
func Established(w io.Writer) error {
	if _, err := io.WriteString(w, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		return fmt.Errorf("answer CONNECT: %w", err)
	}
	return nil
}

// Fail answers with an error status, such as 502, and a short text.
func Fail(w io.Writer, status int, text string) error {
	body := text + "\n"
	_, err := fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), len(body), body)
	if err != nil {
		return fmt.Errorf("answer %d: %w", status, err)
	}
	return nil
}

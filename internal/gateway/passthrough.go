package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/live"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Fatal TLS alerts, RFC 8446 section 6.
const (
	alertDecodeError      = 50
	alertInternalError    = 80
	alertUnrecognizedName = 112
)

// serveTLS passes one TLS connection to the backend of the server name it asks for.
func (g *Gateway) serveTLS(ctx context.Context, c *net.TCPConn) {
	rec := &telemetry.Conn{Reporter: telemetry.Destination, SrcAddr: addrPort(c.RemoteAddr()), DstAddr: addrPort(c.LocalAddr()), Start: time.Now()}
	name, early, err := readClientHello(ctx, c)
	if err != nil {
		code := byte(alertDecodeError)
		if errors.Is(err, errNoSNI) {
			code = alertUnrecognizedName
		}
		g.refuse(rec, c, code, err)
		return
	}
	backend, ok := g.cfg.Routes[name]
	if !ok {
		g.refuse(rec, c, alertUnrecognizedName, fmt.Errorf("no route for server name %q", name))
		return
	}
	rec.Service = mesh.ServiceKey{Hostname: name}
	rec.ServiceName, _, _ = strings.Cut(name, ".")
	lc := &live.Conn{}
	defer g.live.Add(lc)()
	report := live.Open(rec, g.cfg.Access, g.cfg.Metrics)
	up, err := g.dial(ctx, backend)
	if err != nil {
		alert(c, alertInternalError)
		report.Failed(err)
		return
	}
	rec.DstAddr = addrPort(up.RemoteAddr())
	report.Transfer(lc, &relay.Pipe{Down: c, Up: up, Early: early})
}

func (g *Gateway) refuse(rec *telemetry.Conn, c *net.TCPConn, code byte, err error) {
	g.cfg.Access.EarlyDeny(rec, err)
	alert(c, code)
}

// readClientHello reads until the server name is known, and returns it with everything that was read.
func readClientHello(ctx context.Context, c net.Conn) (string, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 0, 2048)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		name, perr := ParseClientHello(buf)
		switch {
		case perr == nil:
			if !stop() {
				return "", nil, fmt.Errorf("read client hello: %w", context.Cause(ctx))
			}
			return name, buf, nil
		case !errors.Is(perr, errIncomplete):
			return "", nil, perr
		case err != nil:
			return "", nil, fmt.Errorf("read client hello: %w", err)
		case len(buf) > maxClientHello+maxRecordHeaders:
			return "", nil, fmt.Errorf("client hello is longer than %d bytes", maxClientHello)
		}
	}
}

// maxRecordHeaders bounds what splitting a greeting into many records may add to it.
const maxRecordHeaders = 1 << 10

// alert ends a connection with a fatal TLS alert, so that the client says what is wrong and not just "EOF".
func alert(c *net.TCPConn, code byte) {
	_ = c.SetDeadline(time.Now().Add(alertTimeout))
	if _, err := c.Write([]byte{21, 3, 3, 0, 2, 2, code}); err != nil {
		relay.Abort(c)
		return
	}
	// The client may still be sending; closing with unread bytes would turn the alert into a reset.
	if c.CloseWrite() == nil {
		var sink [2048]byte
		for range maxDrainReads {
			if _, err := c.Read(sink[:]); err != nil {
				break
			}
		}
	}
	c.Close()
}

const (
	alertTimeout  = time.Second
	maxDrainReads = 32
)

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok || t == nil {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// ParseRoutes reads GATEWAY_TLS_ROUTES: comma-separated "server-name=host:port".
func ParseRoutes(s string) (map[string]string, error) {
	routes := map[string]string{}
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, backend, ok := strings.Cut(part, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		backend = strings.TrimSpace(backend)
		if !ok || !validServerName(name) {
			return nil, fmt.Errorf("TLS route %q: want SERVER-NAME=HOST:PORT", part)
		}
		if host, port, err := net.SplitHostPort(backend); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("TLS route %q: %q is not HOST:PORT", part, backend)
		}
		if _, dup := routes[name]; dup {
			return nil, fmt.Errorf("TLS route %q: server name is routed twice", part)
		}
		routes[name] = backend
	}
	return routes, nil
}

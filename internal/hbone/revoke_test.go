package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// judge refuses everybody once it is told to.
type judge struct{ strict atomic.Bool }

func (j *judge) verify(path []*x509.Certificate) error {
	if j.strict.Load() && len(path) == 2 {
		return fmt.Errorf("%w: serial number 2", ErrRevoked)
	}
	return nil
}

// TestRecheck ends what is open, on the side that learns of a revocation, and keeps new connections out.
func TestRecheck(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"server", "pool"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			var j judge
			handled := make(chan error, 1)
			w := newWorld(t, func(_ context.Context, ss *ServerStream) {
				s, err := ss.Accept(nil)
				if err != nil {
					return
				}
				_, err = io.Copy(onlyWriter{s}, onlyReader{s})
				handled <- err
			}, options{
				server: func(c *ServerConfig) {
					c.VerifyPeer = map[bool]func([]*x509.Certificate) error{true: j.verify}[side == "server"]
				},
				pool: func(c *PoolConfig) {
					c.VerifyPeer = map[bool]func([]*x509.Certificate) error{true: j.verify}[side == "pool"]
				},
			})
			s := w.connect()
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			w.server.Recheck()
			w.pool.Recheck()
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatalf("rechecking good peers ended a stream: %v", err)
			}
			j.strict.Store(true)
			w.server.Recheck()
			w.pool.Recheck()
			_, err := io.Copy(io.Discard, onlyReader{s})
			if err == nil {
				t.Error("the client saw an orderly end")
			}
			if side == "pool" {
				wantErr(t, err, ErrRevoked)
			} else {
				wantErr(t, <-handled, ErrRevoked)
			}
			if _, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"}); err == nil {
				t.Error("a revoked peer connected again")
			} else if side == "pool" {
				wantErr(t, err, ErrRevoked)
			}
		})
	}
}

// TestRecheckInner ends the inner tunnel of double HBONE too, and the pool's end ends it as well.
func TestRecheckInner(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"revoked", "pool ends"} {
		var j judge
		w := newWorld(t, echo, options{pool: func(c *PoolConfig) { c.VerifyPeer = j.verify }})
		ctx, cancel := context.WithCancel(t.Context())
		p, err := NewPool(w.pool.cfg)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); _ = p.Run(ctx) }()
		raw, err := p.cfg.Dial(t.Context(), w.key())
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := p.ConnectOver(t.Context(), raw, w.ca.issue(t, alice), []mesh.Identity{bob}, Request{Authority: "x:1"})
		if err != nil {
			t.Fatal(err)
		}
		want := error(ErrPoolClosed)
		if end == "revoked" {
			want = ErrRevoked
			j.strict.Store(true)
			p.Recheck()
		} else {
			cancel()
		}
		_, err = s.Read(make([]byte, 1))
		wantErr(t, err, want)
		cancel()
		<-done
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		limits Limits
		ok     bool
	}{
		{Limits{}, true},
		{Limits{StreamWindow: 1 << 17, ConnWindow: 1 << 19, FrameSize: 16384}, true},
		{Limits{StreamWindow: 1000}, false},
		{Limits{ConnWindow: 1000}, false},
		{Limits{ConnWindow: maxBuffered + 1}, false},
		{Limits{FrameSize: 16383}, false},
		{Limits{FrameSize: 1 << 24}, false},
		{Limits{StreamWindow: 8 << 20, ConnWindow: 4 << 20}, false},
	} {
		if err := c.limits.Check(); (err == nil) != c.ok {
			t.Errorf("%+v.Check() = %v", c.limits, err)
		}
	}
	small := Limits{StreamWindow: 1 << 17, ConnWindow: 1 << 18, FrameSize: 16384}
	w := newWorld(t, echo, options{server: func(c *ServerConfig) { c.Limits = small }, pool: func(c *PoolConfig) { c.Limits = small }})
	s := w.connect()
	go func() { _, _ = s.Write(make([]byte, 4<<20)); _ = s.CloseWrite() }()
	if n, err := io.Copy(io.Discard, s); err != nil || n != 4<<20 {
		t.Errorf("echo through small windows: %d bytes, %v", n, err)
	}
}

func TestTLSPolicy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		client, server TLSPolicy
		max            uint16 // of the client
		version        uint16 // 0 means that they must not come together
		curve          tls.CurveID
	}{
		"default":           {version: tls.VersionTLS13},
		"post-quantum":      {client: TLSPolicy{PostQuantum: true}, server: TLSPolicy{PostQuantum: true}, version: tls.VersionTLS13, curve: tls.X25519MLKEM768},
		"one post-quantum":  {server: TLSPolicy{PostQuantum: true}, version: tls.VersionTLS13, curve: tls.X25519MLKEM768},
		"1.2 not allowed":   {client: TLSPolicy{TLS12: true}, max: tls.VersionTLS12},
		"1.2":               {client: TLSPolicy{TLS12: true}, server: TLSPolicy{TLS12: true}, max: tls.VersionTLS12, version: tls.VersionTLS12},
		"1.3 is preferred":  {client: TLSPolicy{TLS12: true}, server: TLSPolicy{TLS12: true}, version: tls.VersionTLS13},
		"1.2 meets quantum": {client: TLSPolicy{TLS12: true}, server: TLSPolicy{PostQuantum: true}, max: tls.VersionTLS12},
	} {
		ca := newAuthority(t)
		server, err := serverTLS(ca.issue(t, bob), nil)
		if err != nil {
			t.Fatal(err)
		}
		client := clientTLS(ca.issue(t, alice), []mesh.Identity{bob}, nil)
		c.client.Apply(client)
		c.server.Apply(server)
		client.MaxVersion = c.max
		got, err := shake(t, client, server)
		switch {
		case c.version == 0:
			if err == nil {
				t.Errorf("%s: agreed on %x", name, got.Version)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got.Version != c.version || c.curve != 0 && got.CurveID != c.curve:
			t.Errorf("%s: version %x, curve %v", name, got.Version, got.CurveID)
		}
	}
	if old := (TLSPolicy{TLS12: true}); true {
		cfg := &tls.Config{}
		old.Apply(cfg)
		for _, s := range tls.InsecureCipherSuites() {
			if slices.Contains(cfg.CipherSuites, s.ID) {
				t.Errorf("insecure suite %s is offered", s.Name)
			}
		}
	}
}

func shake(t *testing.T, client, server *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	served := make(chan error, 1)
	go func() {
		s := tls.Server(b, server)
		err := s.HandshakeContext(t.Context())
		served <- err
		b.Close()
	}()
	c := tls.Client(a, client)
	err := c.HandshakeContext(t.Context())
	if serr := <-served; err == nil {
		err = serr
	}
	return c.ConnectionState(), err
}

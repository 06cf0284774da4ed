// Package h2spec_test runs the public HTTP/2 conformance cases of h2spec against the listener that peers reach: HBONE's
// server, behind mutual TLS, as the inbound side of the proxy uses it.
//
// The cases were written for web servers: nearly all of them send GET, which a server of tunnels refuses with 400. So
// they are run twice:
//
//	refused  as they are; the refusal is a complete response, and everything below the request's meaning is tested
//	tunnel   through a relay that turns GET and POST into CONNECT and touches nothing else, to an application that echoes
//
// What cannot apply is listed in exceptions, with the reason; a case that is listed there and passes fails the test, so
// that the list stays true.
package h2spec_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// exceptions are the cases that a server of tunnels does not pass, by mode and "group/number", and why that is right.
// What needs a response with a body is repeated by hand in tunnel_test.go.
var exceptions = map[string]map[string]string{
	"refused": {
		"generic/2/2":     noBody,
		"generic/2/3":     noBody,
		"http2/6.5.3/1":   noBody,
		"http2/6.9.1/1":   noBody,
		"http2/6.9.2/1":   noBody,
		"http2/6.9.2/2":   noBody,
		"http2/4.2/3":     oneMegabyte,
		"http2/8.1.2.6/1": "a request that is no CONNECT is refused at its HEADERS, before there is DATA to compare with its content-length",
		"http2/8.1.2.6/2": "a request that is no CONNECT is refused at its HEADERS, before there is DATA to compare with its content-length",
	},
	"tunnel": {
		"http2/6.5.3/1":   ownBody,
		"http2/6.9.1/1":   ownBody,
		"http2/6.9.2/1":   ownBody,
		"http2/6.9.2/2":   ownBody,
		"http2/4.2/3":     oneMegabyte,
		"http2/8.1.2.6/1": noContent,
		"http2/8.1.2.6/2": noContent,
	},
}

const (
	noBody      = "the case needs a GET that is answered with a body; the answer of a server of tunnels is 400 without one"
	ownBody     = "the case needs a server that sends by itself; in a tunnel the application does"
	noContent   = "what passes through a tunnel is no content (RFC 9110, section 9.3.6), so that content-length says nothing about it"
	oneMegabyte = "the case sends 17 KiB and takes for granted that no more than 16 KiB were advertised; HBONE advertises 1 MiB"
)

// overtaken are the cases whose second frame is meant for a request that is still open. The refusal may be faster, so
// that nothing can be said about them in the first mode.
var overtaken = []string{
	"http2/5.1.2/1", "http2/5.1/8", "http2/5.1/9", "http2/6.9/2", "http2/6.9.1/3", "http2/8.1/1", "http2/8.1.2.1/3",
}

// answerTimeout is how long a case waits for the server. A case that expects silence, or that fails, takes this long.
const answerTimeout = 1500 * time.Millisecond

func TestConformance(t *testing.T) {
	cfg := serve(t)
	t.Run("refused", func(t *testing.T) { conform(t, cfg, exceptions["refused"], overtaken) })
	t.Run("tunnel", func(t *testing.T) { conform(t, translated(t, cfg), exceptions["tunnel"], nil) })
}

func conform(t *testing.T, cfg *config.Config, except map[string]string, skip []string) {
	t.Helper()
	w := &walker{cfg: cfg, except: except, skip: skip, seen: map[string]bool{}}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		w.walk(t, group)
	}
	for _, name := range slices.AppendSeq(slices.Clone(skip), maps.Keys(except)) {
		if !w.seen[name] {
			t.Errorf("the exception %s names no case", name)
		}
	}
	if len(w.seen) < 140 { // the module of cases has not become a smaller one
		t.Errorf("there are only %d cases", len(w.seen))
	}
}

// walker runs the cases of groups and of the groups below them, strict ones included.
type walker struct {
	cfg    *config.Config
	except map[string]string
	skip   []string
	seen   map[string]bool
}

func (w *walker) walk(t *testing.T, group *spec.TestGroup) {
	t.Helper()
	for i, tc := range append(append([]*spec.TestCase{}, group.Tests...), group.StrictTests...) {
		name := fmt.Sprintf("%s/%d", group.ID(), i+1)
		w.seen[name] = true
		if slices.Contains(w.skip, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w.judge(t, name, tc, run(w.cfg, tc))
		})
	}
	for _, g := range group.Groups {
		w.walk(t, g)
	}
}

// judge compares an outcome with what is expected of it.
func (w *walker) judge(t *testing.T, name string, tc *spec.TestCase, err error) {
	t.Helper()
	reason, excepted := w.except[name]
	switch {
	case errors.Is(err, spec.ErrSkipped) && !excepted:
		t.Errorf("%s: h2spec found nothing to test, and no exception says why", tc.Desc)
	case err != nil && !excepted:
		t.Errorf("%s\nrequirement: %s\n%v", tc.Desc, tc.Requirement, err)
	case err == nil && excepted:
		t.Errorf("%s: passes now; remove the exception (%s)", tc.Desc, reason)
	case excepted:
		t.Skipf("%s: %s", tc.Desc, reason)
	}
}

func run(cfg *config.Config, tc *spec.TestCase) error {
	conn, err := spec.Dial(cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	return tc.Run(cfg, conn)
}

// serve runs an HBONE server that accepts every tunnel and echoes, and returns how h2spec reaches it: with a client
// certificate of the mesh. h2spec does not know SPIFFE names, so it verifies nothing.
func serve(t *testing.T) *config.Config {
	t.Helper()
	ca := meshtest.NewCA(t)
	own := ca.Issue(t, meshtest.ID("ecs-demo-1", "echo"))
	server, err := hbone.NewServer(hbone.ServerConfig{
		Certificate: func(context.Context) (hbone.Certificate, error) {
			return hbone.Certificate{TLS: own.TLS, Roots: own.Roots}, nil
		},
		Handler: echo,
		Log:     meshtest.Discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = server.ServeConn(ctx, c) }()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		cancel()
	})
	cert, key := files(t, ca)
	addr := l.Addr().(*net.TCPAddr)
	return &config.Config{
		Host: "127.0.0.1", Port: addr.Port, Path: "/", Timeout: answerTimeout, MaxHeaderLen: 4000,
		TLS: true, Insecure: true, Strict: true, CertFile: cert, CertKeyFile: key,
	}
}

// echo is the application. It takes its time to end a tunnel on which nothing came, so that many can be open at once.
func echo(_ context.Context, ss *hbone.ServerStream) {
	s, err := ss.Accept(nil)
	if err != nil {
		return
	}
	n, err := io.Copy(s, s)
	if err != nil {
		return
	}
	if n == 0 {
		select {
		case <-s.Done():
			return
		case <-time.After(answerTimeout / 4):
		}
	}
	_ = s.CloseWrite()
	<-s.Done()
}

// files writes a client certificate and its key where h2spec reads them.
func files(t *testing.T, ca *meshtest.CA) (cert, key string) {
	t.Helper()
	client := ca.Issue(t, meshtest.ID("default", "shell"))
	der, err := x509.MarshalPKCS8PrivateKey(client.TLS.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("client.pem", "CERTIFICATE", client.TLS.Certificate[0]), write("client-key.pem", "PRIVATE KEY", der)
}

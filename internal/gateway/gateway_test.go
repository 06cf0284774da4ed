package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// hello returns the greeting that Go's TLS client sends.
func hello(t testing.TB, serverName string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	go tls.Client(client, &tls.Config{ServerName: serverName, InsecureSkipVerify: true}).Handshake()
	b := make([]byte, 16<<10)
	n, err := server.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestParseClientHello(t *testing.T) {
	good := hello(t, "Istiod.Istio-System.svc")
	if name, err := ParseClientHello(good); err != nil || name != "istiod.istio-system.svc" {
		t.Errorf("ParseClientHello = %q, %v", name, err)
	}
	for i := range good {
		if _, err := ParseClientHello(good[:i]); !errors.Is(err, errIncomplete) {
			t.Fatalf("the first %d of %d bytes = %v, want errIncomplete", i, len(good), err)
		}
	}
	if name, err := ParseClientHello(split(good, 7)); err != nil || name != "istiod.istio-system.svc" {
		t.Errorf("a greeting in records of 7 bytes = %q, %v", name, err)
	}
	if _, err := ParseClientHello(hello(t, "")); !errors.Is(err, errNoSNI) {
		t.Errorf("a greeting without name = %v, want errNoSNI", err)
	}
	for name, b := range map[string][]byte{
		"http": []byte("GET / HTTP/1.1\r\n"), "server hello": {22, 3, 3, 0, 4, 2, 0, 0, 0}, "empty record": {22, 3, 3, 0, 0},
		"huge record": {22, 3, 3, 0xff, 0xff}, "huge message": {22, 3, 3, 0x40, 0, 1, 0xff, 0xff, 0xff}, "ssl 2": {22, 2, 0, 0, 4},
		"short body": {22, 3, 3, 0, 5, 1, 0, 0, 1, 3},
	} {
		if _, err := ParseClientHello(b); err == nil || errors.Is(err, errIncomplete) {
			t.Errorf("%s = %v, want a refusal", name, err)
		}
	}
}

// split cuts the one record of a greeting into records of n bytes.
func split(b []byte, n int) []byte {
	var out []byte
	for body := b[5:]; len(body) > 0; {
		part := body[:min(n, len(body))]
		body = body[len(part):]
		out = append(append(out, b[0], b[1], b[2], byte(len(part)>>8), byte(len(part))), part...)
	}
	return out
}

func FuzzParseClientHello(f *testing.F) {
	good := hello(f, "istiod.istio-system.svc")
	f.Add(good)
	f.Add(split(good, 100))
	f.Add([]byte{22, 3, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		name, err := ParseClientHello(b)
		if err == nil && !validServerName(name) {
			t.Errorf("name %q was let through", name)
		}
		if errors.Is(err, errIncomplete) && len(b) > maxClientHello*7 {
			t.Errorf("%d bytes are still not enough", len(b))
		}
	})
}

func TestParseRoutes(t *testing.T) {
	got, err := ParseRoutes(" Istiod.svc=10.0.0.1:15012, broker.svc=broker:443 ,")
	if err != nil || fmt.Sprint(got) != "map[broker.svc:broker:443 istiod.svc:10.0.0.1:15012]" {
		t.Errorf("ParseRoutes = %v, %v", got, err)
	}
	for _, bad := range []string{"x", "=a:1", "a=b", "a=:1", "a=b:1,A=c:2", "a b=c:1"} {
		if _, err := ParseRoutes(bad); err == nil {
			t.Errorf("ParseRoutes(%q) was accepted", bad)
		}
	}
}

func TestParseServices(t *testing.T) {
	got, err := ParseServices(" *.ecs.local, Echo.default.svc.cluster.local ,")
	if err != nil || fmt.Sprint(got) != "[*.ecs.local echo.default.svc.cluster.local]" {
		t.Fatalf("ParseServices = %v, %v", got, err)
	}
	serves := matcher(got)
	for host, want := range map[string]bool{"a.ecs.local": true, "a.b.ecs.local": true, "ecs.local": false, "xecs.local": false, ".ecs.local": false,
		"echo.default.svc.cluster.local": true, "other.default.svc.cluster.local": false} {
		if serves(host) != want {
			t.Errorf("%q is served: %v, want %v", host, !want, want)
		}
	}
	for _, bad := range []string{"*", "a b", "a.*.b", "*x.local"} {
		if _, err := ParseServices(bad); err == nil {
			t.Errorf("ParseServices(%q) was accepted", bad)
		}
	}
}

// startGateway runs a gateway with TLS routes and returns its address and log.
func startGateway(t *testing.T, routes map[string]string) (string, *meshtest.Buffer) {
	t.Helper()
	log := &meshtest.Buffer{}
	levels, err := telemetry.NewLevels("info")
	if err != nil {
		t.Fatal(err)
	}
	lg := slog.New(telemetry.NewHandler(log, telemetry.Text, levels))
	g, err := New(Config{Routes: routes, Access: telemetry.NewAccessLog(lg), Log: lg, Grace: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Run(t, func(ctx context.Context) error { return g.Run(ctx, Listeners{TLS: []net.Listener{l}}) })
	return l.Addr().String(), log
}

func TestPassthrough(t *testing.T) {
	ca := meshtest.NewCA(t)
	conf := ca.ServerTLS(t, "istiod.test")
	conf.NextProtos = nil
	backend, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	go func() {
		for {
			c, err := backend.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); io.Copy(c, c) }()
		}
	}()
	addr, log := startGateway(t, map[string]string{"istiod.test": backend.Addr().String(), "down.test": "127.0.0.1:1"})
	dial := func(name string) (*tls.Conn, error) {
		return tls.Dial("tcp", addr, &tls.Config{ServerName: name, RootCAs: ca.Roots()})
	}
	c, err := dial("istiod.test")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "through"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 7)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "through" {
		t.Errorf("echo = %q, %v", b, err)
	}
	c.Close()
	meshtest.Eventually(t, "the access log", func() bool {
		return strings.Contains(log.String(), `connection complete`) && strings.Contains(log.String(), `dst.service="istiod.test"`)
	})
	for name, want := range map[string]string{"unknown.test": "unrecognized name", "down.test": "internal error"} {
		if _, err := dial(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("handshake with %s = %v, want the alert %q", name, err, want)
		}
	}
	// One route is not a default route: a client must say where it wants to go.
	if _, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("handshake without a name = %v, want an alert", err)
	}
	plain, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	io.WriteString(plain, "GET / HTTP/1.1\r\n\r\n")
	answer, _ := io.ReadAll(plain)
	if !bytes.Equal(answer, []byte{21, 3, 3, 0, 2, 2, 50}) {
		t.Errorf("answer to plain HTTP = %v, want a decode error alert", answer)
	}
	meshtest.Eventually(t, "the refusals in the log", func() bool {
		return strings.Contains(log.String(), `no route for server name \"unknown.test\"`) && strings.Contains(log.String(), "reason=CONNECT")
	})
}

// A greeting that comes in many small pieces is put together.
func TestSlowClient(t *testing.T) {
	got := make(chan []byte, 1)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer backend.Close()
	greeting := hello(t, "slow.test")
	go func() {
		c, err := backend.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, len(greeting))
		io.ReadFull(c, b)
		got <- b
	}()
	addr, _ := startGateway(t, map[string]string{"slow.test": backend.Addr().String()})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for part := range bytes.SplitSeq(greeting, nil) {
		if _, err := c.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if b := <-got; !bytes.Equal(b, greeting) {
		t.Error("the backend did not get the greeting as it was")
	}
}

// A greeting that never ends, in records that are as small as can be, is refused, not buffered.
func TestEndlessGreeting(t *testing.T) {
	addr, log := startGateway(t, map[string]string{"x.test": "127.0.0.1:1"})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := append([]byte{1, 0, 0x3f, 0}, make([]byte, 0x3f00)...) // a message of nearly 16 KiB
	if _, err := c.Write(split(append([]byte{22, 3, 3, 0, 0}, body...), 1)); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Fatal(err)
	}
	meshtest.Eventually(t, "the refusal in the log", func() bool { return strings.Contains(log.String(), "client hello is longer than 16384 bytes") })
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Config.Log") {
		t.Errorf("New() = %v", err)
	}
}

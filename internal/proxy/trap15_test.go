package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Trap 15: SOCKS says that the connection stands before the far end is reached, because only the far end can deny it. So
// a denial is what it is without SOCKS: a reset, which curl calls (56), and no refusal of SOCKS (97).
func TestTrap15DenialThroughSOCKSIsAReset(t *testing.T) {
	w := newWorld(t)
	w.store.Apply(mesh.Update{Policies: []*mesh.Policy{denyAll()}})
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(clientIP, mesh.SOCKSPort).String(), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	request := append([]byte{5, 1, 0, 3, byte(len(echoHost))}, echoHost+"\x00\x50"...) // by name, port 80
	for _, step := range []struct {
		send []byte
		want []byte
	}{
		{[]byte{5, 1, 0}, []byte{5, 0}},
		{request, []byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}},
	} {
		if _, err := c.Write(step.send); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(step.want))
		if _, err := io.ReadFull(c, got); err != nil || got[1] != 0 {
			t.Fatalf("answer % x, %v; want % x", got, err, step.want)
		}
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n") // it may be reset already
	if text, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %q, %v; want a reset", text, err)
	}
}

package capture

import (
	"io"
	"net"
	"testing"
)

func TestDetect(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]Protocol{"\x05\x01\x00": SOCKS5, "CONNECT x:1 HTTP/1.1": HTTP, "\x16\x03": HTTP} {
		a, b := net.Pipe()
		go func() {
			_, _ = io.WriteString(a, in)
			a.Close()
		}()
		got, c, err := Detect(b)
		if err != nil || got != want {
			t.Errorf("Detect(%q) = %v, %v, want %v", in, got, err, want)
			continue
		}
		if c.Drained() {
			t.Error("drained before the first byte was read again")
		}
		all, err := io.ReadAll(c)
		if err != nil || string(all) != in || !c.Drained() {
			t.Errorf("read %q, %v, want %q", all, err, in)
		}
	}
	a, b := net.Pipe()
	a.Close()
	if _, _, err := Detect(b); err == nil {
		t.Error("Detect of a closed connection succeeded")
	}
}

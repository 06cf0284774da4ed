package socks5

import (
	"bytes"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// duplex reads from one buffer and records what is written.
type duplex struct {
	io.Reader
	out bytes.Buffer
}

func (d *duplex) Write(p []byte) (int, error) { return d.out.Write(p) }

const greeting = "\x05\x01\x00"

func TestHandshake(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 255)
	for name, tc := range map[string]struct {
		in   string
		want Request
		out  string
		err  string
	}{
		"ipv4":            {in: greeting + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50", want: Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, out: "\x05\x00"},
		"ipv6":            {in: greeting + "\x05\x01\x00\x04\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x1f\x90", want: Request{Addr: netip.MustParseAddr("fd00::1"), Port: 8080}, out: "\x05\x00"},
		"mapped":          {in: greeting + "\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\x0a\x00\x00\x01\x00\x50", want: Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, out: "\x05\x00"},
		"name":            {in: greeting + "\x05\x01\x00\x03\x04echo\x00\x50", want: Request{Host: "echo", Port: 80}, out: "\x05\x00"},
		"longest name":    {in: greeting + "\x05\x01\x00\x03\xff" + long + "\x00\x50", want: Request{Host: long, Port: 80}, out: "\x05\x00"},
		"address as name": {in: greeting + "\x05\x01\x00\x03\x0810.0.0.1\x00\x50", want: Request{Addr: netip.MustParseAddr("10.0.0.1"), Port: 80}, out: "\x05\x00"},
		"two methods":     {in: "\x05\x02\x02\x00\x05\x01\x00\x03\x01a\x00\x01", want: Request{Host: "a", Port: 1}, out: "\x05\x00"},
		"version 4":       {in: "\x04\x01\x00\x50", err: "version 4"},
		"no method":       {in: "\x05\x01\x02", out: "\x05\xff", err: "without authentication"},
		"no methods":      {in: "\x05\x00", out: "\x05\xff", err: "without authentication"},
		"bind":            {in: greeting + "\x05\x02\x00\x01", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "command 2"},
		"udp associate":   {in: greeting + "\x05\x03\x00\x01", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "command 3"},
		"address type":    {in: greeting + "\x05\x01\x00\x05", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "address type 5"},
		"reserved":        {in: greeting + "\x05\x01\x01\x01", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "reserved"},
		"port 0":          {in: greeting + "\x05\x01\x00\x03\x01a\x00\x00", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "port 0"},
		"empty name":      {in: greeting + "\x05\x01\x00\x03\x00\x00\x50", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "empty name"},
		"name with NUL":   {in: greeting + "\x05\x01\x00\x03\x03a\x00b\x00\x50", out: "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00", err: "no host name has"},
		"cut off":         {in: greeting + "\x05\x01\x00\x03\x0aech", out: "\x05\x00", err: "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, chunked := range []bool{false, true} {
				var in io.Reader = strings.NewReader(tc.in + "after")
				if tc.err != "" {
					in = strings.NewReader(tc.in)
				}
				if chunked {
					in = iotest.OneByteReader(in)
				}
				d := &duplex{Reader: in}
				got, err := Handshake(d)
				if tc.err != "" {
					if err == nil || !strings.Contains(err.Error(), tc.err) {
						t.Fatalf("error = %v, want one with %q", err, tc.err)
					}
				} else if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
					t.Error(diff)
				}
				if d.out.String() != tc.out {
					t.Errorf("answered %q, want %q", d.out.String(), tc.out)
				}
				if rest, _ := io.ReadAll(in); tc.err == "" && string(rest) != "after" {
					t.Errorf("left %q unread, want all that follows", rest)
				}
			}
		})
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte(greeting + "\x05\x01\x00\x03\x04echo\x00\x50"))
	f.Add([]byte(greeting + "\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d := &duplex{Reader: bytes.NewReader(in)}
		req, err := Handshake(d)
		if err != nil {
			if req != (Request{}) {
				t.Errorf("request %v with an error", req)
			}
			return
		}
		if (req.Host == "") != req.Addr.IsValid() || req.Port == 0 || req.Addr.Is4In6() {
			t.Errorf("request %v is not one of name and address", req)
		}
	})
}

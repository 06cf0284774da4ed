package e2e

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
)

// testWire calls from one task to another and looks at every packet between them.
func testWire(t *testing.T, w *world) {
	from, to := w.task(t, cluster1, shell), w.task(t, cluster2, echo)

	// A call that goes past the proxies shows that what the test looks for would be found.
	const plain = "MARKER-OF-A-PLAIN-CALL"
	sniffer := w.startHelper(t, helperSniff, address(from), address(to))
	w.mustExec(t, from, fmt.Sprintf(`curl -sS --noproxy '*' -o /dev/null --max-time 10 -H 'X-Marker: %[1]s' http://%[2]s:8080/%[1]s`, plain, address(to)))
	if control := readCapture(t, sniffer.end(t)); !control.contains(plain) {
		t.Fatalf("a capture of %d packets does not hold the marker of a call without proxies: the capture is worth nothing", len(control.packets))
	}

	const marker = "MARKER-THAT-NOBODY-MAY-SEE"
	sniffer = w.startHelper(t, helperSniff, address(from), address(to))
	for range 3 {
		out := w.mustExec(t, from, fmt.Sprintf(`curl -sS --max-time 20 -H 'X-Marker: %[1]s' http://%[2]s/%[1]s`, marker, echoHost2))
		if !bytes.Contains([]byte(out), []byte(`"x-marker":"`+marker+`"`)) {
			t.Errorf("the echo of a call with a marker is %q, want the marker in it", out)
		}
	}
	c := readCapture(t, sniffer.end(t))
	t.Logf("%d packets, %d bytes of TCP payload, in %d connections", len(c.packets), c.payload(), len(c.streams)/2)
	if c.contains(marker) {
		t.Errorf("the marker is in the packets between %s and %s", address(from), address(to))
	}
	c.checkPorts(t)
	handshakes := 0
	for key, stream := range c.streams {
		hello := checkRecords(t, key, stream)
		if hello == nil {
			continue
		}
		handshakes++
		version := hello.version
		if hello.kind == serverHello && version != 0x0304 {
			t.Errorf("the server hello of %s chooses version %#04x, want 0x0304, TLS 1.3", key, version)
		}
		t.Logf("%s: handshake message %d with supported version %#04x", key, hello.kind, version)
	}
	if handshakes < 2 {
		t.Errorf("%d hello messages were captured, want one of a client and one of a server: did these tasks have a connection before?", handshakes)
	}
}

// flow is one direction of a TCP connection.
type flow struct{ src, dst netip.AddrPort }

func (f flow) String() string { return f.src.String() + "->" + f.dst.String() }

// segment is a part of a stream.
type segment struct {
	seq  uint32
	data []byte
}

// capture is what was seen between two addresses.
type capture struct {
	packets [][]byte
	others  map[byte]int // packets of other protocols than TCP
	streams map[flow][]byte
	syns    map[flow]bool // openings of connections
}

// readCapture reads the output of the helper.
func readCapture(t *testing.T, out []byte) capture {
	t.Helper()
	c := capture{others: map[byte]int{}, streams: map[flow][]byte{}, syns: map[flow]bool{}}
	segments, starts := map[flow][]segment{}, map[flow]uint32{}
	for len(out) > 0 {
		if len(out) < 4 || len(out) < 4+int(binary.BigEndian.Uint32(out)) {
			t.Fatalf("the capture ends within a packet")
		}
		n := int(binary.BigEndian.Uint32(out))
		packet := out[4 : 4+n]
		out = out[4+n:]
		c.packets = append(c.packets, packet)
		src, dst, _ := endpoints(packet)
		header := int(packet[0]&15) * 4
		if packet[9] != 6 || len(packet) < header+20 {
			c.others[packet[9]]++
			continue
		}
		tcp := packet[header:min(len(packet), int(binary.BigEndian.Uint16(packet[2:4])))]
		key := flow{netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:]))}
		seq, flags, data := binary.BigEndian.Uint32(tcp[4:]), tcp[13], tcp[int(tcp[12]>>4)*4:]
		if flags&2 != 0 {
			starts[key] = seq + 1
			c.syns[key] = flags&16 == 0
		}
		if len(data) > 0 {
			segments[key] = append(segments[key], segment{seq, data})
		}
	}
	for key, some := range segments {
		first, ok := starts[key]
		if !ok {
			first = some[0].seq
		}
		c.streams[key] = assemble(first, some)
	}
	return c
}

// assemble puts the segments of a stream in order, as far as there is no gap. Each was seen on several interfaces.
func assemble(first uint32, segments []segment) []byte {
	slices.SortStableFunc(segments, func(a, b segment) int { return cmp.Compare(int32(a.seq-first), int32(b.seq-first)) })
	var stream []byte
	for _, s := range segments {
		at := int(int32(s.seq - first))
		if at < 0 || at > len(stream) {
			continue
		}
		if known := len(stream) - at; known < len(s.data) {
			stream = append(stream, s.data[known:]...)
		}
	}
	return stream
}

// contains reports whether a text is in any packet, or in any stream, where it may lie across packets.
func (c capture) contains(text string) bool {
	has := func(b []byte) bool { return bytes.Contains(b, []byte(text)) }
	return slices.ContainsFunc(c.packets, has) || slices.ContainsFunc(slices.Collect(maps.Values(c.streams)), has)
}

func (c capture) payload() (n int) {
	for _, s := range c.streams {
		n += len(s)
	}
	return n
}

// checkPorts expects nothing but connections to port 15008.
func (c capture) checkPorts(t *testing.T) {
	t.Helper()
	if len(c.others) > 0 {
		t.Errorf("packets of other protocols than TCP, by number: %v", c.others)
	}
	opened := 0
	for key, opens := range c.syns {
		if opens && key.dst.Port() != 15008 {
			t.Errorf("a connection to %v, want 15008 as the only port", key.dst)
		}
		if opens {
			opened++
		}
	}
	if opened == 0 {
		t.Error("no connection was opened within the capture")
	}
	for key := range c.streams {
		if key.src.Port() != 15008 && key.dst.Port() != 15008 {
			t.Errorf("data between %v and %v, want port 15008 at one end", key.src, key.dst)
		}
	}
}

// The kinds of records and of handshake messages.
const (
	recordChangeCipher = 20
	recordHandshake    = 22
	recordData         = 23
	clientHello        = 1
	serverHello        = 2
)

// hello is a ClientHello or ServerHello.
type hello struct {
	kind    byte
	version uint16 // what supported_versions says; the best of a client's
}

// checkRecords expects a stream of TLS records of which only the hello is readable, and returns the hello, or nil when
// the stream does not begin with one.
func checkRecords(t *testing.T, key flow, stream []byte) *hello {
	t.Helper()
	var first *hello
	for at := 0; at+5 <= len(stream); {
		kind, size := stream[at], int(binary.BigEndian.Uint16(stream[at+3:]))
		end := min(at+5+size, len(stream))
		switch {
		case at == 0 && kind == recordHandshake:
			first = parseHello(stream[at+5 : end])
			if first == nil {
				t.Errorf("%s: the first record is no hello", key)
			}
		case kind == recordData, kind == recordChangeCipher && at > 0:
		default:
			t.Errorf("%s: record of type %d at byte %d, want nothing readable after the hello", key, kind, at)
			return first
		}
		at += 5 + size
	}
	return first
}

// parseHello reads the version that a hello message is about.
func parseHello(b []byte) *hello {
	if len(b) < 39 || b[0] != clientHello && b[0] != serverHello {
		return nil
	}
	h := &hello{kind: b[0], version: binary.BigEndian.Uint16(b[4:])}
	b = b[38:] // type, length, version, random
	skip := func(n int) bool {
		if n > len(b) {
			return false
		}
		b = b[n:]
		return true
	}
	ok := skip(1 + int(b[0])) // session id
	if h.kind == clientHello {
		ok = ok && len(b) >= 2 && skip(2+int(binary.BigEndian.Uint16(b))) && len(b) > 0 && skip(1+int(b[0])) // suites, compressions
	} else {
		ok = ok && skip(3)
	}
	if !ok || !skip(2) {
		return h // without extensions
	}
	for len(b) >= 4 {
		kind, size := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if !skip(4) || size > len(b) {
			return h
		}
		if body := b[:size]; kind == 43 { // supported_versions
			if h.kind == clientHello && size > 1 {
				body = body[1:]
				h.version = 0
			}
			for ; len(body) >= 2; body = body[2:] {
				if v := binary.BigEndian.Uint16(body); h.kind == serverHello || v&0x0f0f != 0x0a0a { // no GREASE
					h.version = max(h.version, v)
				}
			}
		}
		b = b[size:]
	}
	return h
}

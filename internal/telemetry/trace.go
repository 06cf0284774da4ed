package telemetry

import (
	"crypto/rand"
	"encoding/hex"
	"strings"
)

// Trace is the context of a distributed trace, in the form of the W3C recommendation that OpenTelemetry uses. A proxy
// takes it from whoever asks for a connection, logs its id, and passes it on unchanged: it makes no spans of its own, so
// it stands between parent and child without being either. The zero Trace is none.
type Trace struct {
	parent string // a traceparent that is valid
	state  string // the tracestate that came with it, or ""
}

const (
	traceParentLen = 55 // version, trace id, parent id and flags: 00-<32>-<16>-00
	maxTraceState  = 512
)

// ParseTrace reads the values of traceparent and tracestate headers. It reports false for what is not exactly one valid
// traceparent: then there is no context, and whoever needs one makes a new one. A tracestate that is too long or
// malformed is left out.
func ParseTrace(parents, states []string) (Trace, bool) {
	if len(parents) != 1 || !validTraceParent(parents[0]) {
		return Trace{}, false
	}
	t := Trace{parent: parents[0]}
	if s := strings.Join(states, ","); len(s) <= maxTraceState && validTraceState(s) {
		t.state = s
	}
	return t, true
}

// NewTrace returns a context with a fresh id that nobody samples.
func NewTrace() Trace {
	var id [24]byte
	_, _ = rand.Read(id[:]) // crypto/rand.Read never fails
	b := make([]byte, 0, traceParentLen)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, id[:16])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[16:])
	return Trace{parent: string(append(b, "-00"...))}
}

// Parent returns the value of the traceparent header.
func (t Trace) Parent() string { return t.parent }

// State returns the value of the tracestate header, or "" for none.
func (t Trace) State() string { return t.state }

// ID returns the trace id, 32 hexadecimal digits, or "" for none.
func (t Trace) ID() string {
	if t.parent == "" {
		return ""
	}
	return t.parent[3:35]
}

func validTraceParent(s string) bool {
	if len(s) != traceParentLen || s[2] != '-' || s[35] != '-' || s[52] != '-' || s[:2] == "ff" {
		return false
	}
	id, parent := s[3:35], s[36:52]
	return lowerHex(s[:2]) && lowerHex(id) && lowerHex(parent) && lowerHex(s[53:]) && !zeros(id) && !zeros(parent)
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func zeros(s string) bool { return strings.Trim(s, "0") == "" }

// validTraceState checks what matters to a hop that only passes it on: a list of key=value in printable ASCII.
func validTraceState(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	for member := range strings.SplitSeq(s, ",") {
		if member = strings.TrimSpace(member); member != "" && strings.IndexByte(member, '=') <= 0 {
			return false
		}
	}
	return true
}

package telemetry

import (
	"strings"
	"testing"
)

func TestParseTrace(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	good := "00-" + id + "-" + parent + "-01"
	got, ok := ParseTrace([]string{good}, []string{"rojo=00f067aa0ba902b7", "congo=t61rcWkgMzE"})
	if !ok || got.Parent() != good || got.ID() != id || got.State() != "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE" {
		t.Errorf("ParseTrace = %+v, %v", got, ok)
	}
	if got, ok := ParseTrace([]string{"01-" + id + "-" + parent + "-ff"}, nil); !ok || got.ID() != id {
		t.Errorf("a later version = %+v, %v, want it passed on", got, ok)
	}
	for name, bad := range map[string][]string{
		"none": nil, "empty": {""}, "two": {good, good}, "short": {good[:54]}, "long": {good + "-x"}, "huge": {strings.Repeat("0", 1<<20)},
		"version ff":   {"ff-" + id + "-" + parent + "-01"},
		"zero id":      {"00-" + strings.Repeat("0", 32) + "-" + parent + "-01"},
		"zero parent":  {"00-" + id + "-" + strings.Repeat("0", 16) + "-01"},
		"upper case":   {strings.ToUpper(good)},
		"not hex":      {"00-" + strings.Repeat("g", 32) + "-" + parent + "-01"},
		"wrong dashes": {strings.Replace(good, "-", "_", 1)},
		"line break":   {good[:54] + "\n"},
		"flags":        {good[:53] + "0x"},
	} {
		if got, ok := ParseTrace(bad, []string{"a=b"}); ok || got != (Trace{}) || got.ID() != "" {
			t.Errorf("%s: ParseTrace = %+v, want none", name, got)
		}
	}
	for name, bad := range map[string]string{"long": "a=" + strings.Repeat("b", maxTraceState), "no key": "=b", "no value": "a", "line break": "a=b\r\nx: y", "not ascii": "a=é"} {
		if got, ok := ParseTrace([]string{good}, []string{bad}); !ok || got.State() != "" {
			t.Errorf("%s: ParseTrace = %+v, %v; want the trace without a state", name, got, ok)
		}
	}
}

func TestNewTrace(t *testing.T) {
	a, b := NewTrace(), NewTrace()
	if back, ok := ParseTrace([]string{a.Parent()}, nil); !ok || back != a || a.ID() == b.ID() || !strings.HasSuffix(a.Parent(), "-00") {
		t.Errorf("NewTrace = %+v, then %+v; want valid ones that differ and that nobody samples", a, b)
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, parent, state string) {
		got, ok := ParseTrace([]string{parent}, []string{state})
		if ok != (got.ID() != "") || ok && got.Parent() != parent {
			t.Errorf("ParseTrace(%q) = %+v, %v", parent, got, ok)
		}
		for _, s := range []string{got.Parent(), got.State()} {
			if len(s) > maxTraceState || strings.ContainsAny(s, "\r\n\x00") {
				t.Errorf("%q would be passed on", s)
			}
		}
	})
}

package live

import (
	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// The headers of a CONNECT request that say what trace it is part of.
const (
	HeaderTrace      = "traceparent"
	HeaderTraceState = "tracestate"
)

// TraceOf returns the trace that a request with these headers is part of: the one they name or, if they name none that is
// valid, a new one.
func TraceOf(hs []hbone.Header) telemetry.Trace {
	var parents, states []string
	for _, h := range hs {
		switch h.Name {
		case HeaderTrace:
			parents = append(parents, h.Value)
		case HeaderTraceState:
			states = append(states, h.Value)
		}
	}
	t, ok := telemetry.ParseTrace(parents, states)
	if !ok {
		t = telemetry.NewTrace()
	}
	return t
}

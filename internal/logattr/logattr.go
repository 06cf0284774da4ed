// Package logattr holds a constructor for every log attribute the data plane uses, so that one key has one spelling,
// one type and one meaning. The access-log keys are Istio's: dotted, flat, and the same on a Kubernetes node as in an
// ECS task, which is why they are literal keys and never slog groups.
package logattr

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// ScopeKey is the key by which a handler recognises the scope of a logger; it is printed as the target column.
const ScopeKey = "scope"

// Bare is text that the text format prints without quotes, as it prints addresses and numbers.
type Bare string

// Scope names the component a logger belongs to. Levels are set per scope.
func Scope(name string) slog.Attr { return slog.String(ScopeKey, name) }

// Err is what went wrong.
func Err(err error) slog.Attr {
	if err == nil {
		return slog.Attr{}
	}
	return slog.String("error", err.Error())
}

// ErrText is what went wrong, already worded.
func ErrText(s string) slog.Attr { return text("error", s) }

// SrcAddr is the address of the connection's client.
func SrcAddr(a netip.AddrPort) slog.Attr { return addr("src.addr", a) }

// SrcWorkload is the client's workload name.
func SrcWorkload(s string) slog.Attr { return text("src.workload", s) }

// SrcNamespace is the client's namespace.
func SrcNamespace(s string) slog.Attr { return text("src.namespace", s) }

// SrcIdentity is the client's identity, proved by mutual TLS.
func SrcIdentity(id mesh.Identity) slog.Attr { return text("src.identity", id.String()) }

// SrcCluster is the client's cluster.
func SrcCluster(s string) slog.Attr { return text("src.cluster", s) }

// DstAddr is the address the connection goes to on the wire.
func DstAddr(a netip.AddrPort) slog.Attr { return addr("dst.addr", a) }

// DstHBONEAddr is the authority asked for inside the tunnel.
func DstHBONEAddr(s string) slog.Attr {
	if s == "" {
		return slog.Attr{}
	}
	return slog.Any("dst.hbone_addr", Bare(s))
}

// DstService is the hostname of the service asked for.
func DstService(s string) slog.Attr { return text("dst.service", s) }

// DstWorkload is the server's workload name.
func DstWorkload(s string) slog.Attr { return text("dst.workload", s) }

// DstNamespace is the server's namespace.
func DstNamespace(s string) slog.Attr { return text("dst.namespace", s) }

// DstIdentity is the server's identity, proved by mutual TLS.
func DstIdentity(id mesh.Identity) slog.Attr { return text("dst.identity", id.String()) }

// DstCluster is the server's cluster.
func DstCluster(s string) slog.Attr { return text("dst.cluster", s) }

// Direction is "inbound" or "outbound", as the reporting proxy sees it.
func Direction(s string) slog.Attr { return text("direction", s) }

// BytesSent counts the bytes the local application sent (outbound) or answered (inbound).
func BytesSent(n uint64) slog.Attr { return slog.Uint64("bytes_sent", n) }

// BytesReceived counts the bytes the local application received.
func BytesReceived(n uint64) slog.Attr { return slog.Uint64("bytes_recv", n) }

// Milliseconds is how long a connection lasted, as Istio prints it: "13ms".
func Milliseconds(d time.Duration) slog.Attr { return slog.String("duration", millis(d)) }

// Policy is the authorization policy that decided, "namespace/name".
func Policy(k mesh.PolicyKey) slog.Attr {
	if k == (mesh.PolicyKey{}) {
		return slog.Attr{}
	}
	return slog.String("policy", k.String())
}

// TraceID is the id of the distributed trace that a connection is part of.
func TraceID(id string) slog.Attr {
	if id == "" {
		return slog.Attr{}
	}
	return slog.String("trace_id", id)
}

// Rule is the index of the policy's rule that matched, from 0.
func Rule(k mesh.PolicyKey, rule int) slog.Attr {
	if k == (mesh.PolicyKey{}) || rule < 0 {
		return slog.Attr{}
	}
	return slog.Int("rule", rule)
}

// Reason is the response flag of a connection that did not succeed.
func Reason(s string) slog.Attr {
	if s == "" || s == "-" {
		return slog.Attr{}
	}
	return slog.Any("reason", Bare(s))
}

package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// AccessLog writes one line per connection under the scope "access". A nil *AccessLog writes nothing.
type AccessLog struct {
	log *slog.Logger
	now func() time.Time
}

// NewAccessLog returns an access log that writes through log.
func NewAccessLog(log *slog.Logger) *AccessLog {
	return &AccessLog{log: log.With(logattr.Scope("access")), now: time.Now}
}

// Opened writes, at debug level, that a connection has been routed.
func (a *AccessLog) Opened(c *Conn) {
	if a == nil || !a.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	a.log.LogAttrs(context.Background(), slog.LevelDebug, "connection opened", append(attrs(c), logattr.TraceID(c.Trace.ID()))...)
}

// Closed writes that a connection has ended. sent and received are metric counts: sent is what the upstream answered,
// received is what the downstream asked. The line names them from the local application's point of view.
func (a *AccessLog) Closed(c *Conn, sent, received uint64, why Reason, err error) {
	if a == nil {
		return
	}
	level := slog.LevelInfo
	if err != nil {
		level = slog.LevelError
	}
	if !a.log.Enabled(context.Background(), level) {
		return
	}
	if c.Reporter == Source {
		sent, received = received, sent
	}
	as := append(attrs(c), logattr.BytesSent(sent), logattr.BytesReceived(received), logattr.Milliseconds(a.now().Sub(c.Start)))
	as = append(as, logattr.Err(err), logattr.Policy(c.Policy), logattr.Rule(c.Policy, c.Rule), logattr.Reason(why.String()), logattr.TraceID(c.Trace.ID()))
	a.log.LogAttrs(context.Background(), level, "connection complete", as...)
}

// EarlyDeny writes that a connection ended before it was known where it should go; it has no metrics.
func (a *AccessLog) EarlyDeny(c *Conn, err error) {
	if a == nil {
		return
	}
	a.log.LogAttrs(context.Background(), slog.LevelWarn, "connection failed",
		logattr.SrcAddr(c.SrcAddr), logattr.DstAddr(c.DstAddr), logattr.Direction(c.Reporter.Direction()), logattr.Err(err), logattr.TraceID(c.Trace.ID()))
}

func attrs(c *Conn) []slog.Attr {
	as := make([]slog.Attr, 0, 20)
	return append(as,
		logattr.SrcAddr(c.SrcAddr), logattr.SrcWorkload(name(c.Source)), logattr.SrcNamespace(c.Source.Namespace),
		logattr.SrcIdentity(c.Source.Identity), logattr.SrcCluster(c.Source.Cluster),
		logattr.DstAddr(c.DstAddr), logattr.DstHBONEAddr(c.HBONEAddr), logattr.DstService(c.Service.Hostname),
		logattr.DstWorkload(name(c.Destination)), logattr.DstNamespace(c.Destination.Namespace),
		logattr.DstIdentity(c.Destination.Identity), logattr.DstCluster(c.Destination.Cluster),
		logattr.Direction(c.Reporter.Direction()),
	)
}

// name is the pod or WorkloadEntry name, or what the peer's headers called its service when xDS does not know it.
func name(p Party) string {
	if p.Instance != "" {
		return p.Instance
	}
	return p.CanonicalName
}

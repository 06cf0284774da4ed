package live

import (
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/relay"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Report tells metrics and access log of one connection that has a route. It ends with Failed or with Transfer.
type Report struct {
	rec    *telemetry.Conn
	access *telemetry.AccessLog
	open   *telemetry.Open
}

// Open reports that a connection has been routed. What rec says until the end of the connection counts.
func Open(rec *telemetry.Conn, access *telemetry.AccessLog, metrics *telemetry.Metrics) *Report {
	access.Opened(rec)
	return &Report{rec: rec, access: access, open: metrics.Opened(rec)}
}

// Failed reports that no byte was carried because of err.
func (r *Report) Failed(err error) {
	why := ReasonOf(err)
	r.access.Closed(r.rec, 0, 0, why, err)
	r.open.Closed(r.rec, why)
}

// Transfer copies until both directions have ended, or c is stopped, and reports the end.
func (r *Report) Transfer(c *Conn, pipe *relay.Pipe) {
	r.open.Transfer(r.rec, pipe.Counts)
	c.OnStop(pipe.Abort)
	err := pipe.Run()
	d, cause := c.Stopped()
	if cause != nil {
		err = cause
	}
	if d.Policy != (mesh.PolicyKey{}) {
		r.rec.Policy, r.rec.Rule = d.Policy, d.Rule
	}
	why := ReasonOf(err)
	sent, received := pipe.Counts()
	r.access.Closed(r.rec, sent, received, why, err)
	r.open.Closed(r.rec, why)
}

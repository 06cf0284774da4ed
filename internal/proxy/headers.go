package proxy

import (
	"net/netip"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/live"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// The headers of a CONNECT request between proxies.
const (
	headerBaggage   = "baggage"
	headerForwarded = "forwarded"
	headerNetwork   = "x-forwarded-network"
)

// maxHeaderValue bounds what is read of a header that a peer sent.
const maxHeaderValue = 4 << 10

// Baggage describes a workload to the other proxy, for its telemetry. Nothing is decided by it.
func Baggage(w *mesh.Workload) string {
	var b strings.Builder
	add := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(value)
	}
	add("k8s.cluster.name", w.ClusterID)
	add("k8s.namespace.name", w.Namespace)
	add("k8s."+w.WorkloadType.String()+".name", w.WorkloadName)
	add("service.name", w.CanonicalName)
	add("service.version", w.CanonicalRevision)
	add("cloud.region", w.Locality.Region)
	add("cloud.availability_zone", w.Locality.Zone)
	return b.String()
}

// ParseBaggage reads what a peer says about a workload. Unknown keys and malformed parts are ignored.
func ParseBaggage(values ...string) telemetry.Party {
	var p telemetry.Party
	for _, line := range values {
		if len(line) > maxHeaderValue || !visible(line) {
			continue
		}
		for part := range strings.SplitSeq(line, ",") {
			key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
			if !ok || value == "" {
				continue
			}
			switch key {
			case "k8s.cluster.name":
				p.Cluster = value
			case "k8s.namespace.name":
				p.Namespace = value
			case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
				p.Workload, p.App = value, value
			case "service.name":
				p.CanonicalName = value
			case "service.version":
				p.CanonicalRevision = value
			case "cloud.region":
				p.Region = value
			case "cloud.availability_zone":
				p.Zone = value
			}
		}
	}
	return p
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// forwarded says who asked for what.
func forwarded(src netip.AddrPort, host string) string {
	v := `for="` + src.String() + `"`
	if host != "" {
		v += ";host=" + host
	}
	return v
}

// ForwardedHost returns the host of a forwarded header, or "".
func ForwardedHost(v string) string {
	if len(v) > maxHeaderValue || !visible(v) {
		return ""
	}
	for part := range strings.SplitSeq(v, ";") {
		if host, ok := strings.CutPrefix(strings.TrimSpace(part), "host="); ok {
			return strings.Trim(host, `"`)
		}
	}
	return ""
}

// connectHeaders are the headers of an outbound CONNECT.
func connectHeaders(source *mesh.Workload, rec *telemetry.Conn, service *mesh.Service) []hbone.Header {
	host := ""
	if service != nil {
		host = service.Key.Hostname
	}
	hs := []hbone.Header{
		{Name: headerBaggage, Value: Baggage(source)},
		{Name: headerForwarded, Value: forwarded(rec.SrcAddr, host)},
		{Name: live.HeaderTrace, Value: rec.Trace.Parent()},
	}
	if s := rec.Trace.State(); s != "" {
		hs = append(hs, hbone.Header{Name: live.HeaderTraceState, Value: s})
	}
	return hs
}

func headerValues(hs []hbone.Header, name string) []string {
	var out []string
	for _, h := range hs {
		if h.Name == name {
			out = append(out, h.Value)
		}
	}
	return out
}

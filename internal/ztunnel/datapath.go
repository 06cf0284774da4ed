package ztunnel

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/gateway"
	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/proxy/failover"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/xds/local"
)

// Tuning are the settings of sockets and tunnels.
type Tuning struct {
	KeepAlive      net.KeepAliveConfig
	UserTimeout    time.Duration // TCP_USER_TIMEOUT; 0 sets none
	PoolStreams    int           // per pooled HBONE connection
	PoolConns      int           // pooled HBONE connections, per workload
	PoolIdle       time.Duration // until an unused one is closed
	Limits         hbone.Limits
	TLS            hbone.TLSPolicy
	LoopbackTunnel bool // deliver application tunnels to the loopback
}

// localhost in a listen address means 127.0.0.1 and, where there is IPv6, ::1.
const localhost = "localhost"

func (e *environment) dataPath(c *Config) {
	c.DNS = e.meta("DNS_CAPTURE", "true") == "true"
	c.SOCKS = e.boolean("UNSTABLE_ENABLE_SOCKS5", false)
	c.IPv6 = e.boolean("IPV6_ENABLED", true)
	c.PreferredNamespace = e.get("PREFERED_SERVICE_NAMESPACE")
	c.Redirect = e.boolean("ISTHMUS_REDIRECT", false)
	if c.Redirect && c.Mode != Dedicated {
		e.fail("ISTHMUS_REDIRECT", "is for dedicated mode only: elsewhere the CNI agent redirects")
	}
	captured, mark := c.Mode == Shared || c.Redirect, 0
	if captured {
		mark = defaultPacketMark
	}
	c.PacketMark = e.integer("PACKET_MARK", mark, 0, 1<<31-1)
	if c.Redirect && c.PacketMark&redirect.MarkMask != redirect.Mark {
		e.fail("PACKET_MARK", "must be %d with ISTHMUS_REDIRECT: the rules know the proxy's own packets by it", redirect.Mark)
	}
	c.SpoofSource = e.boolean("ENABLE_ORIG_SRC", captured)
	c.ResponseBaggage = e.boolean("ENABLE_RESPONSE_BAGGAGE", true)
	c.LogDecisions = e.boolean("AUTHZ_POLICY_INFO_LOGGING", false)
	c.InpodSocket = e.or("INPOD_UDS", defaultInpodSocket)
	c.PortReuse = e.boolean("INPOD_PORT_REUSE", true)
	c.MaxConnections = e.integer("ISTHMUS_MAX_CONNECTIONS", 0, 1, 1<<24)
	c.CRLPath = e.get("CRL_PATH")
	switch v := e.or("ISTHMUS_MISSING_POLICY", "deny"); v {
	case "deny":
	case "allow":
		c.AllowMissingPolicies = true
	default:
		e.fail("ISTHMUS_MISSING_POLICY", "%q is neither deny nor allow", v)
	}
	c.PolicyWait = max(e.duration("ISTHMUS_POLICY_WAIT", defaultPolicyWait), time.Millisecond)
	if c.EndpointWait = e.duration("ISTHMUS_ENDPOINT_WAIT", failover.DefaultWait); c.EndpointWait <= 0 {
		c.EndpointWait = -1
	}
	c.MetricIdle = max(e.duration("ISTHMUS_METRIC_IDLE", telemetry.DefaultMetricIdle), time.Second)
	c.DNSCache = e.integer("ISTHMUS_DNS_CACHE", 0, 1, 1<<20)
	if v := e.meta("DNS_PROXY_ADDR", ""); v != "" {
		host, port, err := net.SplitHostPort(v)
		if _, perr := netip.ParseAddr(host); err != nil || perr != nil && host != localhost {
			e.fail("ISTIO_META_DNS_PROXY_ADDR", "%q is not IP:PORT or localhost:PORT", v)
		}
		c.Listen.DNS = net.JoinHostPort(host, port)
	}
	routes, err := gateway.ParseRoutes(e.get("GATEWAY_TLS_ROUTES"))
	if err != nil {
		e.fail("GATEWAY_TLS_ROUTES", "%v", err)
	}
	c.TLSRoutes = routes
	if c.GatewayServices, err = gateway.ParseServices(e.get("GATEWAY_SERVICES")); err != nil {
		e.fail("GATEWAY_SERVICES", "%v", err)
	}
	for p := range strings.SplitSeq(e.or("GATEWAY_TLS_PORTS", strconv.Itoa(defaultGatewayListen)), ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(p), 10, 16)
		if err != nil || n == 0 {
			e.fail("GATEWAY_TLS_PORTS", "%q is not a port", p)
			continue
		}
		c.TLSPorts = append(c.TLSPorts, uint16(n))
	}
}

// tuning reads what is set for sockets, tunnels and threads. The defaults are ztunnel's.
func (e *environment) tuning(c *Config) {
	t := &c.Tuning
	t.KeepAlive = net.KeepAliveConfig{
		Enable: e.boolean("KEEPALIVE_ENABLED", true), Idle: e.duration("KEEPALIVE_TIME", defaultKeepAlive),
		Interval: e.duration("KEEPALIVE_INTERVAL", defaultKeepAlive), Count: e.integer("KEEPALIVE_RETRIES", defaultKeepAliveProbes, 1, 127),
	}
	for key, d := range map[string]time.Duration{"KEEPALIVE_TIME": t.KeepAlive.Idle, "KEEPALIVE_INTERVAL": t.KeepAlive.Interval} {
		if d < time.Second || d > maxKeepAlive {
			e.fail(key, "%v is not from 1s to %v, which the kernel takes", d, maxKeepAlive)
		}
	}
	if e.boolean("USER_TIMEOUT_ENABLED", false) {
		t.UserTimeout = t.KeepAlive.Idle + time.Duration(t.KeepAlive.Count)*t.KeepAlive.Interval
	}
	t.PoolStreams = e.integer("POOL_MAX_STREAMS_PER_CONNECTION", 0, 1, 1<<16)
	t.PoolConns = e.integer("ISTHMUS_MAX_POOLED_CONNECTIONS", 0, 1, 1<<24)
	t.PoolIdle = e.duration("POOL_UNUSED_RELEASE_TIMEOUT", 0)
	t.Limits = hbone.Limits{
		StreamWindow: e.integer("HTTP2_STREAM_WINDOW_SIZE", 0, 1, 1<<31-1), FrameSize: e.integer("HTTP2_FRAME_SIZE", 0, 1, 1<<31-1),
		ConnWindow: e.integer("HTTP2_CONNECTION_WINDOW_SIZE", 0, 1, 1<<31-1),
	}
	if err := t.Limits.Check(); err != nil {
		e.fail("HTTP2_STREAM_WINDOW_SIZE, HTTP2_CONNECTION_WINDOW_SIZE, HTTP2_FRAME_SIZE", "%v", err)
	}
	t.LoopbackTunnel = e.boolean("LOCALHOST_APP_TUNNEL", true)
	t.TLS.TLS12 = e.boolean("TLS12_ENABLED", false)
	switch v := e.get("COMPLIANCE_POLICY"); v {
	case "":
	case "pqc":
		t.TLS.PostQuantum = true
	default:
		e.fail("COMPLIANCE_POLICY", "%q is not pqc; fips-140-2 and others need a build of their own (GOFIPS140), not a setting", v)
	}
	if t.TLS.TLS12 && t.TLS.PostQuantum {
		e.fail("TLS12_ENABLED", "contradicts COMPLIANCE_POLICY=pqc: TLS 1.2 has no post-quantum key exchange")
	}
	c.Threads = e.threads(runtime.NumCPU())
}

// Defaults and limits of the settings of sockets.
const (
	defaultKeepAlive       = 180 * time.Second
	defaultKeepAliveProbes = 9
	maxKeepAlive           = 32767 * time.Second
	defaultPolicyWait      = 2 * time.Second
)

// local reads a static mesh. It is read once: what changes comes from istiod.
func (e *environment) local(c *Config) {
	text, path := e.get("LOCAL_XDS"), e.get("LOCAL_XDS_PATH")
	key := "LOCAL_XDS"
	switch {
	case text == "" && path == "":
		return
	case text != "" && path != "":
		e.fail("LOCAL_XDS, LOCAL_XDS_PATH", "only one of them can be used")
		return
	case path != "":
		key = "LOCAL_XDS_PATH"
		b, err := readLimited(path, local.MaxBytes)
		if err != nil {
			e.fail(key, "%v", err)
			return
		}
		text = string(b)
	}
	u, err := local.Parse([]byte(text))
	if err != nil {
		e.fail(key, "%v", err)
		return
	}
	c.Static = &u
}

func (e *environment) lifecycle(c *Config) {
	grace := defaultTermination
	if v := e.get("TERMINATION_GRACE_PERIOD_SECONDS"); v != "" {
		s := e.integer("TERMINATION_GRACE_PERIOD_SECONDS", 0, 0, 1<<20)
		if s > 10 {
			s -= 5
		} else {
			s = max(s-1, 1)
		}
		grace = time.Duration(s) * time.Second
	}
	c.Grace = max(e.duration("CONNECTION_TERMINATION_DEADLINE", grace), time.Millisecond)
	c.LogFormat = telemetry.ParseFormat(e.get("LOG_FORMAT"))
	c.LogFilter = e.get("RUST_LOG")
	if _, err := telemetry.NewLevels(c.LogFilter); err != nil {
		e.fail("RUST_LOG", "%v", err)
	}
}

// unsupported refuses what would be dangerous to ignore, and says why it is not there; it warns of what is merely
// without effect.
func (e *environment) unsupported(c *Config) {
	refuse := map[string]string{
		"FAKE_CA":       "certificates that nobody vouches for exist in ztunnel's test builds only",
		"XDS_ON_DEMAND": "the whole mesh is held instead, in compact form: DNS and SOCKS need it, and ztunnel refuses the combination too",
	}
	for _, k := range slices.Sorted(maps.Keys(refuse)) {
		if e.boolean(k, false) {
			e.fail(k, "is not supported: %s", refuse[k])
		}
	}
	if !e.boolean("ENABLE_PROXY", true) {
		e.fail("ENABLE_PROXY", "a proxy that only answers DNS is not supported: without the proxy its answers lead nowhere")
	}
	if c.XDSAddress == "" && c.Static == nil && c.Mode != Gateway {
		c.Warnings = append(c.Warnings, "XDS_ADDRESS is empty and there is no LOCAL_XDS: the mesh is empty")
	}
}

// errNoCA is why there is no certificate when CA_ADDRESS is empty.
var errNoCA = errors.New("identity error: CA_ADDRESS is empty, so there is no certificate authority")

// describeTLS words the TLS policy for config_dump.
func describeTLS(p hbone.TLSPolicy) string {
	switch {
	case p.PostQuantum:
		return "TLS 1.3, X25519MLKEM768 only"
	case p.TLS12:
		return "TLS 1.2 and 1.3"
	}
	return "TLS 1.3"
}

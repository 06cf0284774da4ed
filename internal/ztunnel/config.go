package ztunnel

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/gateway"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Mode is the role a proxy plays.
type Mode string

// The roles.
const (
	Shared    Mode = "shared"    // one proxy for all pods of a node
	Dedicated Mode = "dedicated" // one proxy beside one workload
	Gateway   Mode = "gateway"   // the east-west gateway
)

// Config is everything a proxy is told by its environment. Names of variables are ztunnel's where ztunnel has one.
type Config struct {
	Mode     Mode
	Network  string
	Workload struct{ Namespace, Name, ServiceAccount string } // PROXY_WORKLOAD_INFO

	NodeName       string
	PodName        string
	PodNamespace   string
	ServiceAccount string
	InstanceIP     netip.Addr
	ClusterID      string
	ClusterDomain  string
	TrustDomain    string

	XDSAddress, XDSServerName, XDSRoot string
	CAAddress, CAServerName, CARoot    string
	AuthToken                          string
	XDSHeaders, CAHeaders              map[string]string
	Metadata                           map[string]any
	SecretTTL                          time.Duration

	Broker BrokerSettings

	DNS                bool
	SOCKS              bool
	IPv6               bool
	PreferredNamespace string
	PacketMark         int
	SpoofSource        bool
	ResponseBaggage    bool
	InpodSocket        string
	PortReuse          bool
	MaxConnections     int

	TLSRoutes map[string]string
	TLSPorts  []uint16

	Grace     time.Duration
	LogFormat telemetry.Format
	LogFilter string

	Listen Addresses
	// ResolvConf is the file that names the upstream resolvers.
	ResolvConf string

	// Warnings are settings that have no effect here; they are logged at the start.
	Warnings []string

	getenv func(string) string
}

// BrokerSettings say how a task proves who it is. Address is "" when a token is used instead.
type BrokerSettings struct {
	Address    string
	ServerName string
	Identity   mesh.Identity
	Audience   string
	Region     string
}

// Addresses are where the proxy listens, "host:port"; an empty host is every address.
type Addresses struct {
	Outbound, Plain, HBONE, SOCKS, DNS, Admin, Metrics, Readiness string
}

func defaultAddresses() Addresses {
	port := func(host string, p int) string { return net.JoinHostPort(host, strconv.Itoa(p)) }
	return Addresses{
		Outbound: port("", mesh.OutboundPort), Plain: port("", mesh.InboundPort), HBONE: port("", mesh.HBONEPort),
		SOCKS: port("127.0.0.1", mesh.SOCKSPort), DNS: port("127.0.0.1", mesh.DNSPort),
		Admin: port("127.0.0.1", mesh.AdminPort), Metrics: port("", mesh.MetricsPort), Readiness: port("", mesh.ReadinessPort),
	}
}

// Defaults of settings that others must agree on.
const (
	defaultControlPlane  = "https://istiod.istio-system.svc:15012"
	defaultRoot          = "./var/run/secrets/istio/root-cert.pem"
	defaultToken         = "./var/run/secrets/tokens/istio-token"
	defaultInpodSocket   = "/var/run/ztunnel/ztunnel.sock"
	defaultBrokerSNI     = "isthmus-broker.istio-system.svc"
	defaultBrokerSPIFFE  = "spiffe://cluster.local/ns/istio-system/sa/isthmus-controller"
	defaultClusterID     = "Kubernetes"
	defaultPacketMark    = 1337
	defaultSecretTTL     = 24 * time.Hour
	defaultTermination   = 5 * time.Second
	metadataPrefix       = "ISTIO_META_"
	metadataJSONPrefix   = "ISTIO_METAJSON_"
	xdsHeaderPrefix      = "XDS_HEADER_"
	caHeaderPrefix       = "CA_HEADER_"
	defaultResolvConf    = "/etc/resolv.conf"
	defaultGatewayListen = mesh.XDSPort
)

// ParseConfig reads the environment, given as "KEY=value" strings. Everything that is wrong is reported at once.
func ParseConfig(environ []string) (Config, error) {
	e := &environment{values: map[string]string{}}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			e.values[k] = v
		}
	}
	c := Config{Listen: defaultAddresses(), ResolvConf: defaultResolvConf, getenv: e.get}
	e.roles(&c)
	e.controlPlane(&c)
	e.broker(&c)
	e.dataPath(&c)
	e.lifecycle(&c)
	e.unsupported(&c)
	if len(e.errs) > 0 {
		return Config{}, errors.Join(e.errs...)
	}
	return c, nil
}

// environment reads variables and collects what is wrong with them.
type environment struct {
	values map[string]string
	errs   []error
}

func (e *environment) get(key string) string { return e.values[key] }

func (e *environment) or(key, otherwise string) string {
	if v, ok := e.values[key]; ok && v != "" {
		return v
	}
	return otherwise
}

func (e *environment) fail(key, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
}

func (e *environment) boolean(key string, otherwise bool) bool {
	switch v := e.values[key]; v {
	case "":
		return otherwise
	case "true":
		return true
	case "false":
		return false
	default:
		e.fail(key, "%q is neither true nor false", v)
		return otherwise
	}
}

func (e *environment) duration(key string, otherwise time.Duration) time.Duration {
	v := e.values[key]
	if v == "" {
		return otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		e.fail(key, "%q is not a duration such as 5s, 10m or 24h", v)
		return otherwise
	}
	return d
}

func (e *environment) integer(key string, otherwise, low, high int) int {
	v := e.values[key]
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.fail(key, "%q is not a number from %d to %d", v, low, high)
		return otherwise
	}
	return n
}

func (e *environment) prefixed(prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range e.values {
		if name, ok := strings.CutPrefix(k, prefix); ok && name != "" {
			out[name] = v
		}
	}
	return out
}

func (e *environment) roles(c *Config) {
	c.Mode = Mode(e.or("PROXY_MODE", string(Shared)))
	switch c.Mode {
	case Shared, Dedicated, Gateway:
	default:
		e.fail("PROXY_MODE", "%q is not shared, dedicated or gateway", string(c.Mode))
	}
	c.Network = e.get("NETWORK")
	c.NodeName = e.get("NODE_NAME")
	c.PodName, c.PodNamespace, c.ServiceAccount = e.get("POD_NAME"), e.get("POD_NAMESPACE"), e.get("SERVICE_ACCOUNT")
	c.ClusterID = e.or(metadataPrefix+"CLUSTER_ID", e.get("CLUSTER_ID"))
	c.ClusterDomain = e.or("CLUSTER_DOMAIN", mesh.DefaultTrustDomain)
	c.TrustDomain = e.or("TRUST_DOMAIN", mesh.DefaultTrustDomain)
	if v := e.get("INSTANCE_IP"); v != "" {
		a, err := netip.ParseAddr(v)
		if err != nil {
			e.fail("INSTANCE_IP", "%q is not an IP address", v)
		}
		c.InstanceIP = a.Unmap()
	}
	info := e.get("PROXY_WORKLOAD_INFO")
	parts := strings.SplitN(info, "/", 3)
	switch {
	case len(parts) == 3 && parts[0] != "" && parts[1] != "" && parts[2] != "":
		c.Workload.Namespace, c.Workload.Name, c.Workload.ServiceAccount = parts[0], parts[1], parts[2]
	case info != "":
		e.fail("PROXY_WORKLOAD_INFO", "%q is not NAMESPACE/NAME/SERVICE-ACCOUNT", info)
	case c.Mode == Dedicated && e.get("ISTHMUS_BROKER_ADDRESS") == "":
		e.fail("PROXY_WORKLOAD_INFO", "is required in dedicated mode, unless ISTHMUS_BROKER_ADDRESS is set")
	}
	if c.Mode == Gateway && (c.PodNamespace == "" || c.ServiceAccount == "") {
		e.fail("POD_NAMESPACE, SERVICE_ACCOUNT", "are required in gateway mode: they are the gateway's identity")
	}
}

func (e *environment) controlPlane(c *Config) {
	address := func(key string) string {
		v, set := e.values[key]
		if set && v == "" {
			if c.Mode != Gateway {
				e.fail(key, "is empty: a proxy needs the control plane")
			}
			return ""
		}
		if !set {
			v = defaultControlPlane
		}
		if !strings.Contains(v, "://") {
			v = "https://" + v
		}
		if u, err := url.Parse(v); err != nil || u.Scheme != "https" || u.Host == "" {
			e.fail(key, "%q is not https://HOST:PORT", v)
		}
		return v
	}
	c.XDSAddress, c.CAAddress = address("XDS_ADDRESS"), address("CA_ADDRESS")
	c.XDSServerName, c.CAServerName = e.get("ALT_XDS_HOSTNAME"), e.get("ALT_CA_HOSTNAME")
	root, _ := mounted(defaultRoot)
	c.XDSRoot, c.CARoot = e.or("XDS_ROOT_CA", root), e.or("CA_ROOT_CA", root)
	c.AuthToken = e.get("AUTH_TOKEN")
	if token, ok := mounted(defaultToken); ok && c.AuthToken == "" {
		c.AuthToken = token
	}
	c.XDSHeaders, c.CAHeaders = e.prefixed(xdsHeaderPrefix), e.prefixed(caHeaderPrefix)
	c.SecretTTL = e.duration("SECRET_TTL", defaultSecretTTL)
	c.Metadata = map[string]any{}
	for k, v := range e.prefixed(metadataPrefix) {
		c.Metadata[k] = v
	}
	for k, v := range e.prefixed(metadataJSONPrefix) {
		value, err := parseJSON(v)
		if err != nil {
			e.fail(metadataJSONPrefix+k, "%v", err)
		}
		c.Metadata[k] = value
	}
}

// mounted finds a file that Kubernetes mounts. ztunnel's path is relative, as its working directory is the root; where
// it is not, the absolute path is meant all the same.
func mounted(path string) (string, bool) {
	for _, p := range []string{path, strings.TrimPrefix(path, ".")} {
		if _, err := os.Stat(p); err == nil {
			return p, true
		}
	}
	return path, false
}

func (e *environment) broker(c *Config) {
	b := &c.Broker
	b.Address = e.get("ISTHMUS_BROKER_ADDRESS")
	b.ServerName = e.or("ISTHMUS_BROKER_SERVER_NAME", defaultBrokerSNI)
	b.Audience = e.or("ISTHMUS_AUDIENCE", c.TrustDomain)
	b.Region = e.or("AWS_REGION", e.get("AWS_DEFAULT_REGION"))
	id := e.or("ISTHMUS_BROKER_IDENTITY", defaultBrokerSPIFFE)
	var err error
	if b.Identity, err = mesh.ParseIdentity(id); err != nil {
		e.fail("ISTHMUS_BROKER_IDENTITY", "%v", err)
	}
	if b.Address == "" {
		return
	}
	if c.Mode != Dedicated {
		e.fail("ISTHMUS_BROKER_ADDRESS", "is for dedicated mode only")
	}
	if b.Region == "" {
		e.fail("AWS_REGION", "is required with ISTHMUS_BROKER_ADDRESS: the proof is made for a region")
	}
}

func (e *environment) dataPath(c *Config) {
	c.DNS = e.or(metadataPrefix+"DNS_CAPTURE", "true") == "true"
	c.SOCKS = e.boolean("UNSTABLE_ENABLE_SOCKS5", false)
	c.IPv6 = e.boolean("IPV6_ENABLED", true)
	c.PreferredNamespace = e.get("PREFERED_SERVICE_NAMESPACE")
	mark := 0
	if c.Mode == Shared {
		mark = defaultPacketMark
	}
	c.PacketMark = e.integer("PACKET_MARK", mark, 0, 1<<31-1)
	c.SpoofSource = e.boolean("ENABLE_ORIG_SRC", c.Mode == Shared)
	c.ResponseBaggage = e.boolean("ENABLE_RESPONSE_BAGGAGE", true)
	c.InpodSocket = e.or("INPOD_UDS", defaultInpodSocket)
	c.PortReuse = e.boolean("INPOD_PORT_REUSE", true)
	c.MaxConnections = e.integer("ISTHMUS_MAX_CONNECTIONS", 0, 1, 1<<24)
	if v := e.get("ISTIO_META_DNS_PROXY_ADDR"); v != "" {
		host, port, err := net.SplitHostPort(v)
		if host == "localhost" {
			host = "127.0.0.1"
		}
		if _, perr := netip.ParseAddr(host); err != nil || perr != nil {
			e.fail("ISTIO_META_DNS_PROXY_ADDR", "%q is not IP:PORT or localhost:PORT", v)
		}
		c.Listen.DNS = net.JoinHostPort(host, port)
	}
	routes, err := gateway.ParseRoutes(e.get("GATEWAY_TLS_ROUTES"))
	if err != nil {
		e.fail("GATEWAY_TLS_ROUTES", "%v", err)
	}
	c.TLSRoutes = routes
	for p := range strings.SplitSeq(e.or("GATEWAY_TLS_PORTS", strconv.Itoa(defaultGatewayListen)), ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(p), 10, 16)
		if err != nil || n == 0 {
			e.fail("GATEWAY_TLS_PORTS", "%q is not a port", p)
			continue
		}
		c.TLSPorts = append(c.TLSPorts, uint16(n))
	}
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

// unsupported refuses what would be dangerous to ignore and warns of what is merely without effect.
func (e *environment) unsupported(c *Config) {
	refuse := map[string]string{
		"CRL_PATH":          "revocation lists are not supported, and ignoring one would be dangerous",
		"COMPLIANCE_POLICY": "compliance policies are not supported",
		"LOCAL_XDS_PATH":    "static configuration is not supported",
		"LOCAL_XDS":         "static configuration is not supported",
	}
	for _, k := range slices.Sorted(maps.Keys(refuse)) {
		if e.get(k) != "" {
			e.fail(k, "%s", refuse[k])
		}
	}
	for _, k := range []string{"FAKE_CA", "XDS_ON_DEMAND"} {
		if e.boolean(k, false) {
			e.fail(k, "is not supported")
		}
	}
	if e.get("ENABLE_PROXY") == "false" {
		e.fail("ENABLE_PROXY", "a proxy that only answers DNS is not supported")
	}
	for _, k := range []string{"TLS12_ENABLED", "PROXY_CONFIG", "ZTUNNEL_WORKER_THREADS"} {
		if e.get(k) != "" {
			c.Warnings = append(c.Warnings, k+" has no effect")
		}
	}
}

// rootsOf returns a function that reads trust roots: from a file each time, from the system, or from the text itself.
func rootsOf(key, value string) (func() (*x509.CertPool, error), error) {
	if value == "SYSTEM" {
		return x509.SystemCertPool, nil
	}
	if strings.Contains(value, "-----BEGIN") {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(value)) {
			return nil, fmt.Errorf("%s: no certificate in the PEM text", key)
		}
		return func() (*x509.CertPool, error) { return pool, nil }, nil
	}
	read := func() (*x509.CertPool, error) {
		text, err := os.ReadFile(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: no certificate in %s", key, value)
		}
		return pool, nil
	}
	_, err := read()
	return read, err
}

package ztunnel

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

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
	Redirect           bool // dedicated mode: redirect the connections of the own network namespace to this proxy
	ResponseBaggage    bool
	LogDecisions       bool // of policies, at info instead of debug
	InpodSocket        string
	PortReuse          bool
	MaxConnections     int
	Tuning             Tuning

	// Static is a mesh from LOCAL_XDS or LOCAL_XDS_PATH; nil means none. It is known before istiod is asked.
	Static  *mesh.Update
	CRLPath string
	// MissingPolicy says what happens to a connection when a policy that the workload names is still unknown after
	// PolicyWait: true allows it.
	AllowMissingPolicies bool
	PolicyWait           time.Duration
	EndpointWait         time.Duration // for another endpoint when all have failed; less than 0 is not at all
	MetricIdle           time.Duration // how long a metric's label set is kept unused
	DNSCache             int           // answers kept
	Threads              int           // GOMAXPROCS; 0 leaves it to Go, which honours the container's limit

	TLSRoutes       map[string]string
	TLSPorts        []uint16
	GatewayServices []string // that the gateway serves; empty means all of its network

	Grace     time.Duration
	LogFormat telemetry.Format
	LogFilter string

	Listen Addresses
	// ResolvConf is the file that names the upstream resolvers.
	ResolvConf string

	// Warnings are settings that have no effect here; they are logged at the start.
	Warnings []string

	getenv func(string) string
	// tokenAge is BrokerConfig.MinTokenAge; tests cannot wait for tokens to become old.
	tokenAge time.Duration
}

// BrokerSettings say how a task proves who it is. Address is "" when a token is used instead.
type BrokerSettings struct {
	Address    string
	ServerName string
	Identity   mesh.Identity
	Audience   string
	Region     string
	// WebIdentity proves the role by a token that STS signs, instead of a request that the broker has STS check.
	WebIdentity bool
	// STSEndpoint is asked for such tokens instead of the region's own STS.
	STSEndpoint string
}

// Addresses are where the proxy listens, "host:port"; an empty host is every address, and "localhost" is 127.0.0.1 and,
// where the network namespace has it, ::1.
type Addresses struct {
	Outbound, Plain, HBONE, SOCKS, DNS, Admin, Metrics, Readiness string
	// Self is where a node's proxy accepts tunnels to itself, in its own namespace.
	Self string
}

func defaultAddresses() Addresses {
	port := func(host string, p int) string { return net.JoinHostPort(host, strconv.Itoa(p)) }
	return Addresses{
		Outbound: port("", mesh.OutboundPort), Plain: port("", mesh.InboundPort), HBONE: port("", mesh.HBONEPort), Self: port("", mesh.HBONEPort),
		SOCKS: port("127.0.0.1", mesh.SOCKSPort), DNS: port(localhost, mesh.DNSPort),
		Admin: port(localhost, mesh.AdminPort), Metrics: port("", mesh.MetricsPort), Readiness: port("", mesh.ReadinessPort),
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
	e.proxyConfig(&c)
	e.roles(&c)
	e.controlPlane(&c)
	e.broker(&c)
	e.dataPath(&c)
	e.tuning(&c)
	e.local(&c)
	e.lifecycle(&c)
	e.unsupported(&c)
	if len(e.errs) > 0 {
		return Config{}, errors.Join(e.errs...)
	}
	return c, nil
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
	c.ClusterID = e.meta("CLUSTER_ID", e.get("CLUSTER_ID"))
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
	address := func(key, otherwise string) string {
		v, set := e.values[key]
		if set && v == "" {
			return ""
		}
		if !set {
			v = otherwise
		}
		if !strings.Contains(v, "://") {
			v = "https://" + v
		}
		if u, err := url.Parse(v); err != nil || u.Scheme != "https" || u.Host == "" {
			e.fail(key, "%q is not https://HOST:PORT", v)
		}
		return v
	}
	discovery := e.mesh.DiscoveryAddress
	if discovery == "" {
		discovery = defaultControlPlane
	}
	c.XDSAddress, c.CAAddress = address("XDS_ADDRESS", discovery), address("CA_ADDRESS", defaultControlPlane)
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
	for k, v := range e.mesh.ProxyMetadata {
		c.Metadata[k] = v
	}
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
	switch v := e.get("ISTHMUS_PROOF"); v {
	case "", "signature":
	case "web-identity":
		b.WebIdentity = true
	default:
		e.fail("ISTHMUS_PROOF", "%q is neither signature nor web-identity", v)
	}
	if b.STSEndpoint = e.get("ISTHMUS_STS_ENDPOINT"); b.STSEndpoint != "" {
		if u, err := url.Parse(b.STSEndpoint); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			e.fail("ISTHMUS_STS_ENDPOINT", "%q is not an http(s) URL", b.STSEndpoint)
		}
	}
	if b.Address == "" {
		return
	}
	if b.WebIdentity && e.get(metadataURI) == "" {
		e.fail("ISTHMUS_PROOF", "web-identity is for tasks of ECS only: %s is not set", metadataURI)
	}
	if c.Mode != Dedicated {
		e.fail("ISTHMUS_BROKER_ADDRESS", "is for dedicated mode only")
	}
	if b.Region == "" && e.get(metadataURI) == "" {
		e.fail("AWS_REGION", "is required with ISTHMUS_BROKER_ADDRESS outside of ECS: the proof is made for a region")
	}
}

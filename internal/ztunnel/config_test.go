package ztunnel

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

func TestParseConfig(t *testing.T) {
	c, err := ParseConfig([]string{
		"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=ns/name/sa", "NETWORK=eks", "INSTANCE_IP=::ffff:10.0.0.1", "ISTIO_META_CLUSTER_ID=Kubernetes",
		"XDS_ADDRESS=istiod.istio-system.svc:15012", "CA_ADDRESS=https://ca:15012", "ALT_XDS_HOSTNAME=x", "LOG_FORMAT=json", "SECRET_TTL=1h",
		"UNSTABLE_ENABLE_SOCKS5=true", "ISTIO_META_DNS_CAPTURE=false", "ISTIO_METAJSON_A={\"b\":1}", "XDS_HEADER_k=v",
		"TERMINATION_GRACE_PERIOD_SECONDS=30", "ISTIO_META_DNS_PROXY_ADDR=localhost:5353", "PACKET_MARK=7",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != Dedicated || c.Workload.Namespace != "ns" || c.Workload.ServiceAccount != "sa" || c.InstanceIP != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("identity = %+v, %v", c.Workload, c.InstanceIP)
	}
	if c.XDSAddress != "https://istiod.istio-system.svc:15012" || c.ClusterID != "Kubernetes" || c.XDSHeaders["k"] != "v" || c.Metadata["A"] == nil {
		t.Errorf("control plane = %q %q %v %v", c.XDSAddress, c.ClusterID, c.XDSHeaders, c.Metadata)
	}
	if !c.SOCKS || c.DNS || c.Listen.DNS != "localhost:5353" || c.PacketMark != 7 || c.SecretTTL != time.Hour || c.Grace != 25*time.Second || c.LogFormat != telemetry.JSON {
		t.Errorf("data path = %+v", c)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings = %q, want none", c.Warnings)
	}
}

func TestDefaults(t *testing.T) {
	c, err := ParseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != Shared || c.PacketMark != 1337 || !c.DNS || c.SOCKS || c.Grace != 5*time.Second || c.Listen.SOCKS != "127.0.0.1:15080" || c.Listen.Admin != "localhost:15000" {
		t.Errorf("defaults = %+v", c)
	}
	for seconds, want := range map[string]time.Duration{"11": 6 * time.Second, "10": 9 * time.Second, "1": time.Second, "0": time.Second} {
		c, err := ParseConfig([]string{"TERMINATION_GRACE_PERIOD_SECONDS=" + seconds})
		if err != nil || c.Grace != want {
			t.Errorf("grace of %s s = %v, %v; want %v", seconds, c.Grace, err, want)
		}
	}
}

func TestParseConfigReportsAllProblems(t *testing.T) {
	_, err := ParseConfig([]string{
		"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b", "INSTANCE_IP=x", "XDS_ADDRESS=http://a", "CA_ADDRESS=http://b", "SECRET_TTL=5", "UNSTABLE_ENABLE_SOCKS5=yes",
		"PACKET_MARK=-1", "GATEWAY_TLS_ROUTES=x", "GATEWAY_TLS_PORTS=0", "RUST_LOG=loud", "FAKE_CA=true", "XDS_ON_DEMAND=true", "ENABLE_PROXY=false", "LOCAL_XDS_PATH=/x", "COMPLIANCE_POLICY=fips-140-2",
		"KEEPALIVE_TIME=0s", "POOL_MAX_STREAMS_PER_CONNECTION=0", "HTTP2_FRAME_SIZE=100", "ZTUNNEL_WORKER_THREADS=200%", "PROXY_CONFIG={", "ISTHMUS_MISSING_POLICY=perhaps",
		"ISTIO_META_DNS_PROXY_ADDR=host:1", "ISTHMUS_BROKER_IDENTITY=x", "ISTHMUS_BROKER_ADDRESS=https://b:1", "ISTHMUS_PROOF=passport", "ISTHMUS_STS_ENDPOINT=sts", "CONNECTION_TERMINATION_DEADLINE=soon",
	})
	if err == nil {
		t.Fatal("everything wrong was accepted")
	}
	for _, key := range []string{"PROXY_WORKLOAD_INFO", "INSTANCE_IP", "XDS_ADDRESS", "CA_ADDRESS", "SECRET_TTL", "UNSTABLE_ENABLE_SOCKS5", "PACKET_MARK", "GATEWAY_TLS_ROUTES",
		"GATEWAY_TLS_PORTS", "RUST_LOG", "FAKE_CA", "XDS_ON_DEMAND", "ENABLE_PROXY", "LOCAL_XDS_PATH", "KEEPALIVE_TIME", "POOL_MAX_STREAMS_PER_CONNECTION", "HTTP2_FRAME_SIZE",
		"ZTUNNEL_WORKER_THREADS", "PROXY_CONFIG", "ISTHMUS_MISSING_POLICY", "COMPLIANCE_POLICY", "ISTIO_META_DNS_PROXY_ADDR", "ISTHMUS_BROKER_IDENTITY", "ISTHMUS_PROOF", "ISTHMUS_STS_ENDPOINT", "AWS_REGION", "CONNECTION_TERMINATION_DEADLINE"} {
		if !strings.Contains(err.Error(), key+": ") {
			t.Errorf("the error does not name %s", key)
		}
	}
	if _, err := ParseConfig([]string{"PROXY_MODE=dedicated"}); err == nil || !strings.Contains(err.Error(), "PROXY_WORKLOAD_INFO") {
		t.Errorf("dedicated without workload = %v", err)
	}
	if _, err := ParseConfig([]string{"PROXY_MODE=dedicated", "ISTHMUS_BROKER_ADDRESS=https://b:1", "AWS_REGION=us-east-2", "ISTHMUS_PROOF=web-identity"}); err == nil || !strings.Contains(err.Error(), "ISTHMUS_PROOF: web-identity is for tasks of ECS only") {
		t.Errorf("web identity outside of ECS = %v", err)
	}
	if _, err := ParseConfig([]string{"ISTHMUS_REDIRECT=true"}); err == nil || !strings.Contains(err.Error(), "ISTHMUS_REDIRECT: is for dedicated mode only") {
		t.Errorf("redirect in shared mode = %v", err)
	}
	if _, err := ParseConfig([]string{"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b/c", "ISTHMUS_REDIRECT=true", "PACKET_MARK=7"}); err == nil || !strings.Contains(err.Error(), "PACKET_MARK: must be 1337") {
		t.Errorf("redirect with another mark = %v", err)
	}
	if _, err := ParseConfig([]string{"PROXY_MODE=gateway"}); err == nil || !strings.Contains(err.Error(), "SERVICE_ACCOUNT") {
		t.Errorf("gateway without identity = %v", err)
	}
}

func TestRootsAndTokens(t *testing.T) {
	if _, err := rootsOf("XDS_ROOT_CA", "/nowhere/root.pem"); err == nil || !strings.Contains(err.Error(), "XDS_ROOT_CA") {
		t.Errorf("a missing root file = %v, want an error that names the setting", err)
	}
	if _, err := rootsOf("XDS_ROOT_CA", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"); err == nil {
		t.Error("a broken inline PEM was accepted")
	}
	token := tokenOf("literal")
	if s, err := token(t.Context()); err != nil || s != "literal" {
		t.Errorf("literal token = %q, %v", s, err)
	}
	if tokenOf("") != nil {
		t.Error("no token is not nil")
	}
}

// On demand, names could not be answered; see docs/decisions/0005. Who asks for it is told, in every role and without DNS
// and SOCKS too, and nothing is started.
func TestOnDemandIsRefused(t *testing.T) {
	for _, env := range [][]string{
		{}, {"PROXY_MODE=dedicated", "PROXY_WORKLOAD_INFO=a/b/c"}, {"PROXY_MODE=gateway", "POD_NAMESPACE=a", "SERVICE_ACCOUNT=b"},
		{"ISTIO_META_DNS_CAPTURE=false", "UNSTABLE_ENABLE_SOCKS5=false"},
	} {
		if _, err := ParseConfig(env); err != nil {
			t.Fatal(err)
		}
		_, err := ParseConfig(append(env, "XDS_ON_DEMAND=true"))
		if err == nil || !strings.Contains(err.Error(), "XDS_ON_DEMAND: is not supported: the whole mesh is held instead") {
			t.Errorf("%q with XDS_ON_DEMAND = %v", env, err)
		}
		if _, err := ParseConfig(append(env, "XDS_ON_DEMAND=false")); err != nil {
			t.Errorf("XDS_ON_DEMAND=false = %v", err)
		}
	}
	var out, errOut bytes.Buffer
	if code := Main([]string{"proxy"}, []string{"XDS_ON_DEMAND=true"}, &out, &errOut); code != 1 || !strings.Contains(errOut.String(), "XDS_ON_DEMAND") {
		t.Errorf("proxy = %d, %q", code, errOut.String())
	}
}

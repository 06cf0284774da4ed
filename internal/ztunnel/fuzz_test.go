package ztunnel

import (
	"strings"
	"testing"
)

// FuzzParseConfig reads arbitrary environments. What is accepted must be complete enough to run.
func FuzzParseConfig(f *testing.F) {
	f.Add("PROXY_MODE=dedicated\nPROXY_WORKLOAD_INFO=default/shell-1/shell\nINSTANCE_IP=10.0.0.1\nNETWORK=eks")
	f.Add("PROXY_MODE=gateway\nPOD_NAMESPACE=istio-system\nSERVICE_ACCOUNT=gw\nGATEWAY_TLS_ROUTES=a.b=c:1,d=e:2\nGATEWAY_TLS_PORTS=15012,443")
	f.Add("ISTHMUS_BROKER_ADDRESS=https://b:443\nAWS_REGION=us-east-2\nPROXY_MODE=dedicated\nISTHMUS_BROKER_IDENTITY=spiffe://td/ns/a/sa/b")
	f.Add("ISTIO_METAJSON_LABELS={\"a\":[1]}\nISTIO_META_X=y\nXDS_HEADER_a=b\nISTIO_META_DNS_PROXY_ADDR=localhost:53\nRUST_LOG=info,dns=debug")
	f.Add("SECRET_TTL=1h\nTERMINATION_GRACE_PERIOD_SECONDS=30\nPACKET_MARK=1337\nCRL_PATH=/x\nLOCAL_XDS={}\nFAKE_CA=true\nXDS_ADDRESS=\nCA_ADDRESS=http://x")
	f.Fuzz(func(t *testing.T, env string) {
		c, err := ParseConfig(strings.Split(env, "\n"))
		if err != nil {
			return
		}
		switch c.Mode {
		case Shared, Dedicated, Gateway:
		default:
			t.Errorf("mode %q was accepted", c.Mode)
		}
		if c.Mode == Dedicated && c.Broker.Address == "" && (c.Workload.Name == "" || c.Workload.Namespace == "" || c.Workload.ServiceAccount == "") {
			t.Errorf("a dedicated proxy was accepted that does not know for whom: %+v", c.Workload)
		}
		if c.Grace <= 0 || c.SecretTTL < 0 || c.PacketMark < 0 || c.MaxConnections < 0 {
			t.Errorf("limits out of range: %v, %v, %d, %d", c.Grace, c.SecretTTL, c.PacketMark, c.MaxConnections)
		}
		for _, port := range c.TLSPorts {
			if port == 0 {
				t.Error("port 0 was accepted")
			}
		}
	})
}

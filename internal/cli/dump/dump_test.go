package dump

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

const sample = `{
 "workloads": {"u2": {"uid":"u2","name":"b","namespace":"ecs-demo-1","workloadIps":["10.0.0.2"],"protocol":"HBONE","status":"Healthy"},
               "u1": {"uid":"u1","name":"a","namespace":"default","workloadIps":["10.0.0.1"],"node":"n1","protocol":"TCP","status":"Healthy","waypoint":{"destination":"eks/10.0.0.9"}}},
 "services": [{"name":"echo","namespace":"ecs-demo-1","hostname":"echo.x","vips":["eks/240.240.0.1","eks/2001:2::1"],"endpoints":{"u2":{"workloadUid":"u2","status":"Healthy"},"u3":{"workloadUid":"u3","status":"Unhealthy"}}}],
 "policies": [{"name":"deny-all","namespace":"ecs-demo-1","scope":"Namespace","action":"Allow"}],
 "certificates": [{"identity":"spiffe://cluster.local/ns/ecs-demo-1/sa/x","state":"Available","certChain":[{"serialNumber":"255","validFrom":"2026-01-01T00:00:00Z","expirationTime":"2026-01-02T00:00:00Z"}],"rootCerts":[{"serialNumber":"16","validFrom":"2020-01-01T00:00:00Z","expirationTime":"2036-01-02T00:00:00Z"}]},
                  {"identity":"spiffe://cluster.local/ns/default/sa/y","state":"Unavailable: no","certChain":[]}]
}`

func TestTables(t *testing.T) {
	d, err := Parse(strings.NewReader(sample))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		write func(*bytes.Buffer)
		want  string
	}{
		{"workloads", func(b *bytes.Buffer) { d.WriteWorkloads(b) }, `
NAMESPACE   POD NAME  ADDRESS   NODE  WAYPOINT  PROTOCOL
default     a         10.0.0.1  n1    10.0.0.9  TCP
ecs-demo-1  b         10.0.0.2        None      HBONE
`},
		{"services", func(b *bytes.Buffer) { d.WriteServices(b) }, `
NAMESPACE   SERVICE NAME  SERVICE VIP            WAYPOINT  ENDPOINTS
ecs-demo-1  echo          240.240.0.1,2001:2::1  None      1/2
`},
		{"policies", func(b *bytes.Buffer) { d.WritePolicies(b) }, `
NAMESPACE   POLICY NAME  ACTION  SCOPE
ecs-demo-1  deny-all     Allow   Namespace
`},
		{"certificates", func(b *bytes.Buffer) { d.Select("ecs-demo-1").WriteCertificates(b, now) }, `
CERTIFICATE NAME                           TYPE  STATUS     VALID CERT  SERIAL NUMBER  NOT AFTER             NOT BEFORE
spiffe://cluster.local/ns/ecs-demo-1/sa/x  Leaf  Available  true        ff             2026-01-02T00:00:00Z  2026-01-01T00:00:00Z
spiffe://cluster.local/ns/ecs-demo-1/sa/x  Root  Available  true        10             2036-01-02T00:00:00Z  2020-01-01T00:00:00Z
`},
	} {
		var b bytes.Buffer
		c.write(&b)
		if got := "\n" + b.String(); got != c.want {
			t.Errorf("%s:%s\nwant:%s", c.name, got, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"workloads":3}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		d, err := Parse(bytes.NewReader(b))
		if err != nil {
			return
		}
		var w bytes.Buffer
		d.WriteWorkloads(&w)
		d.WriteServices(&w)
		d.WritePolicies(&w)
		d.WriteCertificates(&w, time.Unix(0, 0))
	})
}

package discovery

import (
	"testing"
)

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"80", "80:8080/http 9090", "1,2,3", "443/https+80", ":", "/", "65536", "80/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, err := parsePorts(s)
		if err != nil {
			return
		}
		names := map[string]bool{}
		for i, p := range ports {
			if p.Number < 1 || p.Number > 65535 || p.TargetPort > 65535 || p.Protocol == "" || !isLabel(p.Name) || names[p.Name] {
				t.Errorf("parsePorts(%q) = %+v", s, ports)
			}
			if i > 0 && ports[i-1].Number >= p.Number {
				t.Errorf("parsePorts(%q) is not sorted: %+v", s, ports)
			}
			names[p.Name] = true
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"a", "A_b", "..", "", "-", "ü", "x.-y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := objectName("ecs-service", s); !isSubdomain(got) {
			t.Errorf("objectName(%q) = %q", s, got)
		}
		if got := dnsLabel(s); got != "" && !isLabel(got) {
			t.Errorf("dnsLabel(%q) = %q", s, got)
		}
		if got := labelValue(s); len(got) > maxLabel {
			t.Errorf("labelValue(%q) = %q", s, got)
		}
	})
}

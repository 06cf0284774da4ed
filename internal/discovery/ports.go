package discovery

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// protocols maps ECS's appProtocol, and the words of the ports tag, to Istio's protocol names.
var protocols = map[string]string{"": "TCP", "tcp": "TCP", "http": "HTTP", "http2": "HTTP2", "grpc": "GRPC", "tls": "TLS", "https": "HTTPS"}

// hbonePort belongs to the proxy and is never a service's.
const hbonePort = 15008

// choosePorts returns a service's ports: those of the tag if there is one, else the TCP port mappings of all containers
// but the proxy.
func (w *eval) choosePorts(s *service, v inventory.TaskView) []Port {
	if tag, from, ok := v.Tag(w.cfg.TagPrefix + "ports"); ok {
		ports, err := parsePorts(tag)
		if err == nil {
			return ports
		}
		w.problem(s.svc.ARN, diag.TagInvalid, "write PORT[:TARGET][/PROTOCOL], several separated by spaces, for example \"80:8080/http 9090\"",
			"tag %sports of the %s: %v", w.cfg.TagPrefix, from, err)
	}
	proxy := proxyDefinition(w.cfg, v.Definition)
	var ports []Port
	for i := range v.Definition.Containers {
		c := &v.Definition.Containers[i]
		if c == proxy {
			continue
		}
		for _, m := range c.PortMappings {
			if m.Protocol != "tcp" || proxy != nil && m.ContainerPort == hbonePort {
				continue
			}
			p := Port{Number: uint32(m.ContainerPort), Protocol: protocols[m.AppProtocol]}
			if p.Protocol == "" {
				p.Protocol = "TCP"
			}
			p.Name = portName(p, m.Name)
			if slices.ContainsFunc(ports, func(o Port) bool { return o.Number == p.Number }) {
				w.problem(s.svc.ARN, diag.ServiceWithoutPorts, "choose service ports with the tag "+w.cfg.TagPrefix+"ports", "port %d is mapped by two containers; the first one counts", p.Number)
				continue
			}
			ports = append(ports, p)
		}
	}
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	return uniqueNames(ports)
}

// parsePorts reads the ports tag: PORT[:TARGET][/PROTOCOL], separated by spaces, commas or plus signs. (AWS allows no
// commas in tags everywhere.)
func parsePorts(tag string) ([]Port, error) {
	var ports []Port
	for _, field := range strings.FieldsFunc(tag, func(r rune) bool { return r == ' ' || r == ',' || r == '+' }) {
		numbers, proto, _ := strings.Cut(field, "/")
		number, target, hasTarget := strings.Cut(numbers, ":")
		p := Port{Protocol: protocols[strings.ToLower(proto)]}
		var err error
		if p.Number, err = parsePort(number); err != nil {
			return nil, err
		}
		if hasTarget {
			if p.TargetPort, err = parsePort(target); err != nil {
				return nil, err
			}
			if p.TargetPort == p.Number {
				p.TargetPort = 0
			}
		}
		if p.Protocol == "" {
			return nil, fmt.Errorf("unknown protocol %q in %q", proto, field)
		}
		if slices.ContainsFunc(ports, func(o Port) bool { return o.Number == p.Number }) {
			return nil, fmt.Errorf("port %d comes twice", p.Number)
		}
		p.Name = portName(p, "")
		ports = append(ports, p)
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("no port in %q", tag)
	}
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	return ports, nil
}

func parsePort(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return uint32(n), nil
}

// portName returns the name by Istio's convention: the protocol, then what tells ports of one protocol apart.
func portName(p Port, name string) string {
	proto := strings.ToLower(p.Protocol)
	if name = dnsLabel(name); name == "" {
		return proto + "-" + strconv.Itoa(int(p.Number))
	}
	if name == proto || strings.HasPrefix(name, proto+"-") {
		return name
	}
	return shorten(proto+"-"+name, maxLabel)
}

// uniqueNames adds the number to names that come twice.
func uniqueNames(ports []Port) []Port {
	seen := map[string]bool{}
	for i := range ports {
		if seen[ports[i].Name] {
			ports[i].Name = shorten(ports[i].Name, maxLabel-6) + "-" + strconv.Itoa(int(ports[i].Number))
		}
		seen[ports[i].Name] = true
	}
	return ports
}

// unitePorts returns the ports of services that share a host name. Where they differ the oldest service decides.
func (w *eval) unitePorts(group []*service) []Port {
	var ports []Port
	for _, s := range group {
		for _, p := range s.ports {
			i := slices.IndexFunc(ports, func(o Port) bool { return o.Number == p.Number })
			if i < 0 {
				ports = append(ports, p)
				continue
			}
			if ports[i].Protocol != p.Protocol || targetOf(ports[i]) != targetOf(p) {
				w.problem(s.svc.ARN, diag.HostConflict, "make the port the same in all services of the host name",
					"port %d of host name %s is %s here and %s in %s", p.Number, s.host, p.Protocol, ports[i].Protocol, group[0].svc.ARN)
			}
		}
	}
	slices.SortFunc(ports, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
	return uniqueNames(ports)
}

// Package dump reads what a ztunnel knows, as its /config_dump gives it, and renders it in istioctl's columns. It reads
// the dumps of Istio's ztunnel and ours alike.
package dump

import (
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/cli/output"
)

// MaxBytes bounds the size of a dump; a mesh of 100,000 workloads takes some 60 MB.
const MaxBytes = 256 << 20

// Dump is the part of a config dump that people look at. Unknown members are kept in Raw.
type Dump struct {
	Workloads    []Workload
	Services     []Service
	Policies     []Policy
	Certificates []Certificate
	Raw          map[string]json.RawMessage
}

// Gateway is a waypoint or a network gateway.
type Gateway struct {
	Destination string `json:"destination"`
}

// Workload is one entry of the dump's workloads.
type Workload struct {
	UID            string   `json:"uid"`
	Name           string   `json:"name"`
	Namespace      string   `json:"namespace"`
	ServiceAccount string   `json:"serviceAccount"`
	WorkloadIPs    []string `json:"workloadIps"`
	Hostname       string   `json:"hostname,omitempty"`
	Node           string   `json:"node,omitempty"`
	Protocol       string   `json:"protocol"`
	Status         string   `json:"status"`
	Waypoint       *Gateway `json:"waypoint,omitempty"`
}

// Service is one entry of the dump's services.
type Service struct {
	Name      string              `json:"name"`
	Namespace string              `json:"namespace"`
	Hostname  string              `json:"hostname"`
	VIPs      []string            `json:"vips"`
	Waypoint  *Gateway            `json:"waypoint,omitempty"`
	Endpoints map[string]Endpoint `json:"endpoints"`
}

// Endpoint is one endpoint of a Service.
type Endpoint struct {
	WorkloadUID string `json:"workloadUid"`
	Status      string `json:"status,omitempty"`
}

// Policy is one entry of the dump's policies.
type Policy struct {
	Name      string          `json:"name"`
	Namespace string          `json:"namespace"`
	Scope     string          `json:"scope"`
	Action    string          `json:"action"`
	Rules     json.RawMessage `json:"rules,omitempty"`
}

// Certificate is one identity of the dump's certificates.
type Certificate struct {
	Identity  string `json:"identity"`
	State     string `json:"state"`
	CertChain []Cert `json:"certChain"`
	RootCerts []Cert `json:"rootCerts,omitempty"`
}

// Cert is one certificate of a chain.
type Cert struct {
	SerialNumber   string `json:"serialNumber"` // decimal
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

// Parse reads a config dump.
func Parse(r io.Reader) (*Dump, error) {
	var raw map[string]json.RawMessage
	dec := json.NewDecoder(io.LimitReader(r, MaxBytes))
	if err := dec.Decode(&raw); err != nil {
		return nil, fmt.Errorf("read config dump: %w", err)
	}
	d := &Dump{Raw: raw}
	var err error
	if d.Workloads, err = elements[Workload](raw, "workloads"); err != nil {
		return nil, err
	}
	if d.Services, err = elements[Service](raw, "services"); err != nil {
		return nil, err
	}
	if d.Policies, err = elements[Policy](raw, "policies"); err != nil {
		return nil, err
	}
	if d.Certificates, err = elements[Certificate](raw, "certificates"); err != nil {
		return nil, err
	}
	slices.SortFunc(d.Workloads, func(a, b Workload) int {
		return strings.Compare(a.Namespace+"/"+a.Name+"/"+a.UID, b.Namespace+"/"+b.Name+"/"+b.UID)
	})
	slices.SortFunc(d.Services, func(a, b Service) int {
		return strings.Compare(a.Namespace+"/"+a.Name+"/"+a.Hostname, b.Namespace+"/"+b.Name+"/"+b.Hostname)
	})
	slices.SortFunc(d.Policies, func(a, b Policy) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	slices.SortFunc(d.Certificates, func(a, b Certificate) int { return strings.Compare(a.Identity, b.Identity) })
	return d, nil
}

// elements reads a member that is a list, or an object whose values are the elements.
func elements[T any](raw map[string]json.RawMessage, member string) ([]T, error) {
	b, ok := raw[member]
	if !ok || string(b) == "null" {
		return nil, nil
	}
	var l []T
	err := json.Unmarshal(b, &l)
	if err == nil {
		return l, nil
	}
	var m map[string]T
	if json.Unmarshal(b, &m) != nil {
		return nil, fmt.Errorf("read config dump: %s: %w", member, err)
	}
	for _, v := range m {
		l = append(l, v)
	}
	return l, nil
}

// Select keeps what is in a namespace; "" keeps all. Certificates belong to the namespace of their identity.
func (d *Dump) Select(namespace string) *Dump {
	if namespace == "" {
		return d
	}
	keep := func(ns string) bool { return ns == namespace }
	out := &Dump{Raw: d.Raw}
	for _, w := range d.Workloads {
		if keep(w.Namespace) {
			out.Workloads = append(out.Workloads, w)
		}
	}
	for _, s := range d.Services {
		if keep(s.Namespace) {
			out.Services = append(out.Services, s)
		}
	}
	for _, p := range d.Policies {
		if keep(p.Namespace) {
			out.Policies = append(out.Policies, p)
		}
	}
	for _, c := range d.Certificates {
		if strings.Contains(c.Identity, "/ns/"+namespace+"/") {
			out.Certificates = append(out.Certificates, c)
		}
	}
	return out
}

// Items returns the elements of a member as the proxy gives them, those of one namespace or, with "", all.
func (d *Dump) Items(member, namespace string) ([]json.RawMessage, error) {
	all, err := elements[json.RawMessage](d.Raw, member)
	if err != nil {
		return nil, err
	}
	out := []json.RawMessage{}
	for _, raw := range all {
		var meta struct{ Namespace, Identity string }
		if err := json.Unmarshal(raw, &meta); err != nil {
			return nil, fmt.Errorf("read config dump: %s: %w", member, err)
		}
		if namespace == "" || meta.Namespace == namespace || strings.Contains(meta.Identity, "/ns/"+namespace+"/") {
			out = append(out, raw)
		}
	}
	return out, nil
}

// WriteWorkloads writes the table of workloads.
func (d *Dump) WriteWorkloads(w io.Writer) {
	rows := make([][]string, 0, len(d.Workloads))
	for _, x := range d.Workloads {
		addr := strings.Join(x.WorkloadIPs, ",")
		if addr == "" {
			addr = x.Hostname
		}
		rows = append(rows, []string{x.Namespace, x.Name, addr, x.Node, gatewayName(x.Waypoint), x.Protocol})
	}
	output.Table(w, []string{"NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"}, rows)
}

// WriteServices writes the table of services.
func (d *Dump) WriteServices(w io.Writer) {
	rows := make([][]string, 0, len(d.Services))
	for _, x := range d.Services {
		var vips []string
		for _, v := range x.VIPs {
			_, ip, ok := strings.Cut(v, "/")
			if !ok {
				ip = v
			}
			vips = append(vips, ip)
		}
		healthy := 0
		for _, e := range x.Endpoints {
			if e.Status == "" || e.Status == "Healthy" {
				healthy++
			}
		}
		rows = append(rows, []string{x.Namespace, x.Name, strings.Join(vips, ","), gatewayName(x.Waypoint), fmt.Sprintf("%d/%d", healthy, len(x.Endpoints))})
	}
	output.Table(w, []string{"NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"}, rows)
}

// WritePolicies writes the table of policies.
func (d *Dump) WritePolicies(w io.Writer) {
	rows := make([][]string, 0, len(d.Policies))
	for _, x := range d.Policies {
		rows = append(rows, []string{x.Namespace, x.Name, x.Action, x.Scope})
	}
	output.Table(w, []string{"NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"}, rows)
}

// WriteCertificates writes the table of certificates as of now.
func (d *Dump) WriteCertificates(w io.Writer, now time.Time) {
	var rows [][]string
	for _, x := range d.Certificates {
		state, _, _ := strings.Cut(x.State, ":")
		if len(x.CertChain) == 0 {
			rows = append(rows, []string{x.Identity, "NA", state, "false", "NA", "NA", "NA"})
			continue
		}
		for i, c := range x.CertChain {
			kind := "Intermediate"
			switch {
			case i == 0:
				kind = "Leaf"
			case len(x.RootCerts) == 0 && i == len(x.CertChain)-1:
				kind = "Root"
			}
			rows = append(rows, certRow(x.Identity, kind, state, c, now))
		}
		for _, c := range x.RootCerts {
			rows = append(rows, certRow(x.Identity, "Root", state, c, now))
		}
	}
	output.Table(w, []string{"CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"}, rows)
}

func certRow(identity, kind, state string, c Cert, now time.Time) []string {
	serial := c.SerialNumber
	if n, ok := new(big.Int).SetString(serial, 10); ok {
		serial = n.Text(16)
	}
	from, errFrom := time.Parse(time.RFC3339, c.ValidFrom)
	to, errTo := time.Parse(time.RFC3339, c.ExpirationTime)
	valid := errFrom == nil && errTo == nil && now.After(from) && now.Before(to)
	return []string{identity, kind, state, strconv.FormatBool(valid), serial, c.ExpirationTime, c.ValidFrom}
}

// gatewayName is the last part of a gateway's destination, as istioctl shows it.
func gatewayName(g *Gateway) string {
	if g == nil {
		return "None"
	}
	_, name, ok := strings.Cut(g.Destination, "/")
	if !ok {
		return g.Destination
	}
	host, _, _ := strings.Cut(name, ".")
	if strings.Count(name, ".") == 3 && !strings.HasSuffix(name, ".svc") {
		return name // an address
	}
	return host
}

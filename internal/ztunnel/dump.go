package ztunnel

import (
	"context"
	"crypto/x509"
	"net"
	"runtime"

	"github.com/isthmus-mesh/isthmus/internal/admin"
	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// adminServer binds the admin, metrics and readiness ports.
func (a *app) adminServer(ctx context.Context, shutdown func()) (*admin.Server, error) {
	var ls [3][]net.Listener
	for i, address := range []string{a.cfg.Listen.Admin, a.cfg.Listen.Metrics, a.cfg.Listen.Readiness} {
		var err error
		if ls[i], err = a.listenLocal(ctx, nil, a.listenConfig(false), address); err != nil {
			for _, opened := range ls[:i] {
				for _, l := range opened {
					l.Close()
				}
			}
			return nil, err
		}
	}
	return admin.New(admin.Config{
		Admin: ls[0], Metrics: ls[1], Readiness: ls[2],
		Dump: a.dump, Why: a.why, Levels: a.levels, Shutdown: shutdown, Ready: a.ready,
		Gather: telemetry.MetricsHandler(a.reg, a.metrics), Log: a.log.With(logattr.Scope("admin")),
	})
}

// dump describes everything this proxy knows.
func (a *app) dump() admin.Dump {
	snap := a.store.Snapshot()
	d := admin.Describe(snap)
	for _, k := range snap.Staged() {
		d.StagedServices[k.String()] = map[string]any{}
	}
	d.Version = map[string]string{"version": version.String(), "name": "isthmus-ztunnel"}
	d.Config = a.settings()
	if a.cfg.Static != nil {
		own := state.NewStore()
		own.Apply(*a.cfg.Static)
		s := admin.Describe(own.Snapshot())
		d.StaticConfig = map[string]any{"workloads": s.Workloads, "services": s.Services, "policies": s.Policies}
	}
	if m := a.manager.get(); m != nil {
		for _, s := range m.States() {
			d.Certificates = append(d.Certificates, certificate(s))
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid, s := range a.proxies {
		d.WorkloadState[uid] = workloadState(s)
	}
	return d
}

func workloadState(s *served) admin.WorkloadState {
	ws := admin.WorkloadState{
		State:       "Pending",
		Info:        admin.WorkloadInfo{Name: s.info.Name, Namespace: s.info.Namespace, ServiceAccount: s.info.ServiceAccount},
		Connections: admin.Connections{Inbound: []admin.Connection{}, Outbound: []admin.Connection{}},
	}
	if s.proxy == nil {
		return ws
	}
	ws.State = "Up"
	for _, c := range s.proxy.Connections() {
		ac := admin.Connection{Src: c.Src, OriginalDst: c.OriginalDst, ActualDst: c.ActualDst, Protocol: c.Protocol}
		if c.Inbound {
			ws.Connections.Inbound = append(ws.Connections.Inbound, ac)
		} else {
			ws.Connections.Outbound = append(ws.Connections.Outbound, ac)
		}
	}
	return ws
}

func certificate(s identity.State) admin.Certificate {
	c := admin.Certificate{Identity: s.Identity.String(), State: s.Status.String(), CertChain: []admin.Cert{}, RootCerts: []admin.Cert{}}
	if s.Status == identity.Unavailable && s.Err != nil {
		c.State += ": " + s.Err.Error()
	}
	if s.Certificate == nil {
		return c
	}
	var chain []*x509.Certificate
	for _, der := range s.Certificate.TLS.Certificate {
		if cert, err := x509.ParseCertificate(der); err == nil {
			chain = append(chain, cert)
		}
	}
	c.CertChain = admin.NewCerts(chain)
	c.RootCerts = admin.NewCerts(s.Certificate.RootCerts)
	return c
}

// settings are the configuration as it is in force, without secrets.
func (a *app) settings() map[string]any {
	c := a.cfg
	return map[string]any{
		"proxyMode": string(c.Mode), "network": c.Network, "localNode": c.NodeName, "clusterId": c.ClusterID,
		"clusterDomain": c.ClusterDomain, "trustDomain": c.TrustDomain, "xdsAddress": c.XDSAddress, "caAddress": c.CAAddress,
		"altXdsHostname": c.XDSServerName, "altCaHostname": c.CAServerName, "secretTtl": c.SecretTTL.String(),
		"dnsProxy": c.DNS, "socks5": c.SOCKS, "ipv6Enabled": c.IPv6, "packetMark": c.PacketMark,
		"brokerAddress": c.Broker.Address, "brokerIdentity": c.Broker.Identity.String(), "brokerAudience": c.Broker.Audience,
		"selfTerminationDeadline": c.Grace.String(), "gatewayTlsRoutes": c.TLSRoutes, "inpodUds": c.InpodSocket,
		"keepaliveTime": c.Tuning.KeepAlive.Idle.String(), "keepaliveInterval": c.Tuning.KeepAlive.Interval.String(),
		"keepaliveRetries": c.Tuning.KeepAlive.Count, "keepaliveEnabled": c.Tuning.KeepAlive.Enable, "userTimeout": c.Tuning.UserTimeout.String(),
		"tls": describeTLS(c.Tuning.TLS), "crlPath": c.CRLPath, "workerThreads": runtime.GOMAXPROCS(0),
		"missingPolicies": map[bool]string{true: "allow", false: "deny"}[c.AllowMissingPolicies], "policyWait": c.PolicyWait.String(), "endpointWait": max(c.EndpointWait, 0).String(),
		"outboundPort": mesh.OutboundPort, "inboundPort": mesh.InboundPort, "hbonePort": mesh.HBONEPort,
	}
}

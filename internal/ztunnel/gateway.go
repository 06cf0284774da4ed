package ztunnel

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/gateway"
	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// runGateway serves the east-west gateway. Passthrough starts at once, since a control plane on another network can
// only be reached through it; tunnels are served when the mesh is known.
func (a *app) runGateway(data, control context.Context, g *group, fail func(error)) error {
	a.ready.Set(taskProxy, false)
	tunnels := a.cfg.XDSAddress != "" && a.cfg.CAAddress != ""
	gc := gateway.Config{
		Routes: a.cfg.TLSRoutes, Network: a.cfg.Network, Dial: a.dial, Grace: a.cfg.Grace, MaxConnections: a.cfg.MaxConnections,
		Metrics: a.metrics, Access: a.access, Log: a.log.With(logattr.Scope("gateway")),
	}
	var ls gateway.Listeners
	for _, port := range a.cfg.TLSPorts {
		if len(a.cfg.TLSRoutes) == 0 {
			break
		}
		l, err := a.listen(data, net.JoinHostPort("", strconv.Itoa(int(port))))
		if err != nil {
			return fmt.Errorf("listen for TLS passthrough: %w", err)
		}
		defer l.Close()
		ls.TLS = append(ls.TLS, l)
	}
	pass, err := gateway.New(gc)
	if err != nil {
		return err
	}
	if !tunnels {
		a.ready.Set(taskState, true)
		a.ready.Set(taskProxy, true)
		return pass.Run(data, ls)
	}
	hl, err := a.listen(data, a.cfg.Listen.HBONE)
	if err != nil {
		return fmt.Errorf("listen for HBONE: %w", err)
	}
	defer hl.Close()
	passing := make(chan error, 1)
	go func() {
		err := pass.Run(data, ls)
		if err != nil {
			fail(err)
		}
		passing <- err
	}()
	err = a.runTunnels(data, control, g, fail, gc, hl)
	if perr := <-passing; err == nil {
		err = perr
	}
	return err
}

func (a *app) runTunnels(data, control context.Context, g *group, fail func(error), gc gateway.Config, hl net.Listener) error {
	self := a.gatewaySelf()
	who := identityInfo{
		name: self.Name, namespace: self.Namespace, serviceAccount: self.ServiceAccount, network: a.cfg.Network,
		clusterID: a.cfg.ClusterID, instanceIP: a.cfg.InstanceIP, token: tokenOf(a.cfg.AuthToken),
	}
	a.ready.Set(taskCertificate, false)
	synced, err := a.controlPlane(control, g, fail, who)
	if err != nil {
		fail(err)
		return err
	}
	if !a.synced(data, synced) {
		return nil
	}
	gc.Store, gc.Self, gc.Services, gc.TLS, gc.Limits = a.store, self, a.cfg.GatewayServices, a.cfg.Tuning.TLS, a.cfg.Tuning.Limits
	gc.PolicyWait, gc.AllowMissingPolicies, gc.LogDecisions, gc.EndpointWait = a.cfg.PolicyWait, a.cfg.AllowMissingPolicies, a.cfg.LogDecisions, a.cfg.EndpointWait
	if a.crl != nil {
		gc.VerifyPeer = func(path []*x509.Certificate) error { return a.verifyPeer(telemetry.Destination, path) }
	}
	gc.Certs = func(ctx context.Context) (hbone.Certificate, error) { return a.certificate(ctx, self.Identity()) }
	gw, err := gateway.New(gc)
	if err != nil {
		fail(err)
		return err
	}
	a.alsoRecheck(gw)
	g.start(control, fail, func(ctx context.Context) error { return a.awaitCertificate(ctx, self.Identity()) })
	a.ready.Set(taskProxy, true)
	err = gw.Run(data, gateway.Listeners{HBONE: hl})
	if err != nil {
		fail(err)
	}
	return err
}

func (a *app) gatewaySelf() *mesh.Workload {
	name := a.cfg.PodName
	if name == "" {
		name = a.cfg.ServiceAccount
	}
	w := &mesh.Workload{
		UID: "gateway/" + a.cfg.PodNamespace + "/" + name, Name: name, Namespace: a.cfg.PodNamespace, ServiceAccount: a.cfg.ServiceAccount,
		TrustDomain: a.cfg.TrustDomain, Network: a.cfg.Network, ClusterID: a.cfg.ClusterID, Capacity: 1,
	}
	if a.cfg.InstanceIP.IsValid() {
		w.Addresses = []netip.Addr{a.cfg.InstanceIP}
	}
	return w
}

// awaitCertificate tells readiness when the certificate of id is there.
func (a *app) awaitCertificate(ctx context.Context, id mesh.Identity) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		_, err := a.certificate(ctx, id)
		if err == nil {
			a.ready.Set(taskCertificate, true)
			return nil
		}
		a.log.Debug("certificate is not available yet", logattr.Err(err))
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

package ztunnel

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy"
)

// runDedicated serves the one workload beside which this proxy runs.
func (a *app) runDedicated(data, control context.Context, g *group, fail func(error)) error {
	a.ready.Set(taskProxy, false)
	if a.cfg.CAAddress != "" {
		a.ready.Set(taskCertificate, false)
	}
	if a.cfg.DNS {
		a.ready.Set(taskDNS, false)
	}
	who, fallback, err := a.whoAmI(data, control, g, fail)
	if err != nil {
		if data.Err() != nil {
			return nil // told to stop while it was still being found out
		}
		return err
	}
	info := proxy.WorkloadInfo{Name: who.name, Namespace: who.namespace, ServiceAccount: who.serviceAccount, Node: a.cfg.NodeName, Fallback: fallback}
	w, err := a.newWorkloadProxy(data, placement{info: info, network: who.network, beside: true, search: a.searchDomains()})
	if err != nil {
		return err
	}
	uid := who.namespace + "/" + who.name
	a.addServed(uid, &served{info: info})
	synced, err := a.controlPlane(control, g, fail, who)
	if err != nil || !a.synced(data, synced) {
		w.close()
		return err
	}
	a.addServed(uid, &served{info: info, proxy: w.proxy})
	if a.cfg.CAAddress != "" {
		g.start(control, fail, func(ctx context.Context) error { return a.prefetchOwn(ctx, info) })
	}
	if a.cfg.Redirect {
		if err := redirectTask(a.cfg); err != nil {
			w.close()
			return err
		}
		a.log.Info("connections are redirected to the proxy")
	}
	a.metrics.ProxyStarted()
	defer a.metrics.ProxyStopped()
	a.ready.Set(taskProxy, true)
	a.ready.Set(taskDNS, true)
	err = w.run(data)
	if err == nil && a.cfg.Redirect {
		// The applications have ended before; what is left, such as a log router, finishes without the proxy. After an
		// error the rules stay, so that nothing leaves in the clear that was meant for the mesh.
		err = redirect.Remove(nil)
	}
	return err
}

// searchDomains are those of the container: applications qualify names with them. Never nil, which would mean
// Kubernetes' own.
func (a *app) searchDomains() []string {
	if a.resolv.Search == nil {
		return []string{}
	}
	return a.resolv.Search
}

// whoAmI finds out the identity of the workload: from the broker, which knows it by the task's role, or from the
// environment.
func (a *app) whoAmI(data, control context.Context, g *group, fail func(error)) (who identityInfo, fallback *mesh.Workload, err error) {
	who = identityInfo{
		name: a.cfg.Workload.Name, namespace: a.cfg.Workload.Namespace, serviceAccount: a.cfg.Workload.ServiceAccount,
		network: a.cfg.Network, clusterID: a.cfg.ClusterID, instanceIP: a.cfg.InstanceIP, token: tokenOf(a.cfg.AuthToken),
	}
	if !who.instanceIP.IsValid() {
		ip, err := ownAddress()
		if err != nil {
			return who, nil, err
		}
		who.instanceIP = ip
	}
	if a.cfg.Broker.Address == "" {
		return who, nil, nil
	}
	region, taskID := a.cfg.Broker.Region, ""
	if region == "" || a.cfg.Broker.WebIdentity {
		task, err := a.taskARN(data)
		if err != nil {
			return who, nil, err
		}
		if region == "" {
			region = task.region
		}
		taskID = task.id
	}
	broker, err := a.broker(region, taskID)
	if err != nil {
		return who, nil, err
	}
	answer, err := a.firstToken(data, broker)
	if err != nil {
		return who, nil, err
	}
	g.start(control, fail, broker.Run)
	who.rejected = broker.Rejected
	who.token = func(ctx context.Context) (string, error) {
		t, err := broker.Token(ctx)
		return t.Token, err
	}
	who.name, who.namespace, who.serviceAccount = answer.WorkloadName, answer.Namespace, answer.ServiceAccount
	if who.network == "" {
		who.network = answer.Network
	}
	if who.clusterID == "" {
		who.clusterID = answer.ClusterID
	}
	return who, synthesise(who, answer.TrustDomain), nil
}

func (a *app) broker(region, taskID string) (*iamproof.BrokerClient, error) {
	roots, err := rootsOf("XDS_ROOT_CA", a.cfg.XDSRoot)
	if err != nil {
		return nil, err
	}
	creds, err := iamproof.CredentialsFromEnvironment(a.cfg.getenv)
	if err != nil {
		return nil, err
	}
	b := a.cfg.Broker
	var prove func(context.Context) (iamproof.Asking, error)
	if b.WebIdentity {
		client, err := webidentity.NewClient(webidentity.ClientConfig{
			Credentials: func(ctx context.Context) (aws.Credentials, error) { return iamproof.Retrieve(ctx, creds) },
			Region:      region, Audience: b.Audience, TaskID: taskID, Endpoint: b.STSEndpoint, Dial: a.dial,
		})
		if err != nil {
			return nil, err
		}
		prove = client.Prove
	}
	return iamproof.NewBrokerClient(iamproof.BrokerConfig{
		Address: b.Address, ServerName: b.ServerName, Identity: b.Identity, Roots: roots, Credentials: creds,
		Region: region, Audience: b.Audience, Prove: prove, Dial: a.dial, MinTokenAge: a.cfg.tokenAge, Log: a.log,
	})
}

// firstToken asks the broker until it answers: a task may be faster than its discovery, and a broker may be away. The
// broker client logs each failure and limits how often it really asks.
func (a *app) firstToken(ctx context.Context, b *iamproof.BrokerClient) (iamproof.TokenResponse, error) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		answer, err := b.Token(ctx)
		if err == nil {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return answer, fmt.Errorf("stopped before the broker issued a token: %w", err)
		case <-t.C:
		}
	}
}

// synthesise makes the record of a workload that discovery has not seen yet, so that it can make connections at once.
// It is replaced as soon as the control plane delivers the real one.
func synthesise(who identityInfo, trustDomain string) *mesh.Workload {
	if trustDomain == "" {
		trustDomain = mesh.DefaultTrustDomain
	}
	cluster := who.clusterID
	if cluster == "" {
		cluster = defaultClusterID
	}
	return &mesh.Workload{
		UID:  cluster + "/networking.istio.io/WorkloadEntry/" + who.namespace + "/" + who.name,
		Name: who.name, Namespace: who.namespace, TrustDomain: trustDomain, ServiceAccount: who.serviceAccount,
		Addresses: []netip.Addr{who.instanceIP}, Network: who.network, ClusterID: cluster, Protocol: mesh.HBONE, Capacity: 1,
		WorkloadName: who.name, WorkloadType: mesh.Deployment, CanonicalName: who.name, CanonicalRevision: "latest",
	}
}

// prefetchOwn gets the workload's certificate before the first connection needs it, and tells readiness when it is
// there.
func (a *app) prefetchOwn(ctx context.Context, info proxy.WorkloadInfo) error {
	for ctx.Err() == nil {
		w, err := proxy.LocalWorkload(ctx, a.store, info)
		if err == nil {
			return a.awaitCertificate(ctx, w.Identity())
		}
		if ctx.Err() == nil {
			a.log.Warn("the control plane does not know this workload", logattr.Err(err))
		}
	}
	return nil
}

package cli

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/check"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// partLimit bounds how long one part of the installation may take to answer.
const partLimit = 30 * time.Second

// statusConfigMap is where the controller's leader writes what it sees.
const statusConfigMap = "isthmus-controller-status"

// facts gathers what the checks look at. Nothing it cannot read is an error of its own: it is a fact too.
func (a *app) facts(ctx context.Context, cfg config.Config) *check.Facts {
	f := &check.Facts{Now: time.Now(), Names: check.Names{Account: cfg.Account, Profile: cfg.Profile, Region: cfg.Region, EKSCluster: cfg.ClusterName,
		Network: cfg.Network, Gateway: cfg.Gateway, ServiceAccount: cfg.ServiceAccount, ControllerSA: systemNamespace + "/" + controllerName}}
	ctx, cancel := context.WithTimeout(ctx, partLimit)
	defer cancel()
	quiet := *a
	quiet.Streams = output.New(nil, discard{}, discard{}, nil)
	k, kubeErr := a.kube()
	var parts sync.WaitGroup
	parts.Go(func() {
		if kubeErr != nil {
			f.Kube.Err = kubeErr
			return
		}
		kubeFacts(ctx, k, cfg, f)
	})
	admin, err := a.aws(ctx, cfg)
	if err != nil {
		f.AWS.Err, f.ECSErr = err, err
		parts.Wait()
		return f
	}
	f.AWS.Account, f.AWS.ARN, err = admin.Account(ctx)
	if f.AWS.Err = awsError(err); err != nil {
		f.ECSErr = f.AWS.Err
		parts.Wait()
		return f
	}
	parts.Go(func() {
		eks, err := eksCluster(ctx, admin, cfg)
		if f.AWS.EKS, f.AWS.EKSErr = eks.Status, err; err == nil && eks.Status == "ACTIVE" {
			infraFacts(ctx, &quiet, admin, cfg, eks.VPC, f)
		}
	})
	if kubeErr != nil {
		k = nil
	}
	f.Clusters, f.ECSErr = a.clusterFacts(ctx, admin, k, cfg)
	parts.Wait()
	return f
}

// infraFacts compares the account with what `infra apply` would make of it. What the security group admits is told apart:
// it is nobody's failure that an application has a load balancer.
func infraFacts(ctx context.Context, quiet *app, admin *awsadmin.Client, cfg config.Config, vpc string, f *check.Facts) {
	f.AWS.Group = securityGroup(cfg)
	f.AWS.Infra, f.AWS.InfraErr = quiet.infra(ctx, admin, cfg, true)
	f.AWS.Open, f.AWS.OpenErr = openGroup(ctx, admin, cfg, vpc)
	f.AWS.Infra = slices.DeleteFunc(f.AWS.Infra, func(change string) bool {
		return slices.ContainsFunc(f.AWS.Open, func(words string) bool { return change == closeChange(cfg, words) })
	})
	if f.AWS.InfraErr == nil {
		roles, _ := infraRoles(cfg, f.AWS.Account)
		if cfg.Home != nil {
			roles, _ = externalRoles(cfg, f.AWS.Account, "")
		}
		f.AWS.Rights, f.AWS.InfraErr = foreignRights(ctx, admin, roles)
	}
}

// openGroup is what the tasks' security group admits beside the mesh.
func openGroup(ctx context.Context, admin *awsadmin.Client, cfg config.Config, vpc string) (open []string, err error) {
	if cfg.Home != nil {
		if vpc, _, err = admin.FindVPC(ctx, cfg.Home.VPC); err != nil || vpc == "" {
			return nil, awsError(err)
		}
	}
	others, err := otherIngress(ctx, admin, cfg, vpc)
	for _, in := range others {
		open = append(open, in.Words)
	}
	return open, err
}

// discard swallows what a part would say.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func kubeFacts(ctx context.Context, k *kube.Client, cfg config.Config, f *check.Facts) {
	f.Kube.Server = k.Server()
	if f.Kube.Err = k.Ready(ctx); f.Kube.Err != nil {
		return
	}
	for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries, kube.AuthzPolicies, kube.Gateways} {
		if _, err := k.List(ctx, kind, systemNamespace, ""); kube.IsNotFound(err) {
			f.Kube.Missing = append(f.Kube.Missing, kind.Resource+"."+kind.Group)
		}
	}
	count := func(selector string) check.Pods {
		pods, err := k.ListPods(ctx, systemNamespace, selector)
		p := check.Pods{Err: kube.Explain(err), Total: len(pods)}
		for _, pod := range pods {
			if pod.Ready {
				p.Ready++
			}
		}
		return p
	}
	f.Istio.Istiod, f.Istio.Ztunnel, f.Controller.Pods = count("app=istiod"), count("app=ztunnel"), count("app="+controllerName)
	ns, err := k.Get(ctx, kube.Namespaces, "", systemNamespace)
	if f.Istio.NetworkErr = kube.Explain(err); err == nil {
		f.Istio.Network = ns.GetLabels()["topology.istio.io/network"]
	}
	f.Istio.RootNotAfter, f.Istio.RootErr = rootNotAfter(ctx, k)
	f.Controller.Gateway, f.Controller.GatewayErr = gatewayAddress(ctx, k, cfg.Gateway)
	f.Controller.Status, f.Controller.StatusErr = controllerStatus(ctx, k)
}

// rootNotAfter is when the first of the mesh's root certificates ends.
func rootNotAfter(ctx context.Context, k *kube.Client) (time.Time, error) {
	text, err := k.RootCertificates(ctx, systemNamespace)
	if err != nil {
		return time.Time{}, err
	}
	var first time.Time
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("read the mesh's root certificate: %w", err)
		}
		if first.IsZero() || cert.NotAfter.Before(first) {
			first = cert.NotAfter
		}
	}
	if first.IsZero() {
		return first, errors.New("istiod publishes no root certificate")
	}
	return first, nil
}

// controllerStatus reads what the controller's leader says; nil means that it has said nothing yet.
func controllerStatus(ctx context.Context, k *kube.Client) (*check.Status, error) {
	o, err := k.Get(ctx, kube.ConfigMaps, systemNamespace, statusConfigMap)
	if kube.IsNotFound(err) {
		return nil, nil //nolint:nilnil // nothing has been said
	}
	if err != nil {
		return nil, kube.Explain(err)
	}
	var cm struct {
		Data map[string]string `json:"data"`
	}
	if err := kube.Decode(o, &cm); err != nil {
		return nil, err
	}
	var s check.Status
	if err := yaml.Unmarshal([]byte(cm.Data["status.yaml"]), &s); err != nil {
		return nil, fmt.Errorf("read ConfigMap %s/%s: %w", systemNamespace, statusConfigMap, err)
	}
	return &s, nil
}

// clusterFacts reads the ECS clusters of the configuration; k is nil where there is no Kubernetes.
func (a *app) clusterFacts(ctx context.Context, admin *awsadmin.Client, k *kube.Client, cfg config.Config) ([]check.Cluster, error) {
	found, _, err := admin.DescribeClusters(ctx, cfg.ECSClusters())
	if err != nil {
		return nil, awsError(err)
	}
	g := &ecsGatherer{admin: admin, kube: k, cfg: cfg, config: a.configPath}
	g.readMesh(ctx)
	var out []check.Cluster
	for _, name := range cfg.ECSClusters() {
		c := check.Cluster{Name: name, Services: []check.Service{}}
		for _, have := range found {
			if have.Name == name {
				c.Status, c.ARN, c.Tagged = have.Status, have.ARN, have.Tags[discoveryTag] == "true"
			}
		}
		if k != nil {
			ns, err := k.Get(ctx, kube.Namespaces, "", name)
			switch {
			case err == nil && ns != nil:
				c.Namespace, c.Ambient = true, ns.GetLabels()[kube.AmbientLabel] == "ambient"
			case !kube.IsNotFound(err):
				c.NamespaceErr = kube.Explain(err)
			}
		}
		if c.Status == "ACTIVE" {
			if c.Services, err = g.services(ctx, name); err != nil && !awsapi.IsNotFound(err) {
				return out, awsError(err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

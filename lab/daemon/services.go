package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/lab/controlplane"
	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/node"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// startRuntime makes what runs the containers of pods and tasks.
func (d *Daemon) startRuntime(ctx context.Context, vpc *netns.VPC) (*runtime.Runtime, error) {
	images, err := runtime.NewCatalogue(runtime.CatalogueConfig{
		Executable: d.cfg.Programs.Self,
		BinDirs:    []string{filepath.Dir(d.cfg.Programs.Controller), filepath.Dir(d.cfg.Programs.Ztunnel), filepath.Dir(d.cfg.Programs.Kube)},
	})
	if err != nil {
		return nil, err
	}
	rt, err := runtime.New(runtime.Config{
		Dir: filepath.Join(d.cfg.Dir.run(), "containers"), VPC: vpc, Images: images, Log: d.cfg.Log, Executable: d.cfg.Programs.Self,
	})
	if err != nil {
		return nil, err
	}
	d.run(ctx, "container runtime", closer(rt))
	return rt, nil
}

// startNode starts the node agent and returns when its Node is ready for pods.
func (d *Daemon) startNode(ctx, stepCtx context.Context, c clusterParts) error {
	certificate, err := c.plane.KubeletCertificate()
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(c.plane.CA()) {
		return errors.New("the lab's certificate authority cannot be read")
	}
	agent, err := node.New(node.Config{
		Kube: c.client, Runtime: c.runtime, Dir: filepath.Join(d.cfg.Dir.run(), "node"), Log: d.cfg.Log, Name: NodeName,
		Address: netns.Router, Port: controlplane.KubeletPort, Certificate: &certificate, ClientCAs: clients,
		ClusterDNS: netns.Resolver, Region: Region, PodIdentity: c.cloud,
		KubernetesService: netip.AddrPortFrom(netns.Services.Masked().Addr().Next(), 443),
	})
	if err != nil {
		return err
	}
	d.run(ctx, "node agent", agent.Run)
	return controlplane.Poll(stepCtx, func(ctx context.Context) error { return nodeReady(ctx, c.client) })
}

func nodeReady(ctx context.Context, client kubernetes.Interface) error {
	n, err := client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("look at node %s: %w", NodeName, err)
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("node %s is not ready", NodeName)
}

// sweepInterval is how often the lab's controller looks at ECS. The lab is far below AWS's request limits.
const sweepInterval = time.Second

// installController installs isthmus-controller as `isthmus install` does, told about the lab's one account, and
// returns when it is available.
func (d *Daemon) installController(stepCtx context.Context, c clusterParts, applier *controlplane.Applier) error {
	manifests, err := install.Config{
		Replicas: 1,
		Settings: settings.File{
			Network:       controlplane.MeshNetwork,
			SweepInterval: settings.Duration(sweepInterval),
			Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{{
				Role: roleARN(discoveryRole), Domain: Domain, Regions: []string{Region}, Events: &settings.Events{QueueURL: eventQueueURL()},
			}}}},
		},
		Env: map[string]string{
			"AWS_REGION":       Region,
			"AWS_ENDPOINT_URL": awsURL(),
		},
		// Tasks sign their proofs for the real STS of the region; only this endpoint knows their keys, and those of issuers.
		Args: []string{"--sts-endpoint=" + awsURL(), "--web-identity-endpoint=" + awsURL()},
	}.Render()
	if err != nil {
		return err
	}
	objects, err := controlplane.Parse(manifests)
	if err != nil {
		return err
	}
	if err := applier.Apply(stepCtx, objects); err != nil {
		return err
	}
	return controlplane.WaitDeployment(stepCtx, c.client, install.DefaultNamespace, install.Name)
}

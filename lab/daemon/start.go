package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/lab/cloud"
	"github.com/isthmus-mesh/isthmus/lab/controlplane"
	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
	"github.com/isthmus-mesh/isthmus/lab/svcnet"
)

// NodeName is the lab's one node.
const NodeName = "lab-node"

// AWSPort is where the AWS endpoint listens inside the lab.
const AWSPort = 4566

// start brings the lab up. ctx is the life of the lab, startCtx that of the start. Steps that do not need each other
// run at the same time; what makes the longest chain comes first.
//
//	network ─┬─ Kubernetes API ──┬─┬─ node, service network
//	         ├─ AWS endpoint ────┤ ├─ Istio's definitions ─┬─ ztunnel
//	         └─ charts rendered ─┘ └─ istiod ──────────────┼─ validation
//	                                                       └─ isthmus-controller
func (d *Daemon) start(ctx, startCtx context.Context) error {
	var vpc *netns.VPC
	var rt *runtime.Runtime
	err := d.step(startCtx, "network", func(context.Context) error {
		var err error
		if vpc, err = d.startNetwork(ctx); err != nil {
			return err
		}
		rt, err = d.startRuntime(ctx, vpc)
		return err
	})
	if err != nil {
		return err
	}
	parallel, startCtx := errgroup.WithContext(startCtx)
	rendered := make(chan struct{})
	var charts *controlplane.Istio
	parallel.Go(func() error {
		defer close(rendered)
		var err error
		charts, err = controlplane.RenderIstio(startCtx, d.cfg.Programs.Kube)
		return err
	})
	var aws *cloud.Cloud
	furnished := make(chan struct{})
	parallel.Go(func() error {
		defer close(furnished)
		return d.step(startCtx, "AWS endpoint", func(stepCtx context.Context) error {
			var err error
			aws, err = d.startCloud(ctx, stepCtx, vpc, rt)
			return err
		})
	})
	parallel.Go(func() error {
		plane, client, err := d.startPlane(ctx, startCtx)
		if err != nil {
			return err
		}
		<-rendered // both end when startCtx does
		<-furnished
		if err := startCtx.Err(); err != nil {
			return err // one of them has reported why
		}
		aws.SetTokenReview(tokenReview(client))
		return d.startCluster(ctx, startCtx, clusterParts{runtime: rt, cloud: aws, plane: plane, client: client, charts: charts})
	})
	return parallel.Wait()
}

// startNetwork makes the VPC and begins to carry connections from the host.
func (d *Daemon) startNetwork(ctx context.Context) (*netns.VPC, error) {
	vpc, err := netns.New(netns.Config{Log: d.cfg.Log})
	if err != nil {
		return nil, platformError(err)
	}
	kube := netip.AddrPortFrom(netns.Router, controlplane.APIServerPort).String()
	aws := netip.AddrPortFrom(netns.Router, AWSPort).String()
	d.run(ctx, "forwarder of the Kubernetes API", func(ctx context.Context) error { return forward(ctx, d.cfg.Kube, kube, d.cfg.Log) })
	d.run(ctx, "forwarder of the AWS endpoint", func(ctx context.Context) error { return forward(ctx, d.cfg.AWS, aws, d.cfg.Log) })
	return vpc, nil
}

// platformError explains an error of the network as something that the kernel lacks, when it is one.
func platformError(err error) error {
	for _, lacking := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT, unix.ENOSYS} {
		if errors.Is(err, lacking) {
			return diag.Wrap(diag.LabPlatform, err).
				WithFix("load the modules on the host: sudo modprobe -a bridge veth nf_tables nft_nat nft_chain_nat nft_reject_ipv4 nft_redir nft_numgen")
		}
	}
	return err
}

// startPlane starts the control plane and returns when its API serves.
func (d *Daemon) startPlane(ctx, startCtx context.Context) (*controlplane.ControlPlane, kubernetes.Interface, error) {
	var plane *controlplane.ControlPlane
	var client kubernetes.Interface
	err := d.step(startCtx, "Kubernetes API", func(stepCtx context.Context) error {
		var err error
		plane, err = controlplane.New(controlplane.Config{
			Dir: filepath.Join(d.cfg.Dir.run(), "kubernetes"), LogDir: d.cfg.Dir.Logs(), Binary: d.cfg.Programs.Kube,
			Advertise: netns.Router, ServiceCIDR: netns.Services, NodeName: NodeName, Log: d.cfg.Log,
		})
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.plane = plane
		d.mu.Unlock()
		if err := plane.WriteKubeconfig(d.cfg.Dir.Kubeconfig(), controlplane.Admin, "https://"+d.cfg.Kube.Addr().String()); err != nil {
			return err
		}
		if client, err = kubernetes.NewForConfig(plane.RESTConfig(controlplane.Node)); err != nil {
			return fmt.Errorf("make Kubernetes client: %w", err)
		}
		d.run(ctx, "control plane", plane.Run)
		for _, name := range []string{controlplane.ComponentEtcd, controlplane.ComponentAPIServer} {
			if err := plane.WaitReady(stepCtx, name); err != nil {
				return componentError(name, err, d.cfg.Dir)
			}
		}
		return nil
	})
	return plane, client, err
}

func componentError(name string, err error, dir Dir) error {
	return diag.Wrap(diag.LabComponentFailed, err).WithFix("read its log: %s", dir.Log(name))
}

// clusterParts is what the steps after the Kubernetes API need.
type clusterParts struct {
	runtime *runtime.Runtime
	cloud   *cloud.Cloud
	plane   *controlplane.ControlPlane
	client  kubernetes.Interface
	charts  *controlplane.Istio
}

// startCluster fills the Kubernetes cluster: services, node, Istio, and Isthmus itself.
func (d *Daemon) startCluster(ctx, startCtx context.Context, c clusterParts) error {
	applier, err := controlplane.NewApplier(c.plane.RESTConfig(controlplane.Admin))
	if err != nil {
		return err
	}
	parallel, startCtx := errgroup.WithContext(startCtx)
	parallel.Go(func() error {
		return d.step(startCtx, "node", func(stepCtx context.Context) error {
			if err := d.startServices(ctx, stepCtx, c.client); err != nil {
				return err
			}
			return d.startNode(ctx, stepCtx, c)
		})
	})
	// istiod starts while its definitions are being created: it waits for each of them by itself.
	defined := make(chan struct{})
	parallel.Go(func() error {
		err := d.step(startCtx, "Istio definitions", func(stepCtx context.Context) error {
			gateway, err := controlplane.GatewayAPI()
			if err != nil {
				return err
			}
			return applier.CreateCRDs(stepCtx, append(gateway, c.charts.CRDs...))
		})
		if err == nil {
			close(defined)
		}
		return err
	})
	parallel.Go(func() error {
		err := d.step(startCtx, "istiod", func(stepCtx context.Context) error {
			if err := applier.Apply(stepCtx, c.charts.Objects); err != nil {
				return err
			}
			return controlplane.WaitDeployment(stepCtx, c.client, controlplane.IstioNamespace, "istiod")
		})
		if err != nil {
			return err
		}
		select {
		case <-defined:
			return d.startMesh(startCtx, c, applier)
		case <-startCtx.Done():
			return startCtx.Err()
		}
	})
	return parallel.Wait()
}

// startMesh waits for the node proxies and the webhook, and installs isthmus-controller, at the same time.
func (d *Daemon) startMesh(startCtx context.Context, c clusterParts, applier *controlplane.Applier) error {
	parallel, startCtx := errgroup.WithContext(startCtx)
	parallel.Go(func() error {
		return d.step(startCtx, "validation", func(stepCtx context.Context) error {
			return controlplane.WaitValidation(stepCtx, c.client)
		})
	})
	parallel.Go(func() error {
		return d.step(startCtx, "ztunnel", func(stepCtx context.Context) error {
			return controlplane.WaitDaemonSet(stepCtx, c.client, controlplane.IstioNamespace, "ztunnel")
		})
	})
	parallel.Go(func() error {
		return d.step(startCtx, "isthmus-controller", func(stepCtx context.Context) error {
			return d.installController(stepCtx, c, applier)
		})
	})
	return parallel.Wait()
}

// startServices starts the service network and waits for the rules of the first Services.
func (d *Daemon) startServices(ctx, stepCtx context.Context, client kubernetes.Interface) error {
	network, err := svcnet.New(svcnet.Config{
		Client: client, Interface: netns.Bridge, NodeAddr: netns.Router,
		ServiceNetwork: netns.Services, LoadBalancers: netns.LoadBalancers,
		DNS: netip.AddrPortFrom(netns.Resolver, 53), Log: d.cfg.Log,
	})
	if err != nil {
		return err
	}
	d.run(ctx, "service network", network.Run)
	select {
	case <-network.Synced():
		return nil
	case <-stepCtx.Done():
		return fmt.Errorf("wait for the service network: %w", stepCtx.Err())
	}
}

package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/check"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/enrol"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// ecsGatherer reads services and tasks together with what the mesh says of them.
type ecsGatherer struct {
	admin *awsadmin.Client
	kube  *kube.Client // nil where there is none
	cfg   config.Config
	// config is the file that the command line was given, "" for the usual one.
	config string

	protocols map[string]string // address to protocol, as a node's ztunnel says; nil if it could not be read
	wanted    enrol.Options     // what add-service would tell a proxy now
	wantedErr error
}

// readMesh reads what all services are compared with.
func (g *ecsGatherer) readMesh(ctx context.Context) {
	if g.kube == nil {
		return
	}
	if d, err := podDump(ctx, g.kube, ""); err == nil {
		g.protocols = map[string]string{}
		for _, w := range d.Workloads {
			for _, ip := range w.WorkloadIPs {
				g.protocols[ip] = w.Protocol
			}
		}
	}
	if g.wanted.Gateway, g.wantedErr = gatewayAddress(ctx, g.kube, g.cfg.Gateway); g.wantedErr != nil {
		return
	}
	root, err := g.kube.RootCertificates(ctx, systemNamespace)
	g.wanted.RootPEM, g.wantedErr = string(root), err
}

func (g *ecsGatherer) services(ctx context.Context, clusterName string) ([]check.Service, error) {
	arns, err := g.admin.ListServices(ctx, clusterName)
	if err != nil {
		return nil, err
	}
	out := []check.Service{}
	if len(arns) == 0 {
		return out, nil
	}
	found, _, err := g.admin.DescribeServices(ctx, clusterName, arns)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b *inventory.Service) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range found {
		if s.Status != inventory.StatusActive {
			continue
		}
		one, err := g.service(ctx, clusterName, s)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func (g *ecsGatherer) service(ctx context.Context, clusterName string, s *inventory.Service) (check.Service, error) {
	out := check.Service{Cluster: clusterName, Name: s.Name, Desired: s.DesiredCount, Running: s.RunningCount, Pending: s.PendingCount,
		Definition: shortID(s.TaskDefinition), Tasks: []check.Task{}}
	if len(s.Deployments) > 1 {
		out.Rollout = "a roll-over is under way"
		for _, d := range s.Deployments {
			if d.Status == "PRIMARY" && d.RolloutReason != "" {
				out.Rollout = strings.TrimSuffix(d.RolloutReason, ".")
			}
		}
	}
	def, err := definition(ctx, g.admin, s.TaskDefinition)
	if err != nil {
		return out, err
	}
	out.Role, _ = def.Task["taskRoleArn"].(string)
	if opt, ok := enrol.Read(def); ok {
		out.Enrolled, out.Namespace, out.Account = true, opt.Namespace, opt.ServiceAccount
		if g.kube != nil {
			out.AccountErr = identityReady(ctx, g.kube, opt.Namespace, opt.ServiceAccount, out.Role)
			out.Add = g.addCommand(def, opt, clusterName, s.Name)
			out.Drift, out.DriftErr = g.drift(def, opt, clusterName)
		}
	}
	tasks, err := tasksOf(ctx, g.admin, clusterName, s.Name)
	if err != nil {
		return out, err
	}
	for _, t := range tasks {
		task := check.Task{ID: shortID(t.ARN), Status: t.LastStatus}
		if addrs := t.Addresses(); len(addrs) > 0 {
			task.Address = addrs[0].String()
			task.Protocol = g.protocols[task.Address]
		}
		if c := t.ContainerNamed(enrol.ContainerName); c != nil {
			task.Proxy = cmp.Or(c.HealthStatus, inventory.Unknown)
		}
		out.Tasks = append(out.Tasks, task)
	}
	slices.SortFunc(out.Tasks, func(a, b check.Task) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// drift says what add-service would change of a definition that was enrolled with opt: everything that is not a person's
// choice for this service. The namespace of another ECS cluster is no choice: the definition was enrolled for that one.
func (g *ecsGatherer) drift(def enrol.Definition, opt enrol.Options, clusterName string) ([]string, error) {
	if g.wantedErr != nil {
		return nil, g.wantedErr
	}
	opt.Image, opt.Gateway, opt.RootPEM, opt.Network = g.cfg.ProxyImage, g.wanted.Gateway, g.wanted.RootPEM, g.cfg.Network
	opt.Namespace = g.namespace(opt, clusterName)
	want, err := enrol.Enrol(def, opt)
	if err != nil || enrol.Equal(def, want) {
		return nil, err
	}
	return enrol.Diff(def, want), nil
}

func (g *ecsGatherer) namespace(opt enrol.Options, clusterName string) string {
	if opt.Namespace == "" || slices.Contains(g.cfg.ECSClusters(), opt.Namespace) {
		return clusterName
	}
	return opt.Namespace
}

// addCommand is the command line that enrols a service as it is enrolled, with what is drift brought to the present.
func (g *ecsGatherer) addCommand(def enrol.Definition, opt enrol.Options, clusterName, name string) string {
	args := []string{"isthmus"}
	if g.config != "" {
		args = append(args, "--config", g.config)
	}
	args = append(args, "ecs", "add-service", name, "--cluster", clusterName)
	flag := func(name, value, otherwise string) {
		if value != "" && value != otherwise {
			args = append(args, "--"+name, value)
		}
	}
	flag("namespace", g.namespace(opt, clusterName), clusterName)
	flag("service-account", opt.ServiceAccount, g.cfg.ServiceAccount)
	flag("capture", string(opt.Capture), string(enrol.CaptureSOCKS))
	flag("proxy-env", string(opt.ProxyEnv), string(enrol.ProxyEnvNone))
	flag("proof", string(opt.Proof), string(enrol.ProofSignature))
	flag("cpu", strconv.Itoa(opt.CPU), "0")
	flag("memory-reservation", strconv.Itoa(opt.MemoryMiB), "64")
	flag("stop-timeout", strconv.Itoa(opt.StopTimeout)+"s", "60s")
	opt.ClientOnly = false
	if _, err := enrol.Enrol(def, opt); diag.CodeOf(err) == diag.NoPortMappings {
		args = append(args, "--client-only")
	}
	return strings.Join(append(args, "--wait"), " ")
}

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/enrol"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// enrolFlags are the flags that add-service and render share.
type enrolFlags struct {
	namespace, serviceAccount string
	image, gateway            string
	capture, proxyEnv, proof  output.Choice
	clientOnly                bool
	cpu, memoryMiB            int
	stopTimeout               time.Duration
}

func (f *enrolFlags) register(c *cobra.Command) {
	c.Flags().StringVarP(&f.namespace, "namespace", "n", "", "Kubernetes namespace of the tasks' identity (default the cluster's name)")
	c.Flags().StringVar(&f.serviceAccount, "service-account", "", "Kubernetes service account of the tasks' identity (default from the configuration)")
	c.Flags().StringVar(&f.image, "image", "", "image of ztunnel (default from the configuration)")
	c.Flags().StringVar(&f.gateway, "gateway-address", "", "address of the east-west gateway (default from the Gateway's status)")
	f.capture, f.proxyEnv = output.NewChoice(string(enrol.CaptureSOCKS), words(enrol.Captures())...), output.NewChoice(string(enrol.ProxyEnvNone), words(enrol.ProxyEnvs())...)
	c.Flags().Var(&f.capture, "capture", "how the application's connections reach the proxy: socks, redirect (EC2 and Managed Instances), platform (ECS redirects) or none")
	c.Flags().Var(&f.proxyEnv, "proxy-env", "proxy variables to give the application: all (ALL_PROXY, SOCKS5), http (HTTP_PROXY and HTTPS_PROXY) or none; NO_PROXY goes with them")
	f.proof = output.NewChoice(string(enrol.ProofSignature), words(enrol.Proofs())...)
	c.Flags().Var(&f.proof, "proof", "how the proxy proves the task's role: signature, or web-identity where the account accepts that and the role is one service account")
	c.Flags().IntVar(&f.cpu, "cpu", 0, "CPU units that the proxy reserves of the task's; it may use more where they are idle")
	c.Flags().IntVar(&f.memoryMiB, "memory-reservation", 64, "MiB that the proxy reserves of the task's memory; it may use more")
	c.Flags().DurationVar(&f.stopTimeout, "stop-timeout", time.Minute, "how long the proxy may drain its connections; Fargate allows 2m at most")
	c.Flags().BoolVar(&f.clientOnly, "client-only", false, "allow a service without ports")
}

func words[T ~string](values []T) []string {
	out := make([]string, 0, len(values))
	for _, v := range values {
		out = append(out, string(v))
	}
	return out
}

// options are what flags and configuration say of the proxy.
func (f *enrolFlags) options(cfg config.Config, clusterName string) enrol.Options {
	return enrol.Options{
		Image: cmp.Or(f.image, cfg.ProxyImage), Gateway: f.gateway, Network: cfg.Network,
		Namespace: cmp.Or(f.namespace, clusterName), ServiceAccount: cmp.Or(f.serviceAccount, cfg.ServiceAccount),
		Capture: enrol.Capture(f.capture.String()), ProxyEnv: enrol.ProxyEnv(f.proxyEnv.String()), Proof: enrol.Proof(f.proof.String()), ClientOnly: f.clientOnly, CPU: f.cpu, MemoryMiB: f.memoryMiB, StopTimeout: int(f.stopTimeout / time.Second),
	}
}

// serviceFlags say which services a command works on and how.
type serviceFlags struct {
	cluster string
	all     bool
	dryRun  bool
	wait    bool
	timeout time.Duration
}

func (f *serviceFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.cluster, "cluster", "", "ECS cluster")
	c.Flags().BoolVar(&f.all, "all", false, "every service of the cluster, or of all configured clusters")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "show the difference and change nothing")
	c.Flags().BoolVar(&f.wait, "wait", false, "wait until the new tasks run")
	c.Flags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait")
}

// arguments accepts the name of one service, or none with --all.
func (f *serviceFlags) arguments(_ *cobra.Command, args []string) error {
	if len(args) > 1 || len(args) == 1 == f.all {
		return usageError{errors.New("name one service, or use --all")}
	}
	if !f.all && f.cluster == "" {
		return usageError{errors.New("--cluster is required with a service name")}
	}
	return nil
}

func (a *app) ecsAddService() *cobra.Command {
	var e enrolFlags
	var f serviceFlags
	var external bool
	c := &cobra.Command{
		Use: "add-service [SERVICE]", Short: "Join ECS services to the mesh (guide 3.3)", Args: f.arguments,
		Long: `Give a service's tasks a ztunnel: take the service's own task definition, add the proxy, register the result as the
next revision of the same family and roll the service over to it. A service that is as wanted already is left alone.

How the application's connections get into the mesh is chosen by --capture:

  socks      by proxy variables, such as ALL_PROXY=socks5h://127.0.0.1:15080; no privilege, everywhere (default)
  redirect   ztunnel redirects them by itself, names included; EC2 and Managed Instances, since it needs NET_ADMIN
  platform   ECS redirects them (proxyConfiguration); Fargate and EC2; names must resolve by other means
  none       not at all: the service is only called`,
		Example: `  isthmus ecs add-service echo-service --cluster ecs-demo-1 --namespace ecs-demo-1 --service-account ecs-demo-sa-local
  isthmus ecs add-service --all --wait
  isthmus ecs add-service web --cluster ecs-prod-1 --capture redirect --wait
  isthmus ecs add-service echo-service --cluster ecs-demo-1 --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			return a.overServices(cmd.Context(), cfg, f, args, func(ctx context.Context, admin *awsadmin.Client, clusterName, name string) (string, error) {
				return a.addService(ctx, admin, k, cfg, e, clusterName, name, f.dryRun)
			})
		},
	}
	e.register(c)
	f.register(c)
	c.Flags().BoolVar(&external, "external", false, "accepted for the guide's sake: the tasks always reach the mesh through the east-west gateway")
	return c
}

func (a *app) ecsRemoveService() *cobra.Command {
	var f serviceFlags
	c := &cobra.Command{
		Use: "remove-service [SERVICE]", Short: "Take ECS services out of the mesh", Args: f.arguments,
		Long: `Take out of a service's task definition what add-service put into it, tags and variables included, register the result
as the next revision and roll the service over to it. A service that is not in the mesh is left alone.`,
		Example: "  isthmus ecs remove-service echo-service --cluster ecs-demo-1 --wait\n  isthmus ecs remove-service --all --cluster ecs-demo-1 --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			return a.overServices(cmd.Context(), cfg, f, args, func(ctx context.Context, admin *awsadmin.Client, clusterName, name string) (string, error) {
				s, _, have, err := current(ctx, admin, clusterName, name)
				if err != nil {
					return "", err
				}
				want, err := enrol.Remove(have)
				if err != nil {
					return "", err
				}
				return a.rollOver(ctx, admin, s, clusterName, have, want, f.dryRun)
			})
		},
	}
	f.register(c)
	return c
}

// overServices applies do to the services that the flags and arguments name, then waits for them. An error of one does
// not stop the others.
func (a *app) overServices(ctx context.Context, cfg config.Config, f serviceFlags, args []string,
	do func(context.Context, *awsadmin.Client, string, string) (definition string, err error)) error {
	admin, err := a.aws(ctx, cfg)
	if err != nil {
		return err
	}
	clusters := cfg.ECSClusters()
	if f.cluster != "" {
		clusters = []string{f.cluster}
	}
	var done []*rollout
	var errs []error
	for _, c := range clusters {
		names := args
		if f.all {
			if names, err = serviceNames(ctx, admin, c); err != nil {
				return err
			}
		}
		if f.all && len(names) == 0 {
			a.Notef("cluster %s has no services", c)
		}
		for _, n := range names {
			want, err := do(ctx, admin, c, n)
			if err != nil {
				// One service that cannot be changed is no reason to leave the others as they are.
				errs = append(errs, fmt.Errorf("%s/%s: %w", c, n, err))
				continue
			}
			done = append(done, &rollout{admin: admin, cluster: c, service: n, want: want})
		}
	}
	if f.wait && !f.dryRun {
		// Also those that did not change now: an earlier roll-over may still be under way.
		for _, r := range done {
			err := a.Follow(fmt.Sprintf("service %s/%s is rolled over", r.cluster, r.service), func(say func(string)) error { return r.await(ctx, f.timeout, say) })
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func serviceNames(ctx context.Context, admin *awsadmin.Client, clusterName string) ([]string, error) {
	if _, err := cluster(ctx, admin, clusterName); err != nil {
		return nil, err
	}
	arns, err := admin.ListServices(ctx, clusterName)
	if err != nil {
		return nil, awsError(err)
	}
	names := make([]string, 0, len(arns))
	for _, arn := range arns {
		names = append(names, shortID(arn))
	}
	return names, nil
}

// addService returns the ARN of the task definition that the service has, or gets.
func (a *app) addService(ctx context.Context, admin *awsadmin.Client, k *kube.Client, cfg config.Config, e enrolFlags, clusterName, name string, dryRun bool) (string, error) {
	c, err := cluster(ctx, admin, clusterName)
	if err != nil {
		return "", err
	}
	if c.Tags[discoveryTag] != "true" {
		return "", diag.Newf(diag.ClusterNotTagged, "cluster %s has no tag %s=true", clusterName, discoveryTag).
			WithFix("aws ecs tag-resource --resource-arn %s --tags key=%s,value=true", c.ARN, discoveryTag)
	}
	s, detail, have, err := current(ctx, admin, clusterName, name)
	if err != nil {
		return "", err
	}
	opt, err := a.enrolOptions(ctx, k, cfg, e, clusterName)
	if err != nil {
		return "", err
	}
	opt.LaunchType, opt.PlatformVersion = detail.LaunchType, detail.PlatformVersion
	role, _ := have.Task["taskRoleArn"].(string)
	if err := identityReady(ctx, k, opt.Namespace, opt.ServiceAccount, role); err != nil {
		return "", err
	}
	want, err := enrol.Enrol(have, opt)
	if err != nil {
		return "", err
	}
	return a.rollOver(ctx, admin, s, clusterName, have, want, dryRun)
}

// current reads a service that may be changed, with its own task definition. That the latest of the family may be another
// cluster's, enrolled for another namespace, is why the family is never asked.
func current(ctx context.Context, admin *awsadmin.Client, clusterName, name string) (*inventory.Service, awsadmin.ServiceDetail, enrol.Definition, error) {
	s, err := service(ctx, admin, clusterName, name)
	if err != nil {
		return nil, awsadmin.ServiceDetail{}, enrol.Definition{}, err
	}
	detail, err := admin.ServiceDetail(ctx, clusterName, name)
	if err != nil {
		return nil, detail, enrol.Definition{}, awsError(err)
	}
	if detail.Controller != "" && detail.Controller != "ECS" {
		return nil, detail, enrol.Definition{}, diag.Newf(diag.RolloutUnmanaged, "service %s of cluster %s has the deployment controller %s", name, clusterName, detail.Controller)
	}
	have, err := definition(ctx, admin, s.TaskDefinition)
	return s, detail, have, err
}

// enrolOptions gathers what the proxy is told, from flags, configuration and the cluster.
func (a *app) enrolOptions(ctx context.Context, k *kube.Client, cfg config.Config, e enrolFlags, clusterName string) (enrol.Options, error) {
	opt := e.options(cfg, clusterName)
	var err error
	if opt.Gateway == "" {
		if opt.Gateway, err = gatewayAddress(ctx, k, cfg.Gateway); err != nil {
			return enrol.Options{}, err
		}
	}
	root, err := k.RootCertificates(ctx, systemNamespace)
	if err != nil {
		return enrol.Options{}, err
	}
	opt.RootPEM = string(root)
	return opt, nil
}

// identityReady checks that a task of a role may become a service account, before a task that may not is started.
func identityReady(ctx context.Context, k *kube.Client, namespace, serviceAccount, role string) error {
	if o, err := k.Get(ctx, kube.Namespaces, "", namespace); kube.IsNotFound(err) || err == nil && o == nil {
		return diag.Newf(diag.NamespaceMissing, "there is no namespace %q", namespace).WithFix("isthmus ecs namespaces")
	} else if err != nil {
		return err
	}
	sa, err := k.ServiceAccount(ctx, namespace, serviceAccount)
	if kube.IsNotFound(err) {
		return diag.Newf(diag.ServiceAccountMissing, "there is no service account %s/%s", namespace, serviceAccount).WithFix("isthmus ecs namespaces")
	}
	if err != nil {
		return err
	}
	fix := fmt.Sprintf("kubectl annotate serviceaccount -n %s %s %s=%s --overwrite", namespace, serviceAccount, kube.RoleAnnotation, role)
	if sa.RoleARN == "" {
		return diag.Newf(diag.RoleNotAnnotated, "service account %s/%s has no annotation %s", namespace, serviceAccount, kube.RoleAnnotation).WithFix("%s", fix)
	}
	if role != "" && !inventory.SameRole(sa.RoleARN, role) {
		return diag.Newf(diag.RoleAnnotationForeign, "service account %s/%s is for role %s, the task definition has %s", namespace, serviceAccount, sa.RoleARN, role).WithFix("%s", fix)
	}
	return nil
}

func definition(ctx context.Context, admin *awsadmin.Client, arn string) (enrol.Definition, error) {
	task, tags, err := admin.TaskDefinition(ctx, arn)
	if err != nil {
		return enrol.Definition{}, awsError(err)
	}
	return enrol.Definition{Task: task, Tags: tags}, nil
}

// rollOver registers want and moves the service to it, unless it is what the service has. It returns the ARN of the task
// definition that the service has then.
func (a *app) rollOver(ctx context.Context, admin *awsadmin.Client, s *inventory.Service, clusterName string, have, want enrol.Definition, dryRun bool) (string, error) {
	if enrol.Equal(have, want) {
		a.Notef("service %s/%s unchanged (%s)", clusterName, s.Name, shortID(s.TaskDefinition))
		return s.TaskDefinition, nil
	}
	if dryRun {
		a.Printf("service %s/%s would change from %s:\n  %s\n", clusterName, s.Name, shortID(s.TaskDefinition), strings.Join(enrol.Diff(have, want), "\n  "))
		return s.TaskDefinition, nil
	}
	arn, err := admin.RegisterTaskDefinition(ctx, want.Task, want.Tags)
	if err != nil {
		return "", awsError(err)
	}
	if err := admin.SetTaskDefinition(ctx, clusterName, s.Name, arn); err != nil {
		return "", awsError(err)
	}
	a.Notef("service %s/%s: %s -> %s", clusterName, s.Name, shortID(s.TaskDefinition), shortID(arn))
	return arn, nil
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
)

func (a *app) ecsInfra() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use: "infra", Short: "Create IAM roles, security group and log group (guide 1.3)",
		Long: `Bring the account to what the mesh needs, each with the least rights that do:

  the discovery role (istiod-local)    read ECS clusters, services and tasks; assumed by the controller's role
  the controller's role                may assume the discovery role; made by eksctl, or here if it is missing
  the task role                        who the ECS tasks are; only ECS may assume it, only for this account
  the security group                   port 15008 from the VPC
  the log group                        ` + workshop.LogGroup + `
  with --events                        a rule and a queue by which ECS tells the controller of changes at once
  with --web-identity                  the task role may have web identity tokens, for this mesh and one minute only

What is as it should be is left alone, so that the command can be repeated; what has changed since is corrected: trust and
inline policies, further policies of roles that isthmus made, rules of the security group beside the mesh's port, and the
role of the controller's pod identity. What is listed under keep in isthmus.yaml stays. Of roles that others made, further
policies are told and left. Without a subcommand it applies.`,
		Example: "  isthmus ecs infra plan\n  isthmus ecs infra apply\n  isthmus ecs infra apply --events\n  isthmus ecs infra destroy --yes",
	}
	c.AddCommand(a.infraPlan(), a.infraApply(), a.infraDestroy())
	c.Args = subcommandArgs
	c.RunE = a.runInfra(func() bool { return dryRun })
	c.Flags().BoolVar(&dryRun, "dry-run", false, "the same as plan")
	a.eventsFlag(c.PersistentFlags())
	c.PersistentFlags().StringVar(&a.webMesh, "web-identity", "", "let the task role prove itself by web identity tokens to the mesh of this trust domain (default webIdentity of the configuration)")
	c.PersistentFlags().Lookup("web-identity").NoOptDefVal = mesh.DefaultTrustDomain
	return c
}

// eventsFlag adds --events, for commands to which events matter.
func (a *app) eventsFlag(flags *pflag.FlagSet) {
	flags.BoolVar(&a.events, "events", false, "with EventBridge events of ECS, which tell the controller of changes at once (default events of the configuration)")
}

func (a *app) infraApply() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use: "apply", Short: "Make what is missing and correct what differs", Args: noArgs,
		Example: "  isthmus ecs infra apply\n  isthmus ecs infra apply --dry-run", RunE: a.runInfra(func() bool { return dryRun }),
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "the same as plan")
	return c
}

func (a *app) runInfra(dryRun func() bool) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.load()
		if err != nil {
			return err
		}
		admin, err := a.aws(cmd.Context(), cfg)
		if err != nil {
			return err
		}
		var changes []string
		err = a.Patiently("compare the account with what it should be", func() (err error) {
			changes, err = a.infra(cmd.Context(), admin, cfg, dryRun())
			return err
		})
		for _, change := range changes {
			a.Printf("%s%s\n", change, dryRunMark(dryRun()))
		}
		if slices.ContainsFunc(changes, func(c string) bool { return strings.HasPrefix(c, "associate ") }) {
			a.Notef("restart a controller that runs already: kubectl rollout restart -n %s deployment/%s", systemNamespace, controllerName)
		}
		if err == nil {
			err = a.tellForeignRights(cmd.Context(), admin, cfg)
		}
		if err == nil && len(changes) == 0 {
			a.Notef("everything is in place")
		}
		return err
	}
}

// tellForeignRights notes what roles of others have too much.
func (a *app) tellForeignRights(ctx context.Context, admin *awsadmin.Client, cfg config.Config) error {
	account, _, err := admin.Account(ctx)
	if err != nil {
		return awsError(err)
	}
	roles, _ := infraRoles(cfg, account)
	if cfg.Home != nil {
		roles, _ = externalRoles(cfg, account, "")
	}
	notes, err := foreignRights(ctx, admin, roles)
	for _, n := range notes {
		a.Notef("%s, more than the mesh needs; it stays", n)
	}
	return err
}

// infraPlanFile is what `infra plan -o json` prints.
type infraPlanFile struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Account    string            `json:"account"`
	Region     string            `json:"region"`
	Changes    []string          `json:"changes"`
	Rights     []string          `json:"rights,omitempty"` // of roles of others, more than needed
	Roles      []infraRole       `json:"roles"`
	OpenPort   int               `json:"openPort"`
	Names      map[string]string `json:"names"`
}

type infraRole struct {
	Name     string                    `json:"name"`
	Path     string                    `json:"path"`
	Trust    map[string]any            `json:"trust"`
	Policies map[string]map[string]any `json:"policies"`
}

func (a *app) infraPlan() *cobra.Command {
	format := output.NewChoice("", "json", "yaml")
	c := &cobra.Command{
		Use: "plan", Short: "Say what apply would change; -o json adds every role and policy in full", Args: noArgs,
		Example: "  isthmus ecs infra plan\n  isthmus ecs infra plan -o json | jq '.roles[] | {name, policies}'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if format.String() == "" {
				return a.runInfra(func() bool { return true })(cmd, args)
			}
			cfg, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			account, _, err := admin.Account(cmd.Context())
			if err != nil {
				return awsError(err)
			}
			changes, err := a.infra(cmd.Context(), admin, cfg, true)
			if err != nil {
				return err
			}
			out := infraPlanFile{APIVersion: config.APIVersion, Kind: "InfraPlan", Account: account, Region: cfg.Region, Changes: append([]string{}, changes...),
				OpenPort: mesh.HBONEPort, Names: map[string]string{"securityGroup": securityGroup(cfg), "logGroup": workshop.LogGroup}}
			roles, _ := infraRoles(cfg, account)
			if out.Rights, err = foreignRights(cmd.Context(), admin, roles); err != nil {
				return err
			}
			for _, r := range roles {
				out.Roles = append(out.Roles, infraRole{Name: r.Name, Path: r.Path, Trust: r.Trust, Policies: r.Inline})
			}
			return output.Encode(a.Out, format.String(), out)
		},
	}
	c.Flags().VarP(&format, "output", "o", "json or yaml")
	return c
}

// infra makes the infrastructure as it should be, or with dryRun only tells what it would do, in the order in which it
// does it. After an error it returns what was done before.
func (a *app) infra(ctx context.Context, admin *awsadmin.Client, cfg config.Config, dryRun bool) (changes []string, err error) {
	account, _, err := admin.Account(ctx)
	if err != nil {
		return nil, awsError(err)
	}
	if cfg.Home != nil {
		return a.externalInfra(ctx, admin, cfg, account, dryRun)
	}
	eks, err := eksCluster(ctx, admin, cfg)
	if err != nil {
		return nil, err
	}
	if eks.Status != "ACTIVE" {
		return nil, fmt.Errorf("eks cluster %s is %s, want ACTIVE", eks.Name, eks.Status)
	}
	roles, controllerARN := infraRoles(cfg, account)
	for _, r := range roles {
		_, did, err := admin.EnsureRole(ctx, r, dryRun)
		changes = append(changes, did...)
		if err != nil {
			return changes, awsError(err)
		}
	}
	associated, err := admin.EnsurePodIdentity(ctx, cfg.ClusterName, systemNamespace, controllerName, controllerARN, dryRun)
	if err != nil {
		return changes, awsError(err)
	}
	if associated != "" {
		changes = append(changes, associated)
	}
	vpcRange, err := admin.VPCRange(ctx, eks.VPC)
	if err != nil {
		return changes, awsError(err)
	}
	_, created, err := admin.EnsureSecurityGroup(ctx, eks.VPC, securityGroup(cfg), "ECS tasks of the mesh", mesh.HBONEPort, vpcRange, dryRun)
	if err != nil {
		return changes, awsError(err)
	}
	if created {
		changes = append(changes, fmt.Sprintf("create security group %s with port %d open to %s", securityGroup(cfg), mesh.HBONEPort, vpcRange))
	} else {
		opened, err := admin.OpenPorts(ctx, eks.VPC, securityGroup(cfg), vpcRange, gatewayPorts[:1], dryRun)
		changes = append(changes, opened...)
		if err != nil {
			return changes, awsError(err)
		}
		closed, err := closeGroup(ctx, admin, cfg, eks.VPC, dryRun)
		changes = append(changes, closed...)
		if err != nil {
			return changes, err
		}
	}
	found, err := admin.FindLogGroup(ctx, workshop.LogGroup)
	if err == nil && !found && !dryRun {
		_, err = admin.EnsureLogGroup(ctx, workshop.LogGroup)
	}
	if err != nil {
		return changes, awsError(err)
	}
	if !found {
		changes = append(changes, "create log group "+workshop.LogGroup)
	}
	return a.eventInfra(ctx, admin, cfg, account, changes, dryRun)
}

// eventInfra adds the way of the account's events, if they are wanted, to the changes made before.
func (a *app) eventInfra(ctx context.Context, admin *awsadmin.Client, cfg config.Config, account string, changes []string, dryRun bool) ([]string, error) {
	if !cfg.Events {
		return changes, nil
	}
	did, err := admin.EnsureEvents(ctx, eventsOf(cfg, account), dryRun)
	return append(changes, did...), awsError(err)
}

func (a *app) infraDestroy() *cobra.Command {
	var yes, dryRun bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "destroy", Short: "Remove what apply made", Args: noArgs,
		Long: `Remove the log group, the roles and the security group that apply made; a role that was there before stays, without
the policy that it was given. While an ECS cluster still has services the command refuses: they need all of it.`,
		Example: "  isthmus ecs infra destroy --dry-run\n  isthmus ecs infra destroy --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes && !dryRun {
				return usageError{errors.New("this deletes roles: confirm with --yes, or look with --dry-run")}
			}
			cfg, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			d := &destroyer{admin: admin, cfg: cfg, dryRun: dryRun, timeout: timeout, removed: a.removed(dryRun)}
			if err := d.refuseInUse(cmd.Context()); err != nil {
				return err
			}
			return awsError(d.run(cmd.Context()))
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "confirm")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed and remove nothing")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for one thing to go")
	return c
}

// removed returns a function that tells what went, or would go.
func (a *app) removed(dryRun bool) func(format string, args ...any) {
	return func(format string, args ...any) {
		a.Printf("%s removed%s\n", fmt.Sprintf(format, args...), dryRunMark(dryRun))
	}
}

// destroyer removes the infrastructure, last made first where the order matters.
type destroyer struct {
	admin   *awsadmin.Client
	cfg     config.Config
	dryRun  bool
	timeout time.Duration
	removed func(format string, args ...any)
}

func (d *destroyer) refuseInUse(ctx context.Context) error {
	found, _, err := d.admin.DescribeClusters(ctx, d.cfg.ECSClusters())
	if err != nil {
		return awsError(err)
	}
	for _, c := range found {
		if c.Status != inventory.StatusActive {
			continue
		}
		services, err := d.admin.ListServices(ctx, c.Name)
		if err != nil && !awsapi.IsNotFound(err) {
			return awsError(err)
		}
		if len(services) > 0 {
			return fmt.Errorf("cluster %s still has %d services that need these roles: run isthmus ecs cleanup, which removes both", c.Name, len(services))
		}
	}
	return nil
}

func (d *destroyer) run(ctx context.Context) error {
	if err := d.events(ctx); err != nil {
		return err
	}
	found, err := d.admin.FindLogGroup(ctx, workshop.LogGroup)
	if err == nil && found && !d.dryRun {
		_, err = d.admin.DeleteLogGroup(ctx, workshop.LogGroup)
	}
	if err != nil {
		return err
	}
	if found {
		d.removed("log group %s", workshop.LogGroup)
	}
	if err := d.roles(ctx); err != nil {
		return err
	}
	return d.securityGroup(ctx)
}

// events removes rule and queues, also of a configuration that wants them no more. There, an account that answers no
// questions about them has none.
func (d *destroyer) events(ctx context.Context) error {
	gone, err := d.admin.DeleteEvents(ctx, eventsName(d.cfg), d.dryRun)
	for _, what := range gone {
		d.removed("%s", what)
	}
	if err != nil && !d.cfg.Events && len(gone) == 0 {
		return nil
	}
	return err
}

func (d *destroyer) roles(ctx context.Context) error {
	controller := d.cfg.ControllerRoleName()
	for _, name := range []string{d.cfg.TaskRoleName(), d.cfg.DiscoveryRole, controller} {
		found, ours, err := d.admin.FindRole(ctx, name, managedTag)
		if err != nil {
			return err
		}
		if found && ours {
			if name == controller {
				// An association with a role that is gone would be taken for a good one by the next apply.
				had, err := d.admin.RemovePodIdentity(ctx, d.cfg.ClusterName, systemNamespace, controllerName, d.dryRun)
				if err != nil {
					return err
				}
				if had {
					d.removed("pod identity association of %s/%s", systemNamespace, controllerName)
				}
			}
			if !d.dryRun {
				if _, err := d.admin.DeleteRole(ctx, name, managedTag); err != nil {
					return err
				}
			}
			d.removed("role %s", name)
			continue
		}
		if !found || name != controller {
			continue
		}
		// A controller's role that eksctl made stays, without the policy that we gave it.
		has, err := d.admin.FindRolePolicy(ctx, name, assumePolicy)
		if err == nil && has && !d.dryRun {
			err = d.admin.DeleteRolePolicy(ctx, name, assumePolicy)
		}
		if err != nil {
			return err
		}
		if has {
			d.removed("policy %s of role %s", assumePolicy, name)
		}
	}
	return nil
}

func (d *destroyer) securityGroup(ctx context.Context) error {
	if d.cfg.Home != nil {
		return d.externalNetwork(ctx)
	}
	eks, err := d.admin.EKSCluster(ctx, d.cfg.ClusterName)
	if awsapi.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.deleteGroup(ctx, eks.VPC)
}

// deleteGroup removes the tasks' security group of a VPC, if there is one.
func (d *destroyer) deleteGroup(ctx context.Context, vpc string) error {
	name := securityGroup(d.cfg)
	id, err := d.admin.SecurityGroup(ctx, vpc, name)
	if err != nil || id == "" {
		return err
	}
	if !d.dryRun {
		// The network interfaces of tasks that ended hold on to the group for some minutes.
		err := await(ctx, d.timeout, "security group "+name+" cannot be deleted", func(ctx context.Context) (bool, string, error) {
			err := d.admin.DeleteSecurityGroup(ctx, id)
			if slices.Contains([]string{"DependencyViolation", "InvalidGroup.InUse"}, awsapi.Code(err)) {
				return false, err.Error(), nil
			}
			return err == nil, "", err
		})
		if err != nil {
			return err
		}
	}
	d.removed("security group %s", name)
	return nil
}

package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/enrol"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
)

func (a *app) ecsDeploy() *cobra.Command {
	var wait, dryRun bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "deploy", Short: "Create the ECS clusters with shell-task and echo-service (guide 3.1)", Args: noArgs,
		Long: `Create the guide's ECS clusters, tagged ` + discoveryTag + `=true, and in each the services shell-task and
echo-service. What exists is left as it is.`,
		Example: "  isthmus ecs deploy --dry-run\n  isthmus ecs deploy\n  isthmus ecs deploy --wait=false",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			return (&deployer{app: a, admin: admin, cfg: cfg, dryRun: dryRun}).run(cmd.Context(), wait && !dryRun, timeout)
		},
	}
	c.Flags().BoolVar(&wait, "wait", true, "wait until the services run")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be made and make nothing")
	return c
}

// deployer makes the guide's clusters and services, or with dryRun says what it would make.
type deployer struct {
	*app
	admin  *awsadmin.Client
	cfg    config.Config
	dryRun bool
}

// did says what was done, or would be.
func (d *deployer) did(format string, args ...any) {
	d.Notef("%s%s", fmt.Sprintf(format, args...), dryRunMark(d.dryRun))
}

func (d *deployer) run(ctx context.Context, wait bool, timeout time.Duration) error {
	account, _, err := d.admin.Account(ctx)
	if err != nil {
		return awsError(err)
	}
	where, err := d.findPlace(ctx, d.admin, d.cfg)
	if err != nil {
		return err
	}
	definitions := map[string]string{}
	for _, s := range workshop.Services() {
		arn, err := d.ensureDefinition(ctx, s, account)
		if err != nil {
			return awsError(err)
		}
		definitions[s.Name] = arn
	}
	for _, name := range d.cfg.ECSClusters() {
		if err := d.ensureCluster(ctx, name); err != nil {
			return awsError(err)
		}
		for _, s := range workshop.Services() {
			if err := d.ensureService(ctx, name, s, definitions[s.Name], where); err != nil {
				return awsError(err)
			}
		}
	}
	if !wait {
		return nil
	}
	for _, name := range d.cfg.ECSClusters() {
		for _, s := range workshop.Services() {
			err := d.Follow("service "+name+"/"+s.Name+" runs", func(say func(string)) error {
				return (&rollout{admin: d.admin, cluster: name, service: s.Name}).await(ctx, timeout, say)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *deployer) ensureService(ctx context.Context, cluster string, s workshop.Service, definition string, where place) error {
	found, _, err := d.admin.DescribeServices(ctx, cluster, []string{s.Name})
	if err != nil && !(d.dryRun && awsapi.IsNotFound(err)) { // the cluster is not there yet
		return err
	}
	if len(found) > 0 && found[0].Status == inventory.StatusActive {
		d.Notef("service %s/%s unchanged", cluster, s.Name)
		return nil
	}
	if !d.dryRun {
		err := d.admin.CreateService(ctx, awsadmin.ServiceSpec{Cluster: cluster, Name: s.Name, TaskDefinition: definition, Desired: 1,
			Subnets: where.subnets, SecurityGroups: []string{where.group}, PublicIP: where.public, Tags: madeBy(d.cfg)})
		if err != nil {
			return err
		}
	}
	d.did("service %s/%s created", cluster, s.Name)
	return nil
}

// ensureDefinition registers a task definition unless the family's latest revision is the same without the proxy.
func (d *deployer) ensureDefinition(ctx context.Context, s workshop.Service, account string) (string, error) {
	want := enrol.Definition{Task: s.TaskDefinition(taskRoleARN(d.cfg, account), d.cfg.Region), Tags: madeBy(d.cfg)}
	want.Tags["environment"] = "ecs-demo"
	have, tags, err := d.admin.TaskDefinition(ctx, s.Family)
	if err != nil && !awsapi.IsNotFound(err) {
		return "", err
	}
	if err == nil {
		arn, _ := have["taskDefinitionArn"].(string)
		current := enrol.Definition{Task: have, Tags: tags}
		if !enrol.Enrolled(current) && len(enrol.Diff(want, current)) == 0 {
			d.Notef("task definition %s unchanged", shortID(arn))
			return arn, nil
		}
	}
	if d.dryRun {
		d.did("task definition %s registered", s.Family)
		return "", nil
	}
	arn, err := d.admin.RegisterTaskDefinition(ctx, want.Task, want.Tags)
	if err == nil {
		d.did("task definition %s registered", shortID(arn))
	}
	return arn, err
}

func (d *deployer) ensureCluster(ctx context.Context, name string) error {
	found, _, err := d.admin.DescribeClusters(ctx, []string{name})
	if err != nil {
		return err
	}
	tags := madeBy(d.cfg)
	tags[discoveryTag] = "true"
	switch {
	case len(found) == 0 || found[0].Status != inventory.StatusActive:
		if !d.dryRun {
			if err := d.admin.CreateCluster(ctx, name, tags); err != nil {
				return err
			}
		}
		d.did("cluster %s created", name)
	case found[0].Tags[discoveryTag] != "true":
		if !d.dryRun {
			if err := d.admin.TagResource(ctx, found[0].ARN, map[string]string{discoveryTag: "true"}); err != nil {
				return err
			}
		}
		d.did("cluster %s tagged %s=true", name, discoveryTag)
	default:
		d.Notef("cluster %s unchanged", name)
	}
	return nil
}

package cli

import (
	"context"
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
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "deploy", Short: "Create the ECS clusters with shell-task and echo-service (guide 3.1)", Args: noArgs,
		Long: `Create the guide's ECS clusters, tagged ` + discoveryTag + `=true, and in each the services shell-task and
echo-service. What exists is left as it is.`,
		Example: "  isthmus ecs deploy\n  isthmus ecs deploy --wait=false",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			return a.deploy(cmd.Context(), admin, cfg, wait, timeout)
		},
	}
	c.Flags().BoolVar(&wait, "wait", true, "wait until the services run")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait")
	return c
}

func (a *app) deploy(ctx context.Context, admin *awsadmin.Client, cfg config.Config, wait bool, timeout time.Duration) error {
	account, _, err := admin.Account(ctx)
	if err != nil {
		return awsError(err)
	}
	where, err := a.findPlace(ctx, admin, cfg)
	if err != nil {
		return err
	}
	definitions := map[string]string{}
	for _, s := range workshop.Services() {
		arn, err := a.ensureDefinition(ctx, admin, s, cfg, account)
		if err != nil {
			return awsError(err)
		}
		definitions[s.Name] = arn
	}
	for _, name := range cfg.ECSClusters() {
		if err := a.ensureCluster(ctx, admin, cfg, name); err != nil {
			return awsError(err)
		}
		for _, s := range workshop.Services() {
			found, _, err := admin.DescribeServices(ctx, name, []string{s.Name})
			if err != nil {
				return awsError(err)
			}
			if len(found) > 0 && found[0].Status == inventory.StatusActive {
				a.Notef("service %s/%s unchanged", name, s.Name)
				continue
			}
			err = admin.CreateService(ctx, awsadmin.ServiceSpec{Cluster: name, Name: s.Name, TaskDefinition: definitions[s.Name], Desired: 1,
				Subnets: where.subnets, SecurityGroups: []string{where.group}, PublicIP: where.public, Tags: madeBy(cfg)})
			if err != nil {
				return awsError(err)
			}
			a.Notef("service %s/%s created", name, s.Name)
		}
	}
	if !wait {
		return nil
	}
	for _, name := range cfg.ECSClusters() {
		for _, s := range workshop.Services() {
			err := a.Follow("service "+name+"/"+s.Name+" runs", func(say func(string)) error {
				return (&rollout{admin: admin, cluster: name, service: s.Name}).await(ctx, timeout, say)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// ensureDefinition registers a task definition unless the family's latest revision is the same without the proxy.
func (a *app) ensureDefinition(ctx context.Context, admin *awsadmin.Client, s workshop.Service, cfg config.Config, account string) (string, error) {
	want := enrol.Definition{Task: s.TaskDefinition(taskRoleARN(cfg, account), cfg.Region), Tags: madeBy(cfg)}
	want.Tags["environment"] = "ecs-demo"
	have, tags, err := admin.TaskDefinition(ctx, s.Family)
	if err != nil && !awsapi.IsNotFound(err) {
		return "", err
	}
	if err == nil {
		arn, _ := have["taskDefinitionArn"].(string)
		current := enrol.Definition{Task: have, Tags: tags}
		if !enrol.Enrolled(current) && len(enrol.Diff(want, current)) == 0 {
			a.Notef("task definition %s unchanged", shortID(arn))
			return arn, nil
		}
	}
	arn, err := admin.RegisterTaskDefinition(ctx, want.Task, want.Tags)
	if err == nil {
		a.Notef("task definition %s registered", shortID(arn))
	}
	return arn, err
}

func (a *app) ensureCluster(ctx context.Context, admin *awsadmin.Client, cfg config.Config, name string) error {
	found, _, err := admin.DescribeClusters(ctx, []string{name})
	if err != nil {
		return err
	}
	tags := madeBy(cfg)
	tags[discoveryTag] = "true"
	switch {
	case len(found) == 0 || found[0].Status != inventory.StatusActive:
		if err := admin.CreateCluster(ctx, name, tags); err != nil {
			return err
		}
		a.Notef("cluster %s created", name)
	case found[0].Tags[discoveryTag] != "true":
		if err := admin.TagResource(ctx, found[0].ARN, map[string]string{discoveryTag: "true"}); err != nil {
			return err
		}
		a.Notef("cluster %s tagged %s=true", name, discoveryTag)
	default:
		a.Notef("cluster %s unchanged", name)
	}
	return nil
}

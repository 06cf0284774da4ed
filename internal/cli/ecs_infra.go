package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
)

func (a *app) ecsInfra() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use: "infra", Short: "Create IAM roles, security group and log group (guide 1.3)", Args: noArgs,
		Long: `Bring the account to what the mesh needs, each with the least rights that do:

  the discovery role (istiod-local)    read ECS clusters, services and tasks; assumed by the controller's role
  the controller's role                may assume the discovery role; made by eksctl, or here if it is missing
  the task role                        who the ECS tasks are; only ECS may assume it, only for this account
  the security group                   port 15008 from the VPC
  the log group                        ` + workshop.LogGroup + `

What is as it should be is left alone, so that the command can be repeated.`,
		Example: "  isthmus ecs infra --dry-run\n  isthmus ecs infra",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			admin, err := a.aws(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			return a.infra(cmd.Context(), admin, cfg, dryRun)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change and change nothing")
	return c
}

func (a *app) infra(ctx context.Context, admin *awsapi.Admin, cfg config.Config, dryRun bool) error {
	account, _, err := admin.Account(ctx)
	if err != nil {
		return awsError(err)
	}
	eks, err := admin.EKSCluster(ctx, cfg.ClusterName)
	if err != nil {
		return awsError(err)
	}
	if eks.Status != "ACTIVE" {
		return fmt.Errorf("eks cluster %s is %s, want ACTIVE", eks.Name, eks.Status)
	}
	report := func(changes ...string) {
		for _, c := range changes {
			a.Printf("%s%s\n", c, dryRunMark(dryRun))
		}
	}
	roles, controllerARN := infraRoles(cfg, account)
	total := 0
	for _, r := range roles {
		_, changes, err := admin.EnsureRole(ctx, r, dryRun)
		if err != nil {
			return awsError(err)
		}
		report(changes...)
		total += len(changes)
	}
	associated, err := admin.EnsurePodIdentity(ctx, cfg.ClusterName, systemNamespace, "isthmus-controller", controllerARN, dryRun)
	if err != nil {
		return awsError(err)
	}
	if associated {
		report("associate role " + cfg.ControllerRoleName() + " with service account istio-system/isthmus-controller")
		a.Notef("restart a controller that runs already: kubectl rollout restart -n istio-system deployment/isthmus-controller")
		total++
	}
	vpcRange, err := admin.VPCRange(ctx, eks.VPC)
	if err != nil {
		return awsError(err)
	}
	_, created, err := admin.EnsureSecurityGroup(ctx, eks.VPC, securityGroup(cfg), "ECS tasks of the mesh", mesh.HBONEPort, vpcRange, dryRun)
	if err != nil {
		return awsError(err)
	}
	if created {
		report("create security group " + securityGroup(cfg) + " with port 15008 open to " + vpcRange)
		total++
	}
	if !dryRun {
		created, err := admin.EnsureLogGroup(ctx, workshop.LogGroup)
		if err != nil {
			return awsError(err)
		}
		if created {
			report("create log group " + workshop.LogGroup)
			total++
		}
	}
	if total == 0 {
		a.Notef("everything is in place")
	}
	return nil
}

func securityGroup(cfg config.Config) string { return "ecs-" + cfg.ClusterName + "-sg" }

// assumePolicy is the name of the controller role's policy that lets it assume the discovery role.
const assumePolicy = "AssumeIstiodLocal"

// infraRoles are the roles of an installation, in the order in which they are made.
func infraRoles(cfg config.Config, account string) (roles []awsapi.Role, controllerARN string) {
	controllerARN = roleARN(cfg, account, cfg.ControllerRoleName())
	discoveryARN := roleARN(cfg, account, cfg.DiscoveryRole)
	arn := func(service, rest string) string {
		return fmt.Sprintf("arn:%s:%s:%s:%s:%s", partition(cfg.Region), service, cfg.Region, account, rest)
	}
	prefix := "ecs-" + cfg.ClusterName + "-*"
	return []awsapi.Role{
		{
			Path: "/", Name: cfg.ControllerRoleName(), Description: "isthmus-controller in EKS", Tags: madeBy(cfg), KeepTrust: true,
			Trust: trust(map[string]any{"Service": "pods.eks.amazonaws.com"}, nil),
			Inline: map[string]map[string]any{assumePolicy: document(
				statement("Assume", []string{"sts:AssumeRole", "sts:TagSession"}, []string{discoveryARN}, nil))},
		},
		{
			Path: "/", Name: cfg.DiscoveryRole, Description: "discovery of ECS for the mesh", Tags: madeBy(cfg),
			Trust: trust(map[string]any{"AWS": controllerARN}, nil),
			Inline: map[string]map[string]any{"Discovery": document(
				statement("Enumerate", []string{"ecs:ListClusters", "ecs:DescribeTaskDefinition"}, []string{"*"}, nil),
				statement("Clusters", []string{"ecs:DescribeClusters"}, []string{arn("ecs", "cluster/"+prefix)}, nil),
				statement("ListInCluster", []string{"ecs:ListServices", "ecs:ListTasks"}, []string{"*"},
					map[string]any{"ArnLike": map[string]any{"ecs:cluster": arn("ecs", "cluster/"+prefix)}}),
				statement("DescribeInCluster", []string{"ecs:DescribeServices", "ecs:DescribeTasks"},
					[]string{arn("ecs", "service/"+prefix+"/*"), arn("ecs", "task/"+prefix+"/*")}, nil))},
		},
		{
			Path: cfg.TaskRolePath(), Name: cfg.TaskRoleName(), Description: "ECS tasks of the mesh", Tags: madeBy(cfg),
			Trust: trust(map[string]any{"Service": "ecs-tasks.amazonaws.com"}, map[string]any{
				"StringEquals": map[string]any{"aws:SourceAccount": account},
				"ArnLike":      map[string]any{"aws:SourceArn": arn("ecs", "*")}}),
			Inline: map[string]map[string]any{"Task": document(
				statement("Exec", []string{"ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"}, []string{"*"}, nil),
				statement("Logs", []string{"logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"}, []string{arn("logs", "log-group:/ecs/*")}, nil),
				statement("Images", []string{"ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"}, []string{"*"}, nil))},
		},
	}, controllerARN
}

func trust(principal, condition map[string]any) map[string]any {
	actions := []any{"sts:AssumeRole", "sts:TagSession"}
	if principal["Service"] == "ecs-tasks.amazonaws.com" {
		actions = actions[:1]
	}
	st := map[string]any{"Effect": "Allow", "Principal": principal, "Action": actions}
	if condition != nil {
		st["Condition"] = condition
	}
	return map[string]any{"Version": "2012-10-17", "Statement": []any{st}}
}

func document(statements ...map[string]any) map[string]any {
	all := make([]any, 0, len(statements))
	for _, s := range statements {
		all = append(all, s)
	}
	return map[string]any{"Version": "2012-10-17", "Statement": all}
}

func statement(sid string, actions, resources []string, condition map[string]any) map[string]any {
	st := map[string]any{"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
	if condition != nil {
		st["Condition"] = condition
	}
	return st
}

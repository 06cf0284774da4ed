package cli

import (
	"fmt"
	"strconv"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

func securityGroup(cfg config.Config) string { return "ecs-" + cfg.ClusterName + "-sg" }

// assumePolicy is the name of the controller role's policy that lets it assume the discovery role.
const assumePolicy = "AssumeIstiodLocal"

// infraRoles are the roles of an installation, in the order in which they are made.
func infraRoles(cfg config.Config, account string) (roles []awsadmin.Role, controllerARN string) {
	controllerARN = roleARN(cfg, account, cfg.ControllerRoleName())
	discoveryARN := roleARN(cfg, account, cfg.DiscoveryRole)
	arn := arns(cfg, account)
	prefix := "ecs-" + cfg.ClusterName + "-*"
	discovery := []map[string]any{
		statement("Enumerate", []string{"ecs:ListClusters", "ecs:DescribeTaskDefinition"}, []string{"*"}, nil),
		statement("Clusters", []string{"ecs:DescribeClusters"}, []string{arn("ecs", "cluster/"+prefix)}, nil),
		statement("ListInCluster", []string{"ecs:ListServices", "ecs:ListTasks"}, []string{"*"},
			map[string]any{"ArnLike": map[string]any{"ecs:cluster": arn("ecs", "cluster/"+prefix)}}),
		statement("DescribeInCluster", []string{"ecs:DescribeServices", "ecs:DescribeTasks"},
			[]string{arn("ecs", "service/"+prefix+"/*"), arn("ecs", "task/"+prefix+"/*")}, nil),
	}
	if cfg.EC2Hosts {
		discovery = append(discovery, statement("HostsInCluster", []string{"ecs:DescribeContainerInstances"}, []string{arn("ecs", "container-instance/"+prefix+"/*")}, nil),
			statement("Hosts", []string{"ec2:DescribeInstances"}, []string{"*"}, nil))
	}
	if cfg.Events {
		discovery = append(discovery, statement("Events", []string{"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes"},
			[]string{eventsOf(cfg, account).QueueARN}, nil))
	}
	task := []map[string]any{
		statement("Exec", []string{"ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel", "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"}, []string{"*"}, nil),
		statement("Logs", []string{"logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"}, []string{arn("logs", "log-group:/ecs/*")}, nil),
		statement("Images", []string{"ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"}, []string{"*"}, nil),
	}
	if cfg.WebIdentity != "" {
		task = append(task, statement("WebIdentity", []string{"sts:GetWebIdentityToken"}, []string{"*"}, tokenConditions(cfg.WebIdentity)))
	}
	return []awsadmin.Role{
		{
			Path: "/", Name: cfg.ControllerRoleName(), Description: "isthmus-controller in EKS", Tags: madeBy(cfg), Owner: managedTag, Keep: kept(cfg), KeepTrust: true,
			Trust: trust(map[string]any{"Service": "pods.eks.amazonaws.com"}, nil),
			Inline: map[string]map[string]any{assumePolicy: document(
				statement("Assume", []string{"sts:AssumeRole", "sts:TagSession"}, []string{discoveryARN}, nil))},
		},
		{
			Path: "/", Name: cfg.DiscoveryRole, Description: "discovery of ECS for the mesh", Tags: madeBy(cfg), Owner: managedTag, Keep: kept(cfg),
			Trust:  trust(map[string]any{"AWS": controllerARN}, nil),
			Inline: map[string]map[string]any{"Discovery": document(discovery...)},
		},
		{
			Path: cfg.TaskRolePath(), Name: cfg.TaskRoleName(), Description: "ECS tasks of the mesh", Tags: madeBy(cfg), Owner: managedTag, Keep: kept(cfg),
			Trust: trust(map[string]any{"Service": "ecs-tasks.amazonaws.com"}, map[string]any{
				"StringEquals": map[string]any{"aws:SourceAccount": account},
				"ArnLike":      map[string]any{"aws:SourceArn": arn("ecs", "*")}}),
			Inline: map[string]map[string]any{"Task": document(task...)},
		},
	}, controllerARN
}

// tokenConditions allow exactly the tokens that ztunnel asks for. The audience is a list: without Null, none at all would do.
func tokenConditions(meshAudience string) map[string]any {
	return map[string]any{
		"ForAllValues:StringLike": map[string]any{"sts:IdentityTokenAudience": webidentity.AudiencePattern(meshAudience)},
		"Null":                    map[string]any{"sts:IdentityTokenAudience": "false"},
		"NumericLessThanEquals":   map[string]any{"sts:DurationSeconds": strconv.Itoa(webidentity.AskedSeconds)},
		"StringEquals":            map[string]any{"sts:SigningAlgorithm": webidentity.AskedAlgorithm},
	}
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

// arns makes ARNs of an account's resources in the configured region.
func arns(cfg config.Config, account string) func(service, rest string) string {
	return func(service, rest string) string {
		return fmt.Sprintf("arn:%s:%s:%s:%s:%s", partition(cfg.Region), service, cfg.Region, account, rest)
	}
}

// eventsName is the name of the rule and the queue of an installation's events.
func eventsName(cfg config.Config) string { return "ecs-" + cfg.ClusterName + "-events" }

// eventsOf is the way of an account's ECS events to the controller.
func eventsOf(cfg config.Config, account string) awsadmin.Events {
	arn := arns(cfg, account)
	var clusters []string
	for _, name := range cfg.ECSClusters() {
		clusters = append(clusters, arn("ecs", "cluster/"+name))
	}
	e := awsadmin.EventsOf(eventsName(cfg), arn, clusters)
	e.Tags = madeBy(cfg)
	return e
}

// queueURL is the address of the events' queue, which AWS forms from its name.
func queueURL(cfg config.Config, account string) string {
	suffix := ""
	if partition(cfg.Region) == "aws-cn" {
		suffix = ".cn"
	}
	return fmt.Sprintf("https://sqs.%s.amazonaws.com%s/%s/%s", cfg.Region, suffix, account, eventsName(cfg))
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
)

func (a *app) ecsCleanup() *cobra.Command {
	var yes, dryRun bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "cleanup", Short: "Remove everything that infra, deploy, namespaces and add-service made", Args: noArgs,
		Long: `Remove, in the order in which nothing is left hanging: the authorization policies, services, clusters, task definitions,
namespaces, log group, roles and security group that carry our mark. What was there before is left alone. It can be
repeated, and picks up where it was interrupted.`,
		Example: "  isthmus ecs cleanup --dry-run\n  isthmus ecs cleanup --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes && !dryRun {
				return usageError{errors.New("this deletes clusters, roles and namespaces: confirm with --yes, or look with --dry-run")}
			}
			cfg, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			return a.cleanup(cmd.Context(), &cleaner{app: a, admin: admin, kube: k, cfg: cfg, dryRun: dryRun, timeout: timeout, removed: a.removed(dryRun)})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "confirm")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be removed and remove nothing")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long to wait for one thing to go")
	return c
}

// cleaner removes one installation.
type cleaner struct {
	*app
	admin   *awsadmin.Client
	kube    *kube.Client
	cfg     config.Config
	dryRun  bool
	timeout time.Duration
	removed func(format string, args ...any)
}

func (a *app) cleanup(ctx context.Context, c *cleaner) error {
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"authorization policies", c.policies},
		{"services", c.services},
		{"clusters", c.clusters},
		{"task definitions", c.definitions},
		{"namespaces", c.namespaces},
		{"log group, roles and security group", c.infra},
	} {
		if err := a.Step(step.title, func() error { return step.do(ctx) }); err != nil {
			return awsError(err)
		}
	}
	return nil
}

func (c *cleaner) policies(ctx context.Context) error {
	for _, ns := range c.cfg.ECSClusters() {
		list, err := c.kube.List(ctx, kube.AuthzPolicies, ns, "")
		if err != nil {
			if kube.IsNotFound(err) {
				continue
			}
			return err
		}
		for _, p := range list {
			if !slices.Contains(workshopPolicyNames(), p.GetName()) {
				continue
			}
			if !c.dryRun {
				if _, err := c.kube.Delete(ctx, kube.AuthzPolicies, ns, p.GetName(), nil); err != nil {
					return err
				}
			}
			c.removed("policy %s/%s", ns, p.GetName())
		}
	}
	return nil
}

func (c *cleaner) services(ctx context.Context) error {
	var gone [][2]string
	for _, clusterName := range c.cfg.ECSClusters() {
		for _, s := range workshop.Services() {
			found, _, err := c.admin.DescribeServices(ctx, clusterName, []string{s.Name})
			if awsapi.IsNotFound(err) {
				break
			}
			if err != nil {
				return err
			}
			if len(found) == 0 || found[0].Status == inventory.StatusInactive || found[0].Tags[managedTag] == "" {
				continue
			}
			if !c.dryRun && found[0].Status == inventory.StatusActive {
				if err := c.admin.Scale(ctx, clusterName, s.Name, 0); err != nil {
					return err
				}
				if err := c.admin.DeleteService(ctx, clusterName, s.Name); err != nil {
					return err
				}
			}
			gone = append(gone, [2]string{clusterName, s.Name})
		}
	}
	for _, g := range gone {
		if !c.dryRun {
			if err := c.awaitGone(ctx, g[0], g[1]); err != nil {
				return err
			}
		}
		c.removed("service %s/%s", g[0], g[1])
	}
	return nil
}

func (c *cleaner) awaitGone(ctx context.Context, clusterName, name string) error {
	return await(ctx, c.timeout, fmt.Sprintf("service %s of cluster %s is still there", name, clusterName), func(ctx context.Context) (bool, string, error) {
		found, _, err := c.admin.DescribeServices(ctx, clusterName, []string{name})
		if awsapi.IsNotFound(err) || err == nil && (len(found) == 0 || found[0].Status == inventory.StatusInactive) {
			return true, "", nil
		}
		if err != nil {
			return false, "", err
		}
		return false, fmt.Sprintf("%s with %d tasks", found[0].Status, found[0].RunningCount), nil
	})
}

func (c *cleaner) clusters(ctx context.Context) error {
	found, _, err := c.admin.DescribeClusters(ctx, c.cfg.ECSClusters())
	if err != nil {
		return err
	}
	for _, cl := range found {
		if cl.Status == inventory.StatusInactive || cl.Tags[managedTag] == "" {
			continue
		}
		if !c.dryRun {
			err := await(ctx, c.timeout, fmt.Sprintf("cluster %s cannot be deleted", cl.Name), func(ctx context.Context) (bool, string, error) {
				err := c.admin.DeleteCluster(ctx, cl.Name)
				switch awsapi.Code(err) {
				case "ClusterContainsTasksException", "ClusterContainsServicesException", "UpdateInProgressException":
					return false, err.Error(), nil // tasks that are still stopping
				}
				return err == nil || awsapi.IsNotFound(err), "", err
			})
			if err != nil {
				return err
			}
		}
		c.removed("cluster %s", cl.Name)
	}
	return nil
}

func (c *cleaner) definitions(ctx context.Context) error {
	for _, s := range workshop.Services() {
		arns, err := c.admin.TaskDefinitions(ctx, s.Family)
		if err != nil {
			return err
		}
		for _, arn := range arns {
			_, tags, err := c.admin.TaskDefinition(ctx, arn)
			if err != nil {
				return err
			}
			if tags[managedTag] == "" {
				c.Notef("task definition %s was not made by isthmus and stays", shortID(arn))
				continue
			}
			if !c.dryRun {
				if err := c.admin.DeregisterTaskDefinition(ctx, arn); err != nil {
					return err
				}
			}
			c.removed("task definition %s", shortID(arn))
		}
	}
	return nil
}

func (c *cleaner) namespaces(ctx context.Context) error {
	list, err := c.kube.List(ctx, kube.Namespaces, "", kube.ManagedByLabel+"="+fieldManager)
	if err != nil {
		return err
	}
	var going []string
	for _, ns := range list {
		if !slices.Contains(c.cfg.ECSClusters(), ns.GetName()) {
			continue
		}
		if !c.dryRun {
			if _, err := c.kube.Delete(ctx, kube.Namespaces, "", ns.GetName(), nil); err != nil {
				return err
			}
		}
		going = append(going, ns.GetName())
	}
	for _, name := range going {
		if !c.dryRun {
			err := await(ctx, c.timeout, "namespace "+name+" is still there", func(ctx context.Context) (bool, string, error) {
				o, err := c.kube.Get(ctx, kube.Namespaces, "", name)
				if kube.IsNotFound(err) || err == nil && o == nil {
					return true, "", nil
				}
				return false, "it is terminating", err
			})
			if err != nil {
				return err
			}
		}
		c.removed("namespace %s", name)
	}
	return nil
}

func (c *cleaner) infra(ctx context.Context) error {
	d := &destroyer{admin: c.admin, cfg: c.cfg, dryRun: c.dryRun, timeout: c.timeout, removed: c.removed}
	return d.run(ctx)
}

package cli

import (
	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

func (a *app) ecsNamespaces() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use: "namespaces", Short: "Create the Kubernetes namespaces and service accounts of the ECS clusters (guide 3.2)", Args: noArgs,
		Long: `For each ECS cluster: a namespace of its name, labelled istio.io/dataplane-mode=ambient, and in it the service account
of its tasks, annotated with the one IAM role that may become it.`,
		Example: "  isthmus ecs namespaces\n  isthmus ecs namespaces --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			account, err := a.account(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			for _, cluster := range cfg.ECSClusters() {
				for _, o := range namespaceObjects(cfg, account, cluster) {
					if dryRun && o["kind"] == "ServiceAccount" {
						a.Notef("ServiceAccount %s/%s would be applied (dry run)", cluster, cfg.ServiceAccount)
						continue // its namespace may not exist, which the API server would refuse
					}
					if err := a.apply(cmd.Context(), k, o, dryRun); err != nil {
						return err
					}
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change and change nothing")
	return c
}

// namespaceObjects are the Kubernetes objects of one ECS cluster.
func namespaceObjects(cfg config.Config, account, cluster string) []map[string]any {
	return []map[string]any{
		{
			"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": cluster, "labels": map[string]any{kube.AmbientLabel: "ambient", kube.ManagedByLabel: fieldManager}},
		},
		{
			"apiVersion": "v1", "kind": "ServiceAccount",
			"metadata": map[string]any{
				"name": cfg.ServiceAccount, "namespace": cluster,
				"labels":      map[string]any{kube.ManagedByLabel: fieldManager},
				"annotations": map[string]any{kube.RoleAnnotation: taskRoleARN(cfg, account)},
			},
		},
	}
}

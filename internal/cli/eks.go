package cli

import (
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/config"
)

func (a *app) eksCommand() *cobra.Command {
	return group(&cobra.Command{Use: "eks", Short: "The EKS cluster of the mesh (guide 1.1)", Example: "  isthmus eks manifest | eksctl create cluster -f -"}, a.eksManifest())
}

func (a *app) eksManifest() *cobra.Command {
	var nodes int
	var nodeType, version string
	c := &cobra.Command{
		Use: "manifest", Short: "Print the eksctl configuration of the EKS cluster", Args: noArgs,
		Long: `Print the configuration with which eksctl makes the EKS cluster: private nodes, the add-ons that the mesh needs, and the
role of isthmus-controller by EKS Pod Identity. The role may do nothing yet: isthmus ecs infra lets it assume the discovery
role.`,
		Example: "  isthmus eks manifest | eksctl create cluster -f -\n  isthmus eks manifest --nodes 3 --node-type m7g.large > cluster.yaml",
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			b, err := yaml.Marshal(eksctlConfig(cfg, nodes, nodeType, version))
			if err != nil {
				return err
			}
			a.Printf("%s", b)
			return nil
		},
	}
	c.Flags().IntVar(&nodes, "nodes", 2, "number of nodes (the guide's NUMBER_NODES)")
	c.Flags().StringVar(&nodeType, "node-type", "t3.medium", "instance type of the nodes (the guide's NODE_TYPE)")
	c.Flags().StringVar(&version, "kubernetes-version", "", "version of Kubernetes (default eksctl's)")
	return c
}

// eksctlConfig is eksctl's ClusterConfig. The add-on of Pod Identity is what hands the controller its role.
func eksctlConfig(cfg config.Config, nodes int, nodeType, version string) map[string]any {
	metadata := map[string]any{"name": cfg.ClusterName, "region": cfg.Region}
	if version != "" {
		metadata["version"] = version
	}
	tags := map[string]any{}
	for k, v := range madeBy(cfg) {
		tags[k] = v
	}
	metadata["tags"] = tags
	return map[string]any{
		"apiVersion": "eksctl.io/v1alpha5", "kind": "ClusterConfig", "metadata": metadata,
		"addons": []any{
			map[string]any{"name": "vpc-cni"}, map[string]any{"name": "coredns"}, map[string]any{"name": "kube-proxy"}, map[string]any{"name": "eks-pod-identity-agent"},
		},
		"iam": map[string]any{"podIdentityAssociations": []any{map[string]any{
			"namespace": systemNamespace, "serviceAccountName": controllerName, "roleName": cfg.ControllerRoleName(),
			// Pod Identity wants a policy with the role; this one allows what everybody may do anyway.
			"permissionPolicy": document(statement("WhoAmI", []string{"sts:GetCallerIdentity"}, []string{"*"}, nil)),
		}}},
		"managedNodeGroups": []any{map[string]any{
			"name": "managed-nodes", "instanceType": nodeType, "desiredCapacity": nodes, "minSize": nodes, "maxSize": nodes + 1, "privateNetworking": true,
		}},
	}
}

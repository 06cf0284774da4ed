package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/check"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
)

// ecsStatusFile is what `ecs status -o json` prints.
type ecsStatusFile struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Items      []check.Cluster `json:"items"`
}

func (a *app) ecsStatus() *cobra.Command {
	format := output.NewChoice("table", "table", "wide", "json", "yaml")
	var clusterName string
	c := &cobra.Command{
		Use: "status", Short: "Clusters, services and tasks, and whether the mesh reaches them", Args: noArgs,
		Long: `One line for each ECS service: its tasks that run of those that are wanted, whether it is enrolled, the proxies that are
healthy, and the tasks that a node's ztunnel reaches by HBONE (mTLS). With -o wide one line for each task.`,
		Example: "  isthmus ecs status\n  isthmus ecs status -o wide\n  isthmus ecs status --cluster ecs-demo-1 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				a.Notef("what the mesh sees is left out: %v", err)
				k = nil
			}
			var clusters []check.Cluster
			err = a.Patiently("read ECS and the mesh", func() (err error) {
				clusters, err = a.clusterFacts(cmd.Context(), admin, k, cfg)
				return err
			})
			if err != nil {
				return err
			}
			var chosen []check.Cluster
			for _, c := range clusters {
				if clusterName == "" || clusterName == c.Name {
					chosen = append(chosen, c)
				}
			}
			if clusterName != "" && len(chosen) == 0 {
				return usageError{fmt.Errorf("--cluster %q is not one of the configuration's: %s", clusterName, strings.Join(cfg.ECSClusters(), ", "))}
			}
			switch word := format.String(); word {
			case "json", "yaml":
				return output.Encode(a.Out, word, ecsStatusFile{APIVersion: config.APIVersion, Kind: "ECSStatus", Items: chosen})
			case "wide":
				a.tasksTable(chosen)
			default:
				a.servicesTable(chosen)
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, wide, json or yaml")
	c.Flags().StringVar(&clusterName, "cluster", "", "only this ECS cluster")
	return c
}

func (a *app) servicesTable(clusters []check.Cluster) {
	var rows [][]string
	for _, c := range clusters {
		state := c.Status
		if state == "" {
			state = "MISSING"
		}
		if state == "ACTIVE" && !c.Tagged {
			state = "NOT TAGGED"
		}
		if len(c.Services) == 0 {
			rows = append(rows, []string{c.Name, state, "-", "-", "-", "-", "-", "-"})
		}
		for _, s := range c.Services {
			enrolled := "no"
			if s.Enrolled {
				enrolled = "yes"
			}
			if len(s.Drift) > 0 {
				enrolled = "outdated"
			}
			healthy, reached := 0, 0
			for _, t := range s.Tasks {
				if t.Proxy == "HEALTHY" {
					healthy++
				}
				if t.Protocol == "HBONE" {
					reached++
				}
			}
			of := func(n int) string { return fmt.Sprintf("%d/%d", n, len(s.Tasks)) }
			rows = append(rows, []string{c.Name, state, s.Name, fmt.Sprintf("%d/%d", s.Running, s.Desired), s.Definition, enrolled, of(healthy), of(reached)})
		}
	}
	output.Table(a.Out, []string{"CLUSTER", "STATE", "SERVICE", "TASKS", "DEFINITION", "ENROLLED", "PROXY HEALTHY", "HBONE"}, rows)
}

func (a *app) tasksTable(clusters []check.Cluster) {
	var rows [][]string
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	for _, c := range clusters {
		for _, s := range c.Services {
			for _, t := range s.Tasks {
				rows = append(rows, []string{c.Name, s.Name, t.ID, t.Status, dash(t.Address), dash(s.Namespace), dash(s.Account), dash(t.Proxy), dash(t.Protocol)})
			}
		}
	}
	output.Table(a.Out, []string{"CLUSTER", "SERVICE", "TASK", "STATUS", "ADDRESS", "NAMESPACE", "SERVICE ACCOUNT", "PROXY", "PROTOCOL"}, rows)
}

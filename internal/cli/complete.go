package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
)

// completionBudget bounds how long a shell waits for names from AWS; then it gets those of the configuration.
const completionBudget = 500 * time.Millisecond

// complete adds completion of names to every command under root.
func (a *app) complete(root *cobra.Command) {
	if root.PersistentFlags().Lookup("color") != nil {
		_ = root.RegisterFlagCompletionFunc("color", cobra.FixedCompletions(a.color.Words(), cobra.ShellCompDirectiveNoFileComp))
	}
	for _, c := range root.Commands() {
		a.complete(c)
		for name, f := range map[string]cobra.CompletionFunc{"cluster": a.clusterNames, "from": a.servicePaths, "task": a.servicePaths} {
			if flag := c.Flags().Lookup(name); flag != nil && !(name == "task" && c.Name() == "exec") {
				_ = c.RegisterFlagCompletionFunc(name, f)
			}
		}
		if flag := c.Flags().Lookup("output"); flag != nil {
			if choice, ok := flag.Value.(*output.Choice); ok {
				_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(choice.Words(), cobra.ShellCompDirectiveNoFileComp))
			}
		}
		switch c.Name() {
		case "add-service", "remove-service":
			c.ValidArgsFunction = a.serviceNamesOfFlag
		case "exec":
			c.ValidArgsFunction = func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 0 {
					return nil, cobra.ShellCompDirectiveDefault
				}
				return a.servicePaths(c, args, word)
			}
		}
	}
}

// withinBudget asks AWS for names; nil means that it did not answer in time, for whatever reason.
func (a *app) withinBudget(c *cobra.Command, ask func(context.Context, *awsadmin.Client) ([]string, error)) []string {
	ctx, cancel := context.WithTimeout(c.Context(), completionBudget)
	defer cancel()
	cfg, err := a.load()
	if err != nil {
		return nil
	}
	admin, err := a.aws(ctx, cfg)
	if err != nil {
		return nil
	}
	names, err := ask(ctx, admin)
	if err != nil {
		return nil
	}
	return names
}

func (a *app) clusterNames(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := a.withinBudget(c, func(ctx context.Context, admin *awsadmin.Client) ([]string, error) {
		arns, err := admin.ListClusters(ctx)
		for i := range arns {
			arns[i] = shortID(arns[i])
		}
		return arns, err
	})
	if names == nil {
		if cfg, err := a.load(); err == nil {
			names = cfg.ECSClusters()
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// servicePaths completes CLUSTER/SERVICE.
func (a *app) servicePaths(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	names := a.withinBudget(c, func(ctx context.Context, admin *awsadmin.Client) ([]string, error) {
		clusters, err := admin.ListClusters(ctx)
		if err != nil {
			return nil, err
		}
		var out []string
		for _, cl := range clusters {
			arns, err := admin.ListServices(ctx, shortID(cl))
			if err != nil {
				return out, err
			}
			for _, arn := range arns {
				out = append(out, shortID(cl)+"/"+shortID(arn))
			}
		}
		return out, nil
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) serviceNamesOfFlag(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	clusterName, _ := c.Flags().GetString("cluster")
	if len(args) > 0 || clusterName == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := a.withinBudget(c, func(ctx context.Context, admin *awsadmin.Client) ([]string, error) {
		arns, err := admin.ListServices(ctx, clusterName)
		for i := range arns {
			arns[i] = shortID(arns[i])
		}
		return arns, err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

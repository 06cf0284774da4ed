package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
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
		for name, f := range map[string]cobra.CompletionFunc{"cluster": a.clusterNames, "from": a.servicePaths, "task": a.servicePaths,
			"namespace": a.namespaceNames, "pod": a.ztunnelPods, "exercise": cobra.FixedCompletions(exerciseWords(), cobra.ShellCompDirectiveNoFileComp)} {
			if flag := c.Flags().Lookup(name); flag != nil && !(name == "task" && c.Name() == "exec") {
				_ = c.RegisterFlagCompletionFunc(name, f)
			}
		}
		c.Flags().VisitAll(func(flag *pflag.Flag) {
			if choice, ok := flag.Value.(*output.Choice); ok {
				_ = c.RegisterFlagCompletionFunc(flag.Name, cobra.FixedCompletions(choice.Words(), cobra.ShellCompDirectiveNoFileComp))
			}
		})
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

// exerciseWords are what -e takes.
func exerciseWords() []string {
	var out []string
	for _, e := range (workshop.Names{}).Exercises() {
		out = append(out, strconv.Itoa(e.Number))
	}
	return append(out, "all")
}

// ofKube asks Kubernetes for names; none if it does not answer in time, for whatever reason.
func (a *app) ofKube(c *cobra.Command, ask func(context.Context, *kube.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completionBudget)
	defer cancel()
	k, err := a.kube()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, err := ask(ctx, k)
	if err != nil {
		names = nil
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) namespaceNames(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.ofKube(c, func(ctx context.Context, k *kube.Client) (names []string, err error) {
		list, err := k.List(ctx, kube.Namespaces, "", "")
		for _, o := range list {
			names = append(names, o.GetName())
		}
		return names, err
	})
}

// ztunnelPods completes the names of the pods of Istio's DaemonSet.
func (a *app) ztunnelPods(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.ofKube(c, func(ctx context.Context, k *kube.Client) (names []string, err error) {
		list, err := k.ListPods(ctx, systemNamespace, "app=ztunnel")
		for _, p := range list {
			names = append(names, p.Name)
		}
		return names, err
	})
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

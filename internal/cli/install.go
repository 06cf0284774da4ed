package cli

import (
	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

func (a *app) installCommand() *cobra.Command {
	var cfg install.Config
	var dryRun bool
	c := &cobra.Command{
		Use: "install", Short: "Install isthmus-controller beside istiod (guide 2.2)", Args: noArgs,
		Long: `Apply the manifests of isthmus-controller: its rights, its configuration with the account's discovery role, the
controller itself and the GatewayClass of the east-west gateway. With --dry-run they are printed instead.`,
		Example: "  isthmus install --dry-run | kubectl diff -f -\n  isthmus install",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := a.load()
			if err != nil {
				return err
			}
			account, err := a.account(cmd.Context(), conf)
			if err != nil {
				return err
			}
			cfg.ProxyImage = conf.ProxyImage
			cfg.Settings = settingsOf(conf, account)
			cfg.Env = map[string]string{"AWS_REGION": conf.Region}
			text, err := cfg.Render()
			if err != nil {
				return err
			}
			if dryRun {
				a.Printf("%s", text)
				return nil
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			var results []kube.Result
			err = a.Patiently("apply the manifests", func() (err error) {
				results, err = k.ApplyYAML(cmd.Context(), text, kube.ApplyOptions{Manager: fieldManager})
				return err
			})
			for _, r := range results {
				if r.Err == nil {
					a.Notef("%s %s", r.Ref, r.Outcome)
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&cfg.Image, "image", "", "image of the controller")
	c.Flags().IntVar(&cfg.Replicas, "replicas", 2, "number of controllers")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print the manifests and apply nothing")
	a.eventsFlag(c.Flags())
	return c
}

// settingsOf is the controller's configuration of an installation.
func settingsOf(cfg config.Config, account string) settings.File {
	one := settings.Account{Role: roleARN(cfg, account, cfg.DiscoveryRole), Domain: cfg.Domain, Regions: []string{cfg.Region}}
	if cfg.Events {
		one.Events = &settings.Events{QueueURL: queueURL(cfg, account)}
	}
	return settings.File{Network: cfg.Network, Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{one}}}}
}

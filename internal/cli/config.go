package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	return group(&cobra.Command{Use: "config", Short: "Write and show the configuration (guide step 0)"}, a.configInit(), a.configView())
}

func (a *app) configInit() *cobra.Command {
	var force, external, dryRun bool
	c := &cobra.Command{
		Use: "init", Short: "Write " + config.FileName + " with the guide's names", Args: noArgs,
		Long: `Write the configuration file. The guide's variables (CLUSTER_NAME, LOCAL_ACCOUNT, LOCAL_ACCOUNT_PROFILE, AWS_REGION,
OWNER_NAME) are taken from the environment where they are set, so that 'source env-config.sh' works as before.`,
		Example: "  isthmus config init\n  CLUSTER_NAME=prod AWS_REGION=eu-west-1 isthmus config init\n  isthmus config init --external --dry-run",
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			path := cmp.Or(a.configPath, config.FileName)
			if external {
				path = "external.yaml"
				if cfg, err = guideConfig(cfg, a.environ); err != nil {
					return err
				}
			}
			b, err := cfg.Marshal()
			if err != nil {
				return err
			}
			if dryRun {
				a.Printf("%s", b)
				return nil
			}
			old, err := os.ReadFile(path)
			switch {
			case err == nil && string(old) == string(b):
				a.Notef("%s is up to date", path)
				return nil
			case err == nil && !force:
				return fmt.Errorf("%s exists and differs: edit it, or use --force to replace it", path)
			case err != nil && !errors.Is(err, os.ErrNotExist):
				return err
			}
			if err := os.WriteFile(path, b, 0o644); err != nil { //nolint:gosec // a configuration without secrets
				return err
			}
			a.Notef("wrote %s", path)
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "replace an existing file")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print the file and write nothing")
	c.Flags().BoolVar(&external, "external", false, "write external.yaml, for the second account of the guide's scenario 3, from the first one's configuration")
	return c
}

func (a *app) configView() *cobra.Command {
	format := output.NewChoice("yaml", "yaml", "json")
	c := &cobra.Command{
		Use: "view", Short: "Print the configuration in force: file, then environment", Args: noArgs,
		Example: "  isthmus config view\n  isthmus config view -o json",
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			return output.Encode(a.Out, format.String(), cfg)
		},
	}
	c.Flags().VarP(&format, "output", "o", "yaml or json")
	return c
}

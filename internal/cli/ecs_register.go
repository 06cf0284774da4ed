package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// registerManager owns the controller's configuration after a registration. It is not fieldManager, which owns the whole
// Deployment after `isthmus install` and would give up the rest of it.
const registerManager = "isthmus-register"

// settingsKey is the name of the controller's configuration in its ConfigMap.
const settingsKey = "config.yaml"

func (a *app) ecsRegister() *cobra.Command {
	var remove, dryRun bool
	c := &cobra.Command{
		Use: "register", Short: "Tell isthmus-controller about the account of this configuration", Args: noArgs,
		Long: `Add the account, with its discovery role and domain, to the configuration of the controller that runs, and restart it
with that; --remove takes the account out again. An account that is there already is brought to this configuration.
Other accounts are left alone.`,
		Example: "  isthmus --config external.yaml ecs register\n  isthmus --config external.yaml ecs register --remove",
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
			return a.register(cmd.Context(), k, cfg, account, remove, dryRun)
		},
	}
	c.Flags().BoolVar(&remove, "remove", false, "take the account out")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change and change nothing")
	a.eventsFlag(c.Flags())
	return c
}

func (a *app) register(ctx context.Context, k *kube.Client, cfg config.Config, account string, remove, dryRun bool) error {
	o, err := k.Get(ctx, kube.ConfigMaps, systemNamespace, controllerName)
	if err != nil {
		return fmt.Errorf("read the controller's configuration (is it installed?): %w", err)
	}
	var have struct {
		Data map[string]string `json:"data"`
	}
	if err := kube.Decode(o, &have); err != nil {
		return err
	}
	file, err := settings.Parse([]byte(have.Data[settingsKey]))
	if err != nil {
		return err
	}
	before, err := file.Marshal()
	if err != nil {
		return err
	}
	file.Platforms.ECS.Accounts = registered(file.Platforms.ECS.Accounts, settingsOf(cfg, account).Platforms.ECS.Accounts[0], remove)
	after, err := file.Marshal()
	if err != nil {
		return err
	}
	if string(before) == string(after) {
		a.Notef("account %s unchanged", account)
		return nil
	}
	if _, err := settings.Parse(after); err != nil {
		return err // before the controller finds out in a crash loop
	}
	sum := sha256.Sum256(after)
	meta := map[string]any{"name": controllerName, "namespace": systemNamespace}
	for _, object := range []map[string]any{
		{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": map[string]any{settingsKey: string(after)}},
		{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": map[string]any{"template": map[string]any{"metadata": map[string]any{
			"annotations": map[string]any{"isthmus.dev/config-hash": hex.EncodeToString(sum[:8])}}}}},
	} {
		if err := a.applyAs(ctx, k, object, registerManager, dryRun); err != nil {
			return err
		}
	}
	return nil
}

// registered returns the accounts with one more, in the place of an older entry of the same account, or without it.
func registered(all []settings.Account, account settings.Account, remove bool) []settings.Account {
	i := slices.IndexFunc(all, func(x settings.Account) bool { return x.AccountID() == account.AccountID() })
	all = slices.Clone(all)
	switch {
	case remove && i >= 0:
		return slices.Delete(all, i, i+1)
	case remove:
		return all
	case i >= 0:
		// What only the file knows stays as it is.
		all[i].Role, all[i].Domain, all[i].Regions = account.Role, account.Domain, account.Regions
		if account.Events != nil {
			all[i].Events = account.Events
		}
		return all
	}
	return append(all, account)
}

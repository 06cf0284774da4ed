package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// ecsPlanFile is what `ecs plan -o json` prints.
type ecsPlanFile struct {
	APIVersion string              `json:"apiVersion"`
	Kind       string              `json:"kind"`
	Items      []plannedChange     `json:"items"`
	Unchanged  int                 `json:"unchanged"`
	Problems   []discovery.Problem `json:"problems"`
}

type plannedChange struct {
	Action string           `json:"action"`
	Object string           `json:"object"`
	Reason string           `json:"reason,omitempty"`
	Fields []plan.FieldDiff `json:"fields,omitempty"`
}

func (a *app) ecsPlan() *cobra.Command {
	format := output.NewChoice("", "json", "yaml")
	var all bool
	c := &cobra.Command{
		Use: "plan", Short: "What discovery would change in Kubernetes now, and why", Args: noArgs,
		Long: `Read ECS and Kubernetes with your own rights and print what isthmus-controller would create, update, delete or hold back,
by the same rules. Nothing is written. Where the controller is installed its configuration is used, otherwise yours.`,
		Example: "  isthmus ecs plan\n  isthmus ecs plan --all\n  isthmus ecs plan -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			var changes plan.Changes
			var problems []discovery.Problem
			err = a.Patiently("read ECS and Kubernetes", func() (err error) {
				changes, problems, err = a.planDiscovery(cmd.Context(), cfg)
				return err
			})
			if err != nil {
				return err
			}
			if word := format.String(); word != "" {
				return output.Encode(a.Out, word, planFile(changes, problems))
			}
			if err := changes.Render(a.Out, all); err != nil {
				return err
			}
			for _, p := range problems {
				a.Printf("problem: %s: %s [%s]\n  fix: %s\n", p.Object, p.Cause, p.Code, p.Fix)
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "json or yaml")
	c.Flags().BoolVar(&all, "all", false, "also what stays as it is")
	return c
}

func planFile(changes plan.Changes, problems []discovery.Problem) ecsPlanFile {
	out := ecsPlanFile{APIVersion: config.APIVersion, Kind: "DiscoveryPlan", Items: []plannedChange{}, Unchanged: len(changes.Unchanged), Problems: problems}
	for _, list := range [][]plan.Change{changes.Create, changes.Update, changes.Delete, changes.Held} {
		for _, ch := range list {
			out.Items = append(out.Items, plannedChange{Action: ch.Action.String(), Object: ch.Key.String(), Reason: ch.Reason, Fields: ch.Fields})
		}
	}
	if out.Problems == nil {
		out.Problems = []discovery.Problem{}
	}
	return out
}

// planDiscovery does what the controller does between a sweep and its writes.
func (a *app) planDiscovery(ctx context.Context, cfg config.Config) (plan.Changes, []discovery.Problem, error) {
	k, err := a.kube()
	if err != nil {
		return plan.Changes{}, nil, err
	}
	account, err := a.account(ctx, cfg)
	if err != nil {
		return plan.Changes{}, nil, err
	}
	file, err := controllerSettings(ctx, k, cfg, account)
	if err != nil {
		return plan.Changes{}, nil, err
	}
	scopes, err := a.scopes(ctx, cfg, file, account)
	if err != nil {
		return plan.Changes{}, nil, err
	}
	current, namespaces, err := currentObjects(ctx, k)
	if err != nil {
		return plan.Changes{}, nil, err
	}
	var changes plan.Changes
	var problems []discovery.Problem
	var memory plan.Memory
	for range 2 { // the second sweep is for what the first left without evidence
		if err := sweepAll(ctx, scopes); err != nil {
			return plan.Changes{}, nil, awsError(err)
		}
		var inputs []discovery.Input
		var snaps []*inventory.Snapshot
		for _, s := range scopes {
			s.input.Snapshot = s.reflector.Snapshot()
			inputs, snaps = append(inputs, s.input), append(snaps, s.input.Snapshot)
		}
		desired := discovery.Want(inputs, discovery.Config{DefaultServiceAccount: file.DefaultServiceAccount})
		problems = desired.Problems
		for ns := range missingNamespaces(desired, namespaces) {
			problems = append(problems, discovery.Problem{Object: "namespace " + ns, Code: diag.NamespaceMissing, Cause: "it does not exist, and discovery makes none", Fix: "isthmus ecs namespaces"})
		}
		limits := plan.Limits{MaxDeleteShare: float64(file.DeletionLimitPercent) / 100}
		changes, memory = plan.Compute(plan.Input{Desired: desired, Current: current, Snapshots: snaps, Limits: limits, Memory: memory})
		evidence := changes.WantEvidence()
		if len(evidence) == 0 {
			break
		}
		for _, s := range scopes {
			s.reflector.Expect(evidence...)
		}
	}
	return changes, problems, nil
}

// controllerSettings is the configuration of the controller that is installed, or what install would give it.
func controllerSettings(ctx context.Context, k *kube.Client, cfg config.Config, account string) (settings.File, error) {
	o, err := k.Get(ctx, kube.ConfigMaps, systemNamespace, controllerName)
	if err != nil && !kube.IsNotFound(err) {
		return settings.File{}, kube.Explain(err)
	}
	if err == nil {
		var cm struct {
			Data map[string]string `json:"data"`
		}
		if err := kube.Decode(o, &cm); err != nil {
			return settings.File{}, err
		}
		return settings.Parse([]byte(cm.Data["config.yaml"]))
	}
	text, err := settingsOf(cfg, account).Marshal()
	if err != nil {
		return settings.File{}, err
	}
	return settings.Parse(text)
}

// planScope is one account and region.
type planScope struct {
	reflector *ecs.Reflector
	input     discovery.Input
}

func (a *app) scopes(ctx context.Context, cfg config.Config, file settings.File, account string) ([]*planScope, error) {
	session, err := awsapi.Open(ctx, awsapi.Config{Region: cfg.Region, Profile: cfg.Profile, SessionName: "isthmus"})
	if err != nil {
		return nil, awsError(err)
	}
	var out []*planScope
	for _, acct := range file.Platforms.ECS.Accounts {
		regions := acct.Regions
		if len(regions) == 0 {
			regions = []string{cfg.Region}
		}
		for _, region := range regions {
			target := awsapi.Target{Region: region, Account: acct.AccountID()}
			if acct.AccountID() != account {
				target.RoleARN, target.ExternalID = acct.Role, acct.ExternalID // in our own account we need no role
			}
			source, err := awsapi.NewECS(session, target)
			if err != nil {
				return nil, err
			}
			s := &planScope{input: discovery.Input{Domain: acct.Domain, Network: acct.Network, Namespaces: acct.Namespaces, AllowedNamespaces: acct.AllowedNamespaces}}
			if s.input.Network == "" {
				s.input.Network = file.Network
			}
			s.reflector, err = ecs.New(ecs.Config{Account: acct.AccountID(), Region: region, Partition: acct.Partition(), Source: source,
				OptInTags: file.DiscoveryTags, Log: slog.New(slog.DiscardHandler), Now: time.Now})
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
	}
	return out, nil
}

func sweepAll(ctx context.Context, scopes []*planScope) error {
	var errs []error
	for _, s := range scopes {
		if _, err := s.reflector.Sweep(ctx, true); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// currentObjects are the controller's objects that exist, and the names of all namespaces.
func currentObjects(ctx context.Context, k *kube.Client) (plan.Current, map[string]bool, error) {
	var current plan.Current
	ours := kube.ManagedByLabel + "=" + kube.ManagedByValue
	services, err := k.List(ctx, kube.ServiceEntries, "", ours)
	if err != nil {
		return current, nil, kube.Explain(err)
	}
	workloads, err := k.List(ctx, kube.WorkloadEntries, "", ours)
	if err != nil {
		return current, nil, kube.Explain(err)
	}
	list, err := k.List(ctx, kube.Namespaces, "", "")
	if err != nil {
		return current, nil, kube.Explain(err)
	}
	for _, o := range services {
		var e discovery.ServiceEntry
		if err := kube.Decode(o, &e); err != nil {
			return current, nil, fmt.Errorf("read %s: %w", kube.Ref(o), err)
		}
		current.ServiceEntries = append(current.ServiceEntries, e)
	}
	for _, o := range workloads {
		var e discovery.WorkloadEntry
		if err := kube.Decode(o, &e); err != nil {
			return current, nil, fmt.Errorf("read %s: %w", kube.Ref(o), err)
		}
		current.WorkloadEntries = append(current.WorkloadEntries, e)
	}
	namespaces := map[string]bool{}
	for _, o := range list {
		namespaces[o.GetName()] = true
	}
	return current, namespaces, nil
}

func missingNamespaces(d discovery.Desired, have map[string]bool) map[string]bool {
	missing := map[string]bool{}
	for _, e := range d.ServiceEntries {
		if !have[e.Metadata.Namespace] {
			missing[e.Metadata.Namespace] = true
		}
	}
	for _, e := range d.WorkloadEntries {
		if !have[e.Metadata.Namespace] {
			missing[e.Metadata.Namespace] = true
		}
	}
	return missing
}

package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
)

func (a *app) workshopCommand() *cobra.Command {
	var exercise string
	var cleanup, interactive, dryRun bool
	var timeout time.Duration
	format := output.NewChoice("", "json", "yaml")
	c := &cobra.Command{
		Use: "authz-workshop", Short: "The guide's six authorization exercises (guide part 6)", Args: noArgs,
		Long: `Apply the policies of an exercise, wait until the proxies at the destination have them, call along the guide's five
paths and compare each outcome with the guide's. The exit code is 3 if any differs.`,
		Example: "  isthmus authz-workshop -e all\n  isthmus authz-workshop -e 2\n  isthmus authz-workshop --interactive\n  isthmus authz-workshop --cleanup\n  isthmus authz-workshop -e 3 --dry-run\n  isthmus authz-workshop -e all -o json | jq '.items[] | select(.open != .expected)'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := a.newWorkshop(cmd.Context(), timeout)
			if err != nil {
				return err
			}
			w.dryRun, w.format = dryRun, format.String()
			switch {
			case cleanup:
				return w.setPolicies(cmd.Context(), nil)
			case interactive:
				return w.interactive(cmd.Context())
			case exercise == "":
				return usageError{fmt.Errorf("choose an exercise with -e 1 to 6 or all, or --interactive, or --cleanup")}
			}
			selected, err := w.sel(exercise)
			if err != nil {
				return err
			}
			return w.run(cmd.Context(), selected)
		},
	}
	c.Flags().StringVarP(&exercise, "exercise", "e", "", "exercise: 1 to 6, or all")
	c.Flags().BoolVar(&cleanup, "cleanup", false, "remove the workshop's policies")
	c.Flags().BoolVar(&interactive, "interactive", false, "choose exercises at a prompt")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say which policies would be applied and deleted, and neither change them nor call")
	c.Flags().VarP(&format, "output", "o", "json or yaml: the outcomes, once all are known")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long policies may take to reach the proxies")
	c.MarkFlagsMutuallyExclusive("exercise", "cleanup", "interactive")
	c.MarkFlagsMutuallyExclusive("interactive", "output")
	c.MarkFlagsMutuallyExclusive("interactive", "dry-run")
	return c
}

// workshopRun is one session of the workshop.
type workshopRun struct {
	*app
	admin   *awsadmin.Client
	kube    *kube.Client
	names   workshop.Names
	timeout time.Duration
	dryRun  bool
	format  string // of the report, "" for people
}

// workshopReport is what `authz-workshop -o json` prints.
type workshopReport struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Success    bool              `json:"success"`
	Items      []workshopOutcome `json:"items"`
}

type workshopOutcome struct {
	Exercise int    `json:"exercise"`
	Title    string `json:"title"`
	Path     string `json:"path"`
	Open     bool   `json:"open"`
	Expected bool   `json:"expected"`
	Detail   string `json:"detail,omitempty"`
}

func workshopNames(cfg config.Config) (workshop.Names, error) {
	clusters := cfg.ECSClusters()
	if len(clusters) < 2 {
		return workshop.Names{}, fmt.Errorf("the workshop needs two ECS clusters, the configuration has %d", len(clusters))
	}
	return workshop.Names{Cluster1: clusters[0], Cluster2: clusters[1], Domain: cfg.Domain}, nil
}

// workshopPolicyNames are the names of all policies of the workshop, which touches no others.
func workshopPolicyNames() []string {
	var names []string
	for _, e := range (workshop.Names{}).Exercises() {
		for _, p := range e.Policies {
			names = append(names, p.Name)
		}
	}
	return names
}

func (a *app) newWorkshop(ctx context.Context, timeout time.Duration) (*workshopRun, error) {
	cfg, err := a.load()
	if err != nil {
		return nil, err
	}
	names, err := workshopNames(cfg)
	if err != nil {
		return nil, err
	}
	admin, err := a.aws(ctx, cfg)
	if err != nil {
		return nil, err
	}
	k, err := a.kube()
	if err != nil {
		return nil, err
	}
	return &workshopRun{app: a, admin: admin, kube: k, names: names, timeout: timeout}, nil
}

func (w *workshopRun) sel(exercise string) ([]workshop.Exercise, error) {
	all := w.names.Exercises()
	if exercise == "all" {
		return all, nil
	}
	n, err := strconv.Atoi(exercise)
	if err != nil || n < 1 || n > len(all) {
		return nil, usageError{fmt.Errorf("-e %q: want 1 to %d, or all", exercise, len(all))}
	}
	return all[n-1 : n], nil
}

func (w *workshopRun) run(ctx context.Context, exercises []workshop.Exercise) error {
	var differing []string
	report := workshopReport{APIVersion: config.APIVersion, Kind: "WorkshopReport", Items: []workshopOutcome{}}
	tell := func(format string, args ...any) {
		if w.format == "" {
			w.Printf(format, args...)
		}
	}
	for _, e := range exercises {
		tell("\n%s\n", w.Paint(output.Bold, fmt.Sprintf("=== Exercise 6.%d: %s ===", e.Number, e.Title)))
		if err := w.setPolicies(ctx, e.Policies); err != nil {
			return err
		}
		if w.dryRun {
			continue
		}
		for i, p := range w.names.Paths() {
			tell("[TEST] %s\n", p.Title)
			open, detail, err := w.try(ctx, p)
			if err != nil {
				return err
			}
			report.Items = append(report.Items, workshopOutcome{Exercise: e.Number, Title: e.Title, Path: p.Title, Open: open, Expected: e.Open[i], Detail: detail})
			if open {
				tell("%s Connected successfully\n", w.Paint(output.Green, "[PASS]"))
			} else {
				tell("%s Connection failed: %s\n", w.Paint(output.Red, "[FAIL]"), detail)
			}
			if open != e.Open[i] {
				want := map[bool]string{true: "open", false: "closed"}[e.Open[i]]
				tell("  this differs: the guide expects this path to be %s\n", want)
				differing = append(differing, fmt.Sprintf("6.%d %s", e.Number, p.Title))
			}
		}
		tell("Effect: %s\n", e.Effect)
	}
	if w.dryRun {
		return nil
	}
	if w.format != "" {
		report.Success = len(differing) == 0
		if err := output.Encode(w.Out, w.format, report); err != nil {
			return err
		}
	}
	if len(differing) > 0 {
		return problemsError{"outcomes that differ from the guide: " + strings.Join(differing, "; ")}
	}
	tell("\n%d exercises, every outcome as in the guide\n", len(exercises))
	return nil
}

// try calls along one path. An error means that the call could not be made at all.
func (w *workshopRun) try(ctx context.Context, p workshop.Path) (open bool, detail string, err error) {
	host := w.names.Host(p.To)
	var r callResult
	if p.From == "" {
		code, out, errw, err := podCommand(ctx, w.kube, "default", "app=eks-shell", "curl", "-sS", "--max-time", "10", "http://"+host)
		if err != nil {
			return false, "", err
		}
		r = callResult{output: cmp.Or(strings.TrimSpace(errw), strings.TrimSpace(out)), code: code}
		if code == 0 {
			r.output = out
		}
	} else if r, err = curlFromTask(ctx, w.admin, p.From, "shell-task", "", host, 10*time.Second); err != nil {
		return false, "", err
	}
	if r.code == 0 && strings.Contains(r.output, "hostname") {
		return true, "", nil
	}
	return false, cmp.Or(firstLine(r.output), fmt.Sprintf("exit code %d", r.code)), nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// setPolicies makes want the workshop's whole set of policies and waits until the proxies at the destination have it.
func (w *workshopRun) setPolicies(ctx context.Context, want []workshop.Policy) error {
	ns := w.names.Cluster1
	have, err := w.kube.List(ctx, kube.AuthzPolicies, ns, "")
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, p := range want {
		keep[p.Name] = true
		if err := w.apply(ctx, w.kube, p.Object(ns), w.dryRun); err != nil {
			return err
		}
	}
	known := workshopPolicyNames()
	for _, p := range have {
		if keep[p.GetName()] || !slices.Contains(known, p.GetName()) {
			continue
		}
		if !w.dryRun {
			if _, err := w.kube.Delete(ctx, kube.AuthzPolicies, ns, p.GetName(), nil); err != nil {
				return err
			}
		}
		w.Notef("AuthorizationPolicy %s/%s deleted%s", ns, p.GetName(), dryRunMark(w.dryRun))
	}
	if w.dryRun {
		return nil
	}
	return w.awaitPolicies(ctx, ns, keep, known)
}

// awaitPolicies waits until the ztunnel of the echo-service in cluster 1, where the policies are enforced, holds those of
// want and none of the other known ones.
func (w *workshopRun) awaitPolicies(ctx context.Context, ns string, want map[string]bool, known []string) error {
	start := time.Now()
	err := await(ctx, w.timeout, "the proxy of "+ns+"/echo-service lacks the policies", func(ctx context.Context) (bool, string, error) {
		d, err := dumpOfTask(ctx, w.admin, ns, "echo-service")
		if err != nil {
			if code := diag.CodeOf(err); code == diag.ProxyDumpUnreadable || code == diag.TaskNotRunning {
				return false, err.Error(), nil
			}
			return false, "", err
		}
		held := map[string]bool{}
		for _, p := range d.Policies {
			if p.Namespace == ns {
				held[p.Name] = true
			}
		}
		for _, name := range known {
			if held[name] != want[name] {
				return false, fmt.Sprintf("policy %s is held: %v, wanted: %v", name, held[name], want[name]), nil
			}
		}
		return true, "", nil
	})
	if err == nil {
		w.Notef("policies in force (%s)", output.Seconds(time.Since(start)))
	}
	return err
}

func (w *workshopRun) interactive(ctx context.Context) error {
	in := bufio.NewScanner(w.In)
	for {
		for _, e := range w.names.Exercises() {
			w.Notef("  %d  %s", e.Number, e.Title)
		}
		w.Notef("  c  clean up the policies\n  q  quit")
		fmt.Fprint(w.Err, "exercise> ")
		if !in.Scan() {
			return in.Err()
		}
		switch choice := strings.TrimSpace(in.Text()); choice {
		case "":
		case "q":
			return nil
		case "c":
			if err := w.setPolicies(ctx, nil); err != nil {
				return err
			}
		default:
			selected, err := w.sel(choice)
			if err == nil {
				err = w.run(ctx, selected)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				w.Notef("%v", err)
			}
		}
	}
}

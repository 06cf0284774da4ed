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
	var cleanup, interactive bool
	var timeout time.Duration
	c := &cobra.Command{
		Use: "authz-workshop", Short: "The guide's six authorization exercises (guide part 6)", Args: noArgs,
		Long: `Apply the policies of an exercise, wait until the proxies at the destination have them, call along the guide's five
paths and compare each outcome with the guide's. The exit code is 3 if any differs.`,
		Example: "  isthmus authz-workshop -e all\n  isthmus authz-workshop -e 2\n  isthmus authz-workshop --interactive\n  isthmus authz-workshop --cleanup",
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := a.newWorkshop(cmd.Context(), timeout)
			if err != nil {
				return err
			}
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
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long policies may take to reach the proxies")
	c.MarkFlagsMutuallyExclusive("exercise", "cleanup", "interactive")
	return c
}

// workshopRun is one session of the workshop.
type workshopRun struct {
	*app
	admin   *awsadmin.Client
	kube    *kube.Client
	names   workshop.Names
	timeout time.Duration
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
	for _, e := range exercises {
		w.Printf("\n%s\n", w.Paint(output.Bold, fmt.Sprintf("=== Exercise 6.%d: %s ===", e.Number, e.Title)))
		if err := w.setPolicies(ctx, e.Policies); err != nil {
			return err
		}
		for i, p := range w.names.Paths() {
			w.Printf("[TEST] %s\n", p.Title)
			open, detail, err := w.try(ctx, p)
			if err != nil {
				return err
			}
			if open {
				w.Printf("%s Connected successfully\n", w.Paint(output.Green, "[PASS]"))
			} else {
				w.Printf("%s Connection failed: %s\n", w.Paint(output.Red, "[FAIL]"), detail)
			}
			if open != e.Open[i] {
				want := map[bool]string{true: "open", false: "closed"}[e.Open[i]]
				w.Printf("  this differs: the guide expects this path to be %s\n", want)
				differing = append(differing, fmt.Sprintf("6.%d %s", e.Number, p.Title))
			}
		}
		w.Printf("Effect: %s\n", e.Effect)
	}
	if len(differing) > 0 {
		return problemsError{"outcomes that differ from the guide: " + strings.Join(differing, "; ")}
	}
	w.Printf("\n%d exercises, every outcome as in the guide\n", len(exercises))
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
		if err := w.apply(ctx, w.kube, p.Object(ns), false); err != nil {
			return err
		}
	}
	known := workshopPolicyNames()
	for _, p := range have {
		if keep[p.GetName()] || !slices.Contains(known, p.GetName()) {
			continue
		}
		if _, err := w.kube.Delete(ctx, kube.AuthzPolicies, ns, p.GetName(), nil); err != nil {
			return err
		}
		w.Notef("AuthorizationPolicy %s/%s deleted", ns, p.GetName())
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

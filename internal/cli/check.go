package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/check"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
)

// checkReport is what `check -o json` prints.
type checkReport struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Success    bool           `json:"success"`
	Items      []check.Result `json:"items"`
}

func (a *app) checkCommand() *cobra.Command {
	format := output.NewChoice("table", "table", "short", "json", "yaml")
	var wait time.Duration
	c := &cobra.Command{
		Use: "check", Short: "Look at the whole installation and say what is wrong and how to put it right", Args: noArgs,
		Long: `Look at the AWS account, the Kubernetes cluster, Istio, isthmus-controller, and each ECS cluster, service and task.
Every failure has its cause, the command that puts it right, and a page to read. The exit code is 3 if anything failed;
a warning does not count.`,
		Example: "  isthmus check\n  isthmus check -o short\n  isthmus check --wait 5m        # until everything passes\n  isthmus check -o json | jq '.items[] | select(.state == \"failed\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			start := time.Now()
			var results []check.Result
			look := func() error {
				results = check.Run(a.facts(cmd.Context(), cfg))
				return nil
			}
			if err := a.Patiently("look at AWS, Kubernetes and ECS", look); err != nil {
				return err
			}
			for check.Count(results, check.Failed) > 0 && time.Since(start) < wait && cmd.Context().Err() == nil {
				select {
				case <-cmd.Context().Done():
				case <-time.After(pollEvery):
				}
				if err := a.Patiently(fmt.Sprintf("look again: %d checks failed", check.Count(results, check.Failed)), look); err != nil {
					return err
				}
			}
			if err := context.Cause(cmd.Context()); err != nil {
				return err
			}
			switch word := format.String(); word {
			case "json", "yaml":
				report := checkReport{APIVersion: config.APIVersion, Kind: "CheckReport", Success: check.Count(results, check.Failed) == 0, Items: results}
				if err := output.Encode(a.Out, word, report); err != nil {
					return err
				}
			default:
				check.Write(a.Out, results, time.Since(start), check.Style{Short: word == "short", UTF8: a.UTF8, Paint: a.Paint})
			}
			if n := check.Count(results, check.Failed); n > 0 {
				return problemsError{fmt.Sprintf("%d checks failed", n)}
			}
			return nil
		},
	}
	c.Flags().VarP(&format, "output", "o", "table, short (only what did not pass), json or yaml")
	c.Flags().DurationVar(&wait, "wait", 0, "look again until everything passes, for at most this long")
	return c
}

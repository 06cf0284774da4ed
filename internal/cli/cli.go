// Package cli is the isthmus command line: one file per command. Commands read their configuration once, do their work
// through awsapi and kube, and write through output; none of them decides anything that the pure packages could.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

// Exit codes; `isthmus help exit-codes` documents them.
const (
	exitGood        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitProblems    = 3
	exitUnreachable = 4
	exitInterrupted = 130
)

// usageError is a mistake in the command line itself.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// problemsError says that a command ran and found what it looks for: unexpected results.
type problemsError struct{ summary string }

func (e problemsError) Error() string { return e.summary }

// app is what every command shares.
type app struct {
	*output.Streams
	environ    []string
	configPath string
	kubeconfig string
	kubeCtx    string
}

// Run executes one command line and returns the exit code of the process.
func Run(args, environ []string, in io.Reader, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{Streams: output.New(in, out, errw, environ), environ: environ}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	return a.finish(ctx, err)
}

// finish prints err once and turns it into an exit code.
func (a *app) finish(ctx context.Context, err error) int {
	var usage usageError
	var problems problemsError
	var child *exec.ExitError
	var exit exitError
	switch {
	case err == nil:
		return exitGood
	case errors.As(err, &child):
		return child.ExitCode() // it has said what is wrong itself
	case errors.As(err, &exit):
		return exit.code
	case ctx.Err() != nil:
		fmt.Fprintln(a.Err, "isthmus: interrupted")
		return exitInterrupted
	case errors.As(err, &problems):
		fmt.Fprintln(a.Err, "isthmus:", problems.summary)
		return exitProblems
	case errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "unknown flag") || strings.HasPrefix(err.Error(), "required flag"):
		fmt.Fprintf(a.Err, "isthmus: error: %v\n", err)
		fmt.Fprintln(a.Err, "isthmus:   run the command with --help for its use")
		return exitUsage
	}
	diag.Print(a.Err, "isthmus", err)
	if code := diag.CodeOf(err); code == diag.KubeUnreachable || code == diag.CloudUnreachable {
		return exitUnreachable
	}
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "isthmus",
		Short: "Join Amazon ECS clusters to an Istio ambient mesh",
		Long: `isthmus joins Amazon ECS clusters to an Istio ambient mesh: mTLS, discovery, names, L4 authorization and logs for
ECS tasks beside the pods of an EKS cluster, under one unmodified istiod.`,
		Example: `  isthmus lab up                 # a whole mesh with two ECS clusters on this machine
  eval "$(isthmus lab env)"
  isthmus ecs infra && isthmus ecs deploy && isthmus ecs namespaces && isthmus ecs add-service --all --wait
  isthmus ztunnel-config services`,
		SilenceErrors: true, SilenceUsage: true,
		Version: version.String(),
	}
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default ./"+config.FileName+" if it exists)")
	root.PersistentFlags().StringVar(&a.kubeconfig, "kubeconfig", "", "kubeconfig file (default as kubectl's)")
	root.PersistentFlags().StringVar(&a.kubeCtx, "context", "", "context of the kubeconfig")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(a.versionCommand(), a.configCommand(), a.labCommand(), a.ecsCommand(), a.installCommand(), a.ztunnelConfigCommand(), a.workshopCommand(), exitCodesTopic())
	return root
}

// load returns the configuration of this invocation.
func (a *app) load() (config.Config, error) {
	dir, err := os.Getwd()
	if err != nil {
		return config.Config{}, fmt.Errorf("find the working directory: %w", err)
	}
	c, err := config.Load(dir, a.configPath, a.environ)
	if err != nil {
		return config.Config{}, diag.Wrap(diag.ConfigInvalid, err)
	}
	return c, nil
}

// getenv looks a variable up in the environment the command was given.
func (a *app) getenv(key string) string {
	for _, kv := range a.environ {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Example: "  isthmus version\n  isthmus version -o json",
		RunE: func(*cobra.Command, []string) error {
			if format == "" {
				a.Printf("%s\n", version.String())
				return nil
			}
			return output.Encode(a.Out, format, map[string]string{"version": version.String()})
		},
	}
	c.Flags().StringVarP(&format, "output", "o", "", "json or yaml")
	return c
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes of isthmus", Long: `Exit codes:

  0    it worked
  1    it failed
  2    the command line is wrong
  3    it ran and found something unexpected (workshop, check)
  4    the cluster or AWS cannot be reached, or does not allow it
  130  interrupted

Commands that run another program (lab, kubectl) exit with that program's code.`}
}

func (a *app) labCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lab", Short: "A real mesh with ECS clusters on this machine: up, down, status, env, logs, run",
		Long:    "isthmus lab runs isthmus-lab, which it finds beside itself or in PATH, with the same arguments.",
		Example: "  isthmus lab up\n  eval \"$(isthmus lab env)\"\n  isthmus lab status\n  isthmus lab run 2\n  isthmus lab down",
		// Every flag belongs to isthmus-lab.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := sibling("isthmus-lab")
			if err != nil {
				return diag.Wrap(diag.LabProgramAbsent, err)
			}
			c := exec.CommandContext(cmd.Context(), path, args...)
			c.Stdin, c.Stdout, c.Stderr, c.Env = a.In, a.Out, a.Streams.Err, a.environ
			c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
			return c.Run()
		},
	}
}

// sibling finds a program beside the running executable, then in PATH.
func sibling(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			if p := filepath.Join(filepath.Dir(self), name); isExecutable(p) {
				return p, nil
			}
		}
	}
	return exec.LookPath(name)
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// noArgs is cobra.NoArgs as a usage error.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

// exactArgs is cobra.ExactArgs as a usage error that names the arguments.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("want %d arguments (%s), got %d", len(names), strings.Join(names, " "), len(args))}
		}
		return nil
	}
}

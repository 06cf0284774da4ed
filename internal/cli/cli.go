// Package cli is the isthmus command line: one file per command. Commands read their configuration once, do their work
// through awsapi and kube, and write through output; none of them decides anything that the pure packages could.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
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
	profile    string
	region     string
	events     bool   // --events, where a command has it
	webMesh    string // --web-identity, where a command has it
	color      output.Choice
	istioctl   bool // called by the name istioctl
}

// Main executes the command line of a process, whose first element is the name by which it was called, and returns the
// exit code.
func Main(argv, environ []string, in io.Reader, out, errw io.Writer) int {
	a := newApp(environ, in, out, errw)
	if len(argv) == 0 {
		return a.execute(nil)
	}
	a.istioctl = isIstioctl(argv[0])
	return a.execute(argv[1:])
}

// Run executes one command line and returns the exit code.
func Run(args, environ []string, in io.Reader, out, errw io.Writer) int {
	return newApp(environ, in, out, errw).execute(args)
}

func newApp(environ []string, in io.Reader, out, errw io.Writer) *app {
	return &app{Streams: output.New(in, out, errw, environ), environ: environ, color: output.NewChoice("auto", "auto", "always", "never")}
}

func (a *app) execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	kube.RouteLogs(slog.New(slog.DiscardHandler)) // what its client has to say reaches people as our errors
	root := a.root()
	if a.istioctl {
		root = a.istioctlRoot()
	}
	if args == nil {
		args = []string{} // nil means the process's own to cobra
	}
	root.SetArgs(args)
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
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
	case errors.As(err, &usage) || isUsage(err.Error()):
		fmt.Fprintf(a.Err, "isthmus: error: %v\n", err)
		fmt.Fprintln(a.Err, "isthmus:   run the command with --help for its use")
		return exitUsage
	}
	diag.Print(a.Err, "isthmus", err)
	switch diag.CodeOf(err) {
	case diag.KubeUnreachable, diag.KubeForbidden, diag.CloudUnreachable, diag.CloudCredentials, diag.CloudDenied:
		return exitUnreachable
	}
	return exitFailed
}

// isUsage tells cobra's complaints about the command line, which have no type, by how they begin.
func isUsage(text string) bool {
	for _, start := range []string{"unknown command", "unknown flag", "unknown shorthand", "required flag", "if any flags in the group"} {
		if strings.HasPrefix(text, start) {
			return true
		}
	}
	return false
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
	root.PersistentFlags().StringVar(&a.profile, "profile", "", "AWS profile (default from the configuration, then as the AWS CLI's)")
	root.PersistentFlags().StringVar(&a.region, "region", "", "AWS region (default from the configuration)")
	root.PersistentFlags().Var(&a.color, "color", "colour: auto, always or never; auto follows NO_COLOR and CLICOLOR_FORCE")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		a.SetColor(a.color.String())
		return nil
	}
	root.SetFlagErrorFunc(flagError)
	group(root, a.versionCommand(), a.configCommand(), a.labCommand(), a.ecsCommand(), a.eksCommand(), a.installCommand(), a.checkCommand(),
		a.ztunnelConfigCommand(), a.whyCommand(), a.workshopCommand(), exitCodesTopic())
	a.complete(root)
	return root
}

// group makes a command that only has others: called alone it shows its help, and a name it does not know is an error.
func group(c *cobra.Command, children ...*cobra.Command) *cobra.Command {
	c.AddCommand(children...)
	c.Args = subcommandArgs
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
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
	c.Events = c.Events || a.events
	c.WebIdentity = cmp.Or(a.webMesh, c.WebIdentity)
	c.Profile, c.Region = cmp.Or(a.profile, c.Profile), cmp.Or(a.region, c.Region)
	return c, c.Validate()
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
	format := output.NewChoice("", "json", "yaml")
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Example: "  isthmus version\n  isthmus version -o json",
		RunE: func(*cobra.Command, []string) error {
			if format.String() == "" {
				a.Printf("%s\n", version.String())
				return nil
			}
			return output.Encode(a.Out, format.String(), map[string]string{"version": version.String()})
		},
	}
	c.Flags().VarP(&format, "output", "o", "json or yaml")
	return c
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes of isthmus", Long: `Exit codes:

  0    it worked
  1    it failed
  2    the command line is wrong
  3    it ran and found something unexpected (workshop, check), or the connection is denied (why)
  4    the cluster or AWS cannot be reached, or does not allow it
  130  interrupted

Commands that run another program (lab, kubectl) exit with that program's code.`}
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

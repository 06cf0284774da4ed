package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/version"
	"github.com/isthmus-mesh/isthmus/lab/daemon"
)

// Exit codes, as of the command-line tool isthmus.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 4
	exitInterrupted = 130
)

// program is how people call this program.
const program = "isthmus lab"

// errUsage says that the command line was wrong and that this has been printed.
var errUsage = errors.New("wrong usage")

// commandLine is one invocation.
type commandLine struct {
	getenv func(string) string
	stdout io.Writer
	stderr io.Writer
}

// command is one entry of the table of commands.
type command struct {
	name, args, summary string
	run                 func(c commandLine, ctx context.Context, args []string) error
}

func commands() []command {
	return []command{
		{"up", "", "start the lab, or wait for the one that is starting", commandLine.up},
		{"down", "", "end the lab and remove everything it made", commandLine.down},
		{"status", "[-o table|json]", "show what runs, since when, and how much memory it takes", commandLine.status},
		{"env", "", "print the shell exports that point kubectl, istioctl and aws at the lab", commandLine.env},
		{"logs", "[-f] [--tail N] [COMPONENT]", "print the log of a component; without one, list them", commandLine.logs},
		{"kill", "COMPONENT", "end a component as a crash would; it comes back by itself", action(daemon.ActionKill)},
		{"stop", "COMPONENT", "end a component and keep it down", action(daemon.ActionStop)},
		{"restart", "COMPONENT", "restart a component, or start a stopped one", action(daemon.ActionRestart)},
		{"fault", "[FAULT] [--call C] [--off]", "let the AWS endpoint misbehave: throttle, error, slow, empty, ...", commandLine.fault},
		{"run", "[--keep] [SCENARIO]", "walk through a scenario of the guide: 2 unless said otherwise", commandLine.scenario},
		{"kubectl", "[ARGUMENTS]", "run kubectl against the lab", passOn("kubectl")},
		{"istioctl", "[ARGUMENTS]", "run istioctl against the lab", passOn("istioctl")},
		{"version", "", "print the version", commandLine.version},
	}
}

// run runs the command that args name and returns the exit code.
func (c commandLine) run(args []string) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		c.usage(c.stdout)
		return exitOK
	}
	for _, cmd := range commands() {
		if cmd.name != args[0] {
			continue
		}
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return c.exitCode(ctx, cmd.run(c, ctx, args[1:]))
	}
	fmt.Fprintf(c.stderr, "%s: error: no command %q\n", program, args[0])
	c.usage(c.stderr)
	return exitUsage
}

// exitCode prints err and returns the exit code that stands for it.
func (c commandLine) exitCode(ctx context.Context, err error) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		return exitUsage
	case ctx.Err() != nil:
		fmt.Fprintf(c.stderr, "%s: interrupted\n", program)
		return exitInterrupted
	}
	diag.Print(c.stderr, program, err)
	if diag.CodeOf(err) == diag.LabNotRunning {
		return exitUnreachable
	}
	return exitFailed
}

func (c commandLine) usage(w io.Writer) {
	fmt.Fprintf(w, "A whole mesh on one Linux machine: Kubernetes, Istio, ECS and the packets between them.\n\n"+
		"Examples:\n  %[1]s up\n  eval \"$(%[1]s env)\"\n  kubectl get pods -A\n  %[1]s down\n\nCommands:\n", program)
	for _, cmd := range commands() {
		fmt.Fprintf(w, "  %-40s %s\n", strings.TrimSpace(cmd.name+" "+cmd.args), cmd.summary)
	}
	fmt.Fprintf(w, "\nThe lab keeps its state in $%s, by default ~/.local/state/isthmus/lab.\n", daemon.DirVariable)
}

// flags parses the flags of a command that takes at most max further arguments.
func (c commandLine) flags(name string, args []string, max int, define func(*flag.FlagSet)) ([]string, error) {
	fs := flag.NewFlagSet(program+" "+name, flag.ContinueOnError)
	fs.SetOutput(c.stderr)
	if define != nil {
		define(fs)
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, errUsage // flag has printed it
	}
	if fs.NArg() > max {
		fmt.Fprintf(c.stderr, "%s %s: error: unexpected argument %q\n", program, name, fs.Arg(max))
		return nil, errUsage
	}
	return fs.Args(), nil
}

func (c commandLine) dir() (daemon.Dir, error) { return daemon.DefaultDir(c.getenv) }

func (c commandLine) up(ctx context.Context, args []string) error {
	if _, err := c.flags("up", args, 0, nil); err != nil {
		return err
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	progress := daemon.NewProgress(c.stderr, isTerminal(c.stderr) && c.getenv("TERM") != "dumb", daemon.IsUTF8(c.getenv))
	result, err := daemon.Up(ctx, dir, progress.Event)
	progress.Close()
	if result.CleanedUp {
		fmt.Fprintln(c.stderr, "what an earlier lab had left behind was removed")
	}
	if err != nil {
		return err
	}
	if result.AlreadyRunning {
		fmt.Fprintf(c.stderr, "\nthe lab runs already. Use it like this:\n\n")
	} else {
		fmt.Fprintf(c.stderr, "\nthe lab is ready after %s. Use it like this:\n\n", daemon.Seconds(result.Took))
	}
	fmt.Fprintf(c.stderr, "  eval \"$(%[1]s env)\"\n  kubectl get pods -A\n  %[1]s down\n", program)
	return nil
}

func (c commandLine) down(ctx context.Context, args []string) error {
	if _, err := c.flags("down", args, 0, nil); err != nil {
		return err
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	found, err := daemon.Down(ctx, dir)
	if err != nil {
		return err
	}
	if found {
		fmt.Fprintln(c.stderr, "the lab is gone")
	} else {
		fmt.Fprintln(c.stderr, "no lab runs")
	}
	return nil
}

func (c commandLine) env(_ context.Context, args []string) error {
	if _, err := c.flags("env", args, 0, nil); err != nil {
		return err
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	variables, err := dir.Env()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "unset %s\n", strings.Join(daemon.Unset(), " "))
	for _, v := range variables {
		fmt.Fprintf(c.stdout, "export %s=%s\n", v.Name, quote(v.Value))
	}
	fmt.Fprintf(c.stdout, "case \":$PATH:\" in *:%[1]s:*) ;; *) export PATH=%[1]s:\"$PATH\" ;; esac\n", quote(dir.Bin()))
	return nil
}

// quote writes s as one word for a POSIX shell.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:@%+=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// action returns a command that does something to one component.
func action(name string) func(commandLine, context.Context, []string) error {
	return func(c commandLine, ctx context.Context, args []string) error {
		rest, err := c.flags(name, args, 1, nil)
		if err != nil {
			return err
		}
		if len(rest) == 0 {
			fmt.Fprintf(c.stderr, "%s %s: error: which component? `%s status` lists them\n", program, name, program)
			return errUsage
		}
		dir, err := c.dir()
		if err != nil {
			return err
		}
		return daemon.NewClient(dir).Act(ctx, rest[0], name)
	}
}

// passOn returns a command that becomes another program, with the lab's environment.
func passOn(name string) func(commandLine, context.Context, []string) error {
	return func(c commandLine, _ context.Context, args []string) error {
		dir, err := c.dir()
		if err != nil {
			return err
		}
		return dir.Exec(name, args)
	}
}

func (c commandLine) version(_ context.Context, args []string) error {
	if _, err := c.flags("version", args, 0, nil); err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, version.String())
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

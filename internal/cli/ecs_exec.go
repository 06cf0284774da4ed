package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ssmchannel"
)

func (a *app) ecsExec() *cobra.Command {
	var container, task string
	c := &cobra.Command{
		Use: "exec CLUSTER/SERVICE -- COMMAND [ARGUMENTS]", Short: "Run a command in a container of an ECS task",
		Long: `Run a command in one of a service's tasks through ECS Exec. From a terminal the command has a terminal of the same
size, which follows when yours is resized; from a script its output is printed when it ends. The exit code is the
command's. AWS does not tell it to a terminal session: then it is 0.`,
		Example: `  isthmus ecs exec ecs-demo-1/shell-task -- sh
  isthmus ecs exec ecs-demo-1/echo-service -c ztunnel -- /usr/local/bin/ztunnel version`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 || c.ArgsLenAtDash() > 1 {
				return usageError{errors.New("want CLUSTER/SERVICE -- COMMAND [ARGUMENTS]")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			clusterName, name, err := splitService(args[0])
			if err != nil {
				return err
			}
			_, admin, err := a.open(cmd.Context())
			if err != nil {
				return err
			}
			t, err := chosenTask(cmd.Context(), admin, clusterName, name, task)
			if err != nil {
				return err
			}
			if container == "" {
				container = applicationContainer(t)
			}
			code := 0
			if in, out, ok := a.terminal(); ok {
				code, err = interactiveInTask(cmd.Context(), admin, clusterName, t.ARN, container, args[1:], in, out)
			} else {
				var text string
				if text, code, err = commandInTask(cmd.Context(), admin, clusterName, t.ARN, container, args[1:]); err == nil && text != "" {
					a.Printf("%s\n", text)
				}
			}
			if err == nil && code != 0 {
				return exitError{code}
			}
			return err
		},
	}
	c.Flags().StringVarP(&container, "container", "c", "", "container (default the first of the application)")
	c.Flags().StringVar(&task, "task", "", "id of the task (default any that runs)")
	return c
}

// terminal returns standard input and output if both are one.
func (a *app) terminal() (in, out *os.File, ok bool) {
	in, inOK := a.In.(*os.File)
	out, outOK := a.Out.(*os.File)
	if !inOK || !outOK || !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(out.Fd())) {
		return nil, nil, false
	}
	return in, out, true
}

// interactiveInTask joins our terminal with one in the container until the command ends.
func interactiveInTask(ctx context.Context, admin *awsadmin.Client, clusterName, task, container string, command []string, in, out *os.File) (code int, err error) {
	session, err := admin.ExecuteCommand(ctx, clusterName, task, container, shellJoin(command))
	if err != nil {
		return 0, awsError(err)
	}
	s, err := ssmchannel.Dial(ctx, session.StreamURL, session.Token)
	if err != nil {
		return 0, diag.Wrap(diag.ExecFailed, err)
	}
	old, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return 0, fmt.Errorf("set the terminal up: %w", err)
	}
	defer func() { _ = term.Restore(int(in.Fd()), old) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.Run(ctx, in, out, windowSizes(ctx, out)); err != nil {
		return 0, diag.Wrap(diag.ExecFailed, err)
	}
	code, _ = s.ExitCode()
	return code, nil
}

// windowSizes yields the size of a terminal, now and after each change, until ctx ends.
func windowSizes(ctx context.Context, f *os.File) <-chan ssmchannel.Size {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	sizes := make(chan ssmchannel.Size)
	go func() {
		defer close(sizes)
		defer signal.Stop(changed)
		for {
			cols, rows, err := term.GetSize(int(f.Fd()))
			if err == nil {
				select {
				case sizes <- ssmchannel.Size{Cols: uint16(cols), Rows: uint16(rows)}: //nolint:gosec // a terminal's size
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// shellJoin quotes words so that a shell, and the agent of ECS Exec, reads the same words again.
func shellJoin(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		if w != "" && strings.Trim(w, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-") == "" {
			quoted[i] = w
			continue
		}
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'"'"'`) + "'"
	}
	return strings.Join(quoted, " ")
}

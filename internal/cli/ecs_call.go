package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/cli/dump"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/enrol"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/ssmchannel"
)

func (a *app) ecsCall() *cobra.Command {
	var from, container string
	var timeout time.Duration
	c := &cobra.Command{
		Use: "call HOST[:PORT][/PATH]", Short: "Call a service from inside an ECS task (the guide's call-from-ecs.sh)", Args: exactArgs("HOST[:PORT][/PATH]"),
		Long:    "Run curl in the application's container of a task, through ECS Exec. The exit code is curl's.",
		Example: "  isthmus ecs call --from ecs-demo-1/shell-task echo-service.ecs-demo-2.ecs.local:8080",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			clusterName, name, err := splitService(from)
			if err != nil {
				return err
			}
			if !callTarget.MatchString(args[0]) {
				return usageError{fmt.Errorf("%q: want HOST[:PORT][/PATH]", args[0])}
			}
			admin, err := a.aws(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			r, err := curlFromTask(cmd.Context(), admin, clusterName, name, container, args[0], timeout)
			if err != nil {
				return err
			}
			a.Printf("%s\n", r.output)
			if r.code != 0 {
				return exitError{r.code}
			}
			return nil
		},
	}
	c.Flags().StringVar(&from, "from", "", "the caller, as cluster/service (required)")
	c.Flags().StringVar(&container, "container", "", "container to call from (default the first of the application)")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long the call may take")
	_ = c.MarkFlagRequired("from")
	return c
}

// callTarget is what may stand in the command line of a shell without quoting.
var callTarget = regexp.MustCompile(`^[A-Za-z0-9_.\[\]:-]+(/[A-Za-z0-9_.~/?=&%+-]*)?$`)

// exitError ends the process with the code of a command that has said what is wrong itself.
type exitError struct{ code int }

func (e exitError) Error() string { return "exit code " + strconv.Itoa(e.code) }

// callResult is how a call ended: what curl wrote and its exit code.
type callResult struct {
	output string
	code   int
}

func curlFromTask(ctx context.Context, admin *awsadmin.Client, clusterName, name, container, target string, timeout time.Duration) (callResult, error) {
	command := fmt.Sprintf("curl -sS --max-time %d http://%s", max(1, int(timeout.Seconds())), target)
	out, code, err := taskCommand(ctx, admin, clusterName, name, container, command)
	return callResult{output: out, code: code}, err
}

// exitMarker carries the exit code of the command through ECS Exec of AWS, which has no place for one.
const exitMarker = "isthmus-exit:"

var exitLine = regexp.MustCompile(`\r?\n?` + exitMarker + `(\d+)\s*$`)

// taskCommand runs a shell command in a container of one of a service's tasks through ECS Exec. The terminal there joins
// standard output and standard error.
func taskCommand(ctx context.Context, admin *awsadmin.Client, clusterName, name, container, command string) (output string, code int, err error) {
	task, err := runningTask(ctx, admin, clusterName, name)
	if err != nil {
		return "", 0, err
	}
	if container == "" {
		container = applicationContainer(task)
	}
	return commandInTask(ctx, admin, clusterName, task.ARN, container, []string{"sh", "-c", command})
}

// commandInTask runs a program in a container without a terminal of ours, and returns what it wrote and its exit code.
func commandInTask(ctx context.Context, admin *awsadmin.Client, clusterName, task, container string, command []string) (output string, code int, err error) {
	wrapped := append([]string{"sh", "-c", `"$@"; code=$?; echo; echo "` + exitMarker + `$code"; exit $code`, "sh"}, command...)
	session, err := admin.ExecuteCommand(ctx, clusterName, task, container, shellJoin(wrapped))
	if err != nil {
		return "", 0, awsError(err)
	}
	s, err := ssmchannel.Dial(ctx, session.StreamURL, session.Token)
	if err != nil {
		return "", 0, diag.Wrap(diag.ExecFailed, err)
	}
	var out bytes.Buffer
	if err := s.Run(ctx, nil, &out, nil); err != nil {
		return "", 0, diag.Wrap(diag.ExecFailed, err)
	}
	known, ok := s.ExitCode()
	return outcome(out.String(), known, ok)
}

// outcome reads the output of a wrapped command. The exit code that the channel told wins; AWS's tells none, so there the
// marker says it.
func outcome(raw string, known int, ok bool) (output string, code int, err error) {
	text := strings.ReplaceAll(raw, "\r\n", "\n")
	m := exitLine.FindStringSubmatchIndex(text)
	switch {
	case m == nil && !ok:
		return text, 0, diag.Wrap(diag.ExecFailed, errors.New("the session ended before the command did"))
	case m == nil:
		return strings.TrimSpace(text), known, nil // there is no shell in the container, and the channel says so
	}
	if !ok {
		if known, err = strconv.Atoi(text[m[2]:m[3]]); err != nil {
			return text, 0, err
		}
	}
	return strings.TrimSpace(text[:m[0]]), known, nil
}

// applicationContainer is the first container of a task that is not the proxy.
func applicationContainer(t *inventory.Task) string {
	for _, c := range t.Containers {
		if c.Name != enrol.ContainerName {
			return c.Name
		}
	}
	return ""
}

// taskDump reads what the ztunnel of a service's task knows, from within the task.
func (a *app) taskDump(ctx context.Context, clusterName, name string) (*dump.Dump, error) {
	cfg, err := a.load()
	if err != nil {
		return nil, err
	}
	admin, err := a.aws(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return dumpOfTask(ctx, admin, clusterName, name)
}

func dumpOfTask(ctx context.Context, admin *awsadmin.Client, clusterName, name string) (*dump.Dump, error) {
	url := fmt.Sprintf("http://127.0.0.1:%d/config_dump", mesh.AdminPort)
	out, code, err := taskCommand(ctx, admin, clusterName, name, "", `curl -sS --noproxy "*" `+url)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, diag.Newf(diag.ProxyDumpUnreadable, "curl in a task of %s/%s: %s", clusterName, name, out)
	}
	return parseDump(strings.NewReader(out))
}

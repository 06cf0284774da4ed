package cloud_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
	"github.com/isthmus-mesh/isthmus/test/clients"
)

// execRig is a task in which commands can be run, and what the AWS CLI needs to run them.
type execRig struct {
	*lab
	cli, plugin string // the CLI, and the folder of the plugin
	arn         string
}

func newExecRig(t *testing.T, run func(ctx context.Context, spec ecs.ExecSpec) (int, error)) *execRig {
	t.Helper()
	r := &execRig{cli: clients.AWSCLI(t), plugin: clients.SessionManagerPlugin(t), lab: newLab(t)}
	r.rt.execContext = func(ctx context.Context, _ *fakeContainer, spec ecs.ExecSpec) (int, error) { return run(ctx, spec) }
	r.cluster("c")
	r.register("f", app("a"))
	r.arn = r.run("c", "f")
	r.eventually("the task runs", func() bool { return *r.task("c", r.arn).LastStatus == "RUNNING" })
	return r
}

// execute makes "aws ecs execute-command", with a folder before all others in PATH, or with none that has the plugin.
func (r *execRig) execute(command, folder string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r.t.Cleanup(cancel)
	cmd := r.aws(ctx, r.cli, "ecs", "execute-command", "--cluster", "c", "--task", r.arn, "--container", "a", "--interactive", "--command", command)
	path := []string{folder}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, "session-manager-plugin")); err != nil {
			path = append(path, dir)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+strings.Join(path, ":"))
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// held runs a command with a standard input that stays open until the command has ended, as a terminal does. The input is
// typed once the output has the prompt, as a person does: the plugin counts its first message, the size of the terminal, and
// what it reads from its input in two goroutines without a lock, so that input which is there already may share a sequence
// number with the size and be dropped as a repetition.
func held(t *testing.T, cmd *exec.Cmd, prompt, input string) (string, error) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := &promptWriter{prompt: prompt, seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if input != "" {
		select {
		case err = <-ended:
			return out.String(), err
		case <-out.seen:
		}
		if _, err := io.WriteString(in, input); err != nil {
			t.Error(err)
		}
	}
	err = <-ended
	return out.String(), err
}

// promptWriter collects output and tells when a text is in it. Only the command's one copying goroutine writes.
type promptWriter struct {
	strings.Builder
	prompt string
	seen   chan struct{}
	told   bool
}

func (w *promptWriter) Write(p []byte) (int, error) {
	n, err := w.Builder.Write(p)
	if tail := w.String(); !w.told && strings.Contains(tail[max(0, len(tail)-len(p)-len(w.prompt)):], w.prompt) {
		w.told = true
		close(w.seen)
	}
	return n, err
}

// TestTrap16PluginPresence: the CLI looks for the plugin first, and asks ECS for nothing without it.
func TestTrap16PluginPresence(t *testing.T) {
	t.Parallel()
	r := newExecRig(t, func(context.Context, ecs.ExecSpec) (int, error) { return 0, nil })
	r.fault(awsserver.Fault{Kind: awsserver.FaultSlow, Call: "ECS.ExecuteCommand", By: time.Millisecond})
	out, err := r.execute("date", t.TempDir()).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "SessionManagerPlugin is not found") {
		t.Errorf("without the plugin: %v\n%s", err, out)
	}
	if hits := r.cloud.Faults().List()[0].Hits; hits != 0 {
		t.Errorf("the CLI asked for %d sessions without the plugin", hits)
	}
	if out, err := held(t, r.execute("date", r.plugin), "", ""); err != nil || r.cloud.Faults().List()[0].Hits != 1 {
		t.Errorf("with the plugin: %v, %d sessions\n%s", err, r.cloud.Faults().List()[0].Hits, out)
	}
}

// TestTrap16RuntimeID: the CLI asks DescribeTasks for the container's runtime id and hands the plugin a target of it.
func TestTrap16RuntimeID(t *testing.T) {
	t.Parallel()
	r := newExecRig(t, func(context.Context, ecs.ExecSpec) (int, error) { return 0, nil })
	dir := t.TempDir()
	record := filepath.Join(dir, "arguments")
	shim := "#!/bin/sh\n[ $# -eq 0 ] || for a; do printf '%s\\0' \"$a\"; done >>" + record + "\n"
	if err := os.WriteFile(filepath.Join(dir, "session-manager-plugin"), []byte(shim), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if out, err := held(t, r.execute("date", dir), "", ""); err != nil {
		t.Fatalf("execute-command: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00")
	if len(args) != 6 || args[1] != region || args[2] != "StartSession" || args[5] != r.url {
		t.Fatalf("the plugin was given %q", args)
	}
	var session map[string]string
	if err := json.Unmarshal([]byte(args[0]), &session); err != nil || session["sessionId"] == "" || session["tokenValue"] == "" || !strings.HasPrefix(session["streamUrl"], "ws://") {
		t.Errorf("session = %v, %v", session, err)
	}
	want := fmt.Sprintf(`{"Target": "ecs:c_%s_%s"}`, r.arn[strings.LastIndex(r.arn, "/")+1:], *r.task("c", r.arn).Containers[0].RuntimeId)
	if args[4] != want {
		t.Errorf("target = %s, want %s", args[4], want)
	}
}

// TestTrap16Framing: what goes over the official plugin arrives whole and in order, in both directions, the exit code of the
// command being no failure of the CLI.
func TestTrap16Framing(t *testing.T) {
	t.Parallel()
	var lines strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&lines, "%06d é\r\n", i)
	}
	typed := strings.Repeat("0123456789", 300) + "\n" // three frames: the plugin's own bound is 1024 bytes
	got := make(chan string, 1)
	r := newExecRig(t, func(_ context.Context, spec ecs.ExecSpec) (int, error) {
		if _, err := io.WriteString(spec.Stdout, lines.String()); err != nil {
			return 0, err
		}
		b := make([]byte, len(typed))
		n, err := io.ReadFull(spec.Stdin, b)
		got <- string(b[:n])
		return 7, err
	})
	out, err := held(t, r.execute("sh -c 'seq 20000'", r.plugin), "019999 é", typed)
	if err != nil {
		t.Errorf("execute-command: %v", err)
	}
	if !strings.Contains(out, lines.String()) {
		t.Errorf("the output was not whole: %d bytes of %d", len(out), lines.Len())
	}
	select {
	case in := <-got:
		if strings.TrimRight(in, "\r\n") != strings.TrimRight(typed, "\n") {
			t.Errorf("the input was not whole: %d bytes of %d", len(in), len(typed))
		}
	case <-time.After(time.Second):
		t.Error("the command got no input")
	}
}

// TestTrap16StdinAtEOF: the plugin gives up when its standard input is at its end. The endpoint ends the command then, and
// the next session is not disturbed.
func TestTrap16StdinAtEOF(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	started, ended := 0, 0
	count := func(n *int) int {
		mu.Lock()
		defer mu.Unlock()
		return *n
	}
	r := newExecRig(t, func(ctx context.Context, spec ecs.ExecSpec) (int, error) {
		mu.Lock()
		started++
		mu.Unlock()
		if strings.Contains(strings.Join(spec.Command, " "), "wait") {
			<-ctx.Done() // as a process does that is killed when the client has gone
		}
		mu.Lock()
		ended++
		mu.Unlock()
		_, err := io.WriteString(spec.Stdout, "done\r\n")
		return 0, err
	})
	cmd := r.execute("wait", r.plugin) // no Stdin: the null device, which is at its end
	out, err := cmd.CombinedOutput()
	t.Logf("at the end of input: %v\n%s", err, out)
	if !strings.Contains(string(out), "EOF") && !strings.Contains(string(out), "Exiting session") {
		t.Errorf("the CLI did not say why the session ended:\n%s", out)
	}
	r.eventually("the command has ended", func() bool { return count(&ended) == count(&started) })
	if out, err := held(t, r.execute("date", r.plugin), "", ""); err != nil || !strings.Contains(out, "done") {
		t.Errorf("the next session: %v\n%s", err, out)
	}
}

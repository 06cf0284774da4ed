package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

func TestExec(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "exec"})
	c := start(t, s, runtime.ContainerSpec{ID: "exec", Entrypoint: []string{"sleep", "infinity"}, Env: []string{"WHO=container", "KEEP=1"}})
	var out, errOut bytes.Buffer
	code, err := c.Exec(t.Context(), runtime.ExecSpec{
		Command: []string{"sh", "-c", "cat; echo $WHO $KEEP >&2; exit 56"}, Env: []string{"WHO=exec"},
		Stdin: strings.NewReader(strings.Repeat("in", 100_000)), Stdout: &out, Stderr: &errOut,
	})
	if err != nil || code != 56 || out.Len() != 200_000 || errOut.String() != "exec 1\n" {
		t.Errorf("Exec = %d, %v, %d bytes of output and %q", code, err, out.Len(), errOut.String())
	}
	if _, err := c.Exec(t.Context(), runtime.ExecSpec{Command: []string{"nothing"}}); err == nil {
		t.Error("Exec of an unknown program succeeded")
	}
	if code, err := c.Exec(t.Context(), runtime.ExecSpec{Command: []string{"sh", "-c", "kill -9 $$"}}); err != nil || code != 137 {
		t.Errorf("Exec that is killed = %d, %v, want 137", code, err)
	}
	begin := time.Now()
	if code, err := c.Exec(t.Context(), runtime.ExecSpec{Command: []string{"sh", "-c", "sleep 1000 & echo hi"}, Stdout: io.Discard}); err != nil || code != 0 || time.Since(begin) > 10*time.Second {
		t.Errorf("Exec that leaves a process behind = %d, %v after %v", code, err, time.Since(begin))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Exec(ctx, runtime.ExecSpec{Command: []string{"sleep", "1000"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Exec with an ended context = %v, want DeadlineExceeded", err)
	}
	if err := c.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), runtime.ExecSpec{Command: []string{"true"}}); err == nil {
		t.Error("Exec in an ended container succeeded")
	}
}

func TestExecOnATerminal(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "tty"})
	c := sh(t, s, "tty", "sleep 1000")
	in, keys := io.Pipe()
	screen := &syncBuffer{}
	sizes := make(chan runtime.WindowSize, 1)
	sizes <- runtime.WindowSize{Width: 123, Height: 45}
	code := make(chan int, 1)
	go func() {
		n, err := c.Exec(t.Context(), runtime.ExecSpec{Command: []string{"/bin/sh"}, TTY: true, Stdin: in, Stdout: screen, Resize: sizes})
		if err != nil {
			t.Error(err)
		}
		code <- n
	}()
	for _, step := range []struct{ keys, want string }{
		{"tty\n", "/dev/pts/"}, {"echo term=$TERM\n", "term=xterm"}, {"until stty size | grep '45 123'; do :; done\n", "\n45 123"}, {"exit 9\n", ""},
	} {
		if _, err := io.WriteString(keys, step.keys); err != nil {
			t.Fatal(err)
		}
		screen.waitFor(t, step.want)
	}
	select {
	case n := <-code:
		if n != 9 {
			t.Errorf("exit code %d, want 9", n)
		}
	case <-time.After(deadline):
		t.Fatal("the shell did not end")
	}
	_ = keys.Close()
}

func TestAContainerWithATerminal(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "tty-main"})
	c := start(t, s, runtime.ContainerSpec{ID: "tty-main", TTY: true, Entrypoint: []string{"/bin/sh", "-c", "test -t 1 && echo terminal"}})
	if code, _ := wait(t, c); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := logs(t, c, runtime.LogOptions{Tail: -1}); !strings.Contains(got, "terminal") {
		t.Errorf("output %q", got)
	}
}

func TestAttach(t *testing.T) {
	rt := newRuntime(t)
	s := newSandbox(t, rt, runtime.SandboxSpec{ID: "attach"})
	for _, tty := range []bool{false, true} {
		c := start(t, s, runtime.ContainerSpec{ID: fmt.Sprint("attach-", tty), TTY: tty, Stdin: true, Entrypoint: []string{"/bin/sh"}})
		in, keys := io.Pipe()
		screen := &syncBuffer{}
		ended := make(chan error, 1)
		go func() { ended <- c.Attach(t.Context(), runtime.AttachSpec{Stdin: in, StdinOnce: true, Output: screen}) }()
		if _, err := io.WriteString(keys, "echo hi-$((40+2)); printf prompt:\n"); err != nil {
			t.Fatal(err)
		}
		screen.waitFor(t, "hi-42")
		screen.waitFor(t, "prompt:")
		if tty {
			if _, err := io.WriteString(keys, "exit\n"); err != nil {
				t.Fatal(err)
			}
		} else if err := keys.Close(); err != nil { // the shell ends with its input
			t.Fatal(err)
		}
		wait(t, c)
		if err := <-ended; err != nil {
			t.Errorf("Attach = %v", err)
		}
		_ = keys.Close()
		if err := c.Attach(t.Context(), runtime.AttachSpec{Output: screen}); err == nil {
			t.Error("Attach to an ended container succeeded")
		}
	}
	closed := sh(t, s, "closed", "cat; echo end; sleep 1000")
	followUntil(t, closed, "end") // without Stdin the input is empty
	if err := closed.Attach(t.Context(), runtime.AttachSpec{Stdin: strings.NewReader("x"), Output: io.Discard}); err == nil {
		t.Error("Attach to an input that is not open succeeded")
	}
}

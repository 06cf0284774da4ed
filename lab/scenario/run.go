package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options are what a run needs from its caller.
type Options struct {
	Env   []string  // environment of the commands
	Dir   string    // working directory of the commands
	Out   io.Writer // required; where the run is shown
	Color bool
}

// Timing is how long one step took.
type Timing struct {
	Step  Step
	Took  time.Duration
	Tries int
}

// Failure is a step that did not go as the guide says.
type Failure struct {
	Step Step
	Err  error
}

func (f *Failure) Error() string {
	return fmt.Sprintf("step %s (%s) differs from the guide: %v", f.Step.Guide, f.Step.Title, f.Err)
}

func (f *Failure) Unwrap() error { return f.Err }

// retryEvery is the pause between two tries of a step that waits for its condition.
const retryEvery = 200 * time.Millisecond

// Run executes the steps in order and returns how long each took, with a *Failure at the first that differs.
func Run(ctx context.Context, s Scenario, opt Options) ([]Timing, error) {
	var timings []Timing
	for _, st := range s.Steps {
		fmt.Fprintf(opt.Out, "\n%s\n", paint(opt.Color, "1", fmt.Sprintf("== Step %s: %s", st.Guide, st.Title)))
		for line := range strings.Lines(st.Run) {
			fmt.Fprintf(opt.Out, "%s %s", paint(opt.Color, "2", "$"), strings.TrimRight(line, "\n")+"\n")
		}
		start := time.Now()
		tries, err := runStep(ctx, st, opt)
		timings = append(timings, Timing{Step: st, Took: time.Since(start), Tries: tries})
		if err != nil {
			return timings, &Failure{Step: st, Err: err}
		}
	}
	return timings, nil
}

// runStep runs one command. A step that waits shows only its last try; any other is shown as it goes.
func runStep(ctx context.Context, st Step, opt Options) (tries int, err error) {
	within, err := st.within()
	if err != nil {
		return 0, err
	}
	deadline := time.Now().Add(within)
	for {
		tries++
		live := opt.Out
		if within > 0 || st.Quiet {
			live = io.Discard
		}
		exit, out, err := command(ctx, st.Run, opt, live)
		if err != nil {
			return tries, err
		}
		differs := st.Expect.Check(exit, out)
		if differs == nil || within == 0 || time.Now().After(deadline) {
			if live == io.Discard && (differs != nil || !st.Quiet) {
				io.WriteString(opt.Out, out) //nolint:errcheck // nobody to tell
			}
			return tries, differs
		}
		select {
		case <-ctx.Done():
			return tries, context.Cause(ctx)
		case <-time.After(retryEvery):
		}
	}
}

// maxOutput bounds what is kept of one command's output.
const maxOutput = 4 << 20

// command runs text in bash in a process group of its own, so that an interrupt ends all of it.
func command(ctx context.Context, text string, opt Options, live io.Writer) (exit int, out string, err error) {
	c := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", text)
	c.Env, c.Dir = opt.Env, opt.Dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGTERM) }
	c.WaitDelay = 10 * time.Second
	b := &capture{live: live}
	c.Stdout, c.Stderr = b, b
	err = c.Run()
	var exited *exec.ExitError
	if errors.As(err, &exited) && ctx.Err() == nil {
		return exited.ExitCode(), b.String(), nil
	}
	return 0, b.String(), err
}

// capture keeps what is written to it, up to a bound, and passes it on at once.
type capture struct {
	mu   sync.Mutex
	buf  bytes.Buffer // guarded by mu
	live io.Writer
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(p[:min(len(p), maxOutput-c.buf.Len())])
	return c.live.Write(p)
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

func paint(color bool, code, text string) string {
	if !color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

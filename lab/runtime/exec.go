package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
)

// maxExecutions bounds the commands that run in one container at the same time.
const maxExecutions = 128

// execDrain is how long Exec waits for the rest of the output after the command has ended. Processes that the command
// left behind may hold the output open for ever.
const execDrain = 2 * time.Second

// ErrTooManyExecs says that a container runs as many commands as it may.
var ErrTooManyExecs = errors.New("too many commands are running in the container")

// execution is one process that the init started for us. Its fields are set before the channel that announces them is
// closed.
type execution struct {
	started  chan struct{} // closed when it runs or could not be started
	failure  error         // with started: why it could not be started
	terminal *os.File      // with started: the terminal, when it has one
	exited   chan struct{} // closed when it has ended
	code     int           // with exited
}

func newExecution() *execution {
	return &execution{started: make(chan struct{}), exited: make(chan struct{})}
}

// gone marks an execution that ended with its container. Container.mu is held.
func (e *execution) gone() {
	select {
	case <-e.started:
	default:
		if e.failure == nil {
			e.failure = errors.New("the container has ended")
		}
		close(e.started)
	}
	select {
	case <-e.exited:
	default:
		e.code = 128 + int(syscall.SIGKILL)
		close(e.exited)
	}
}

// Exec runs a command in the container and returns its exit code. When ctx ends the command is killed. A command that
// cannot be started is a *CannotStartError. Reading from spec.Stdin may go on until it returns, even after Exec has
// returned.
func (c *Container) Exec(ctx context.Context, spec ExecSpec) (exitCode int, err error) {
	if len(spec.Command) == 0 {
		return 0, errors.New("exec: no command")
	}
	number, e, err := c.newExec()
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.spec.Name, err)
	}
	code, err := c.exec(ctx, spec, number, e)
	if err != nil {
		return code, fmt.Errorf("exec in container %s: %w", c.spec.Name, err)
	}
	return code, nil
}

// newExec reserves a number.
func (c *Container) newExec() (int, *execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return 0, nil, errors.New("container is not running")
	}
	if len(c.execs) > maxExecutions {
		return 0, nil, ErrTooManyExecs
	}
	number, e := c.next, newExecution()
	c.next++
	c.execs[number] = e
	return number, e, nil
}

func (c *Container) dropExec(number int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, number)
}

func (c *Container) exec(ctx context.Context, spec ExecSpec, number int, e *execution) (int, error) {
	m := message{Kind: execMessage, Process: number, Program: &programSpec{Args: spec.Command, Env: spec.Env, Dir: "/", TTY: spec.TTY}}
	if c.spec.WorkingDir != "" {
		m.Program.Dir = c.spec.WorkingDir
	}
	if spec.TTY {
		m.Program.Env = mergeEnv([]string{"TERM=xterm"}, spec.Env)
	}
	var streams execStreams
	defer streams.close()
	var fds []int
	if !spec.TTY {
		theirs, err := streams.open(spec)
		if err != nil {
			c.dropExec(number)
			return 0, err
		}
		defer closeAll(theirs)
		for _, f := range theirs {
			fds = append(fds, int(f.Fd())) // Fd also makes the pipe blocking, as programs expect
		}
		if err := c.wire.send(m, fds...); err != nil {
			c.dropExec(number)
			return 0, err
		}
		closeAll(theirs)
	} else if err := c.wire.send(m); err != nil {
		c.dropExec(number)
		return 0, err
	}
	<-e.started // the init answers, or the container ends
	if e.failure != nil {
		c.dropExec(number)
		code := 0
		if ce, ok := errors.AsType[*CannotStartError](e.failure); ok {
			code = ce.Code
		}
		return code, e.failure
	}
	if spec.TTY {
		streams.useTerminal(e.terminal)
		go resize(ctx, e, spec.Resize)
	}
	streams.copy(spec)
	select {
	case <-e.exited:
	case <-ctx.Done():
		_ = c.wire.send(message{Kind: signalMessage, Process: number, Signal: int(syscall.SIGKILL)}) // the container may have ended
		<-e.exited
	}
	streams.drain()
	if err := ctx.Err(); err != nil {
		return e.code, context.Cause(ctx)
	}
	return e.code, nil
}

// resize applies the sizes of the caller's terminal until the command ends.
func resize(ctx context.Context, e *execution, sizes <-chan WindowSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = pty.Setsize(e.terminal, &pty.Winsize{Cols: size.Width, Rows: size.Height}) // a terminal that has gone needs no size
		case <-e.exited:
			return
		case <-ctx.Done():
			return
		}
	}
}

// execStreams are our ends of a command's standard streams.
type execStreams struct {
	stdin          *os.File
	stdout, stderr *os.File
	output         sync.WaitGroup
	once           sync.Once
}

// open makes the pipes of a command without a terminal and returns the ends that the command gets.
func (s *execStreams) open(spec ExecSpec) (theirs []*os.File, err error) {
	if spec.Stdin == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, null)
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make an input pipe: %w", err)
		}
		s.stdin = w
		theirs = append(theirs, r)
	}
	readers, writers, err := outputPipes()
	if err != nil {
		closeAll(theirs)
		return nil, err
	}
	s.stdout, s.stderr = readers[0], readers[1]
	if sameWriter(spec.Stdout, spec.Stderr) {
		// One pipe for both, so that the order is kept and the writer is not written to by two goroutines.
		closeAll([]*os.File{readers[1], writers[1]})
		s.stderr = nil
		return append(theirs, writers[0], writers[0]), nil
	}
	return append(theirs, writers...), nil
}

// sameWriter reports whether a and b are one and the same writer.
func sameWriter(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a).Comparable() && a == b
}

func (s *execStreams) useTerminal(terminal *os.File) { s.stdin, s.stdout = terminal, terminal }

// copy starts moving data.
func (s *execStreams) copy(spec ExecSpec) {
	for _, o := range []struct {
		from *os.File
		to   io.Writer
	}{{s.stdout, spec.Stdout}, {s.stderr, spec.Stderr}} {
		if o.from == nil {
			continue
		}
		to := o.to
		if to == nil {
			to = io.Discard
		}
		s.output.Go(func() {
			if _, err := io.Copy(to, o.from); err != nil && !errors.Is(err, syscall.EIO) {
				// The caller takes no more. The command must not be blocked by that for ever: let it see a closed
				// pipe. (A terminal whose command has ended reads as EIO.)
				_ = o.from.Close()
			}
		})
	}
	if spec.Stdin == nil || s.stdin == nil {
		return
	}
	go func() {
		_, _ = io.Copy(s.stdin, spec.Stdin) // the command may have ended, or closed its input
		if !spec.TTY {
			_ = s.stdin.Close() // end of input
		}
	}()
}

// drain waits for the rest of the output, but not for ever.
func (s *execStreams) drain() {
	done := make(chan struct{})
	go func() {
		s.output.Wait()
		close(done)
	}()
	timer := time.NewTimer(execDrain)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.close()
		<-done
	}
}

func (s *execStreams) close() {
	s.once.Do(func() { closeAll([]*os.File{s.stdin, s.stdout, s.stderr}) })
}

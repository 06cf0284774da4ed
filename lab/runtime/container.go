package runtime

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// ContainerSpec describes a container.
type ContainerSpec struct {
	// ID is unique within the Runtime.
	ID string
	// Name is the container's name within its pod or task.
	Name string
	// Image is a reference that the catalogue resolves.
	Image string
	// Entrypoint replaces the image's entry point, Command its arguments (Kubernetes: command and args, ECS:
	// entryPoint and command). With an Entrypoint and no Command the image's arguments are dropped.
	Entrypoint []string
	Command    []string
	// Env are NAME=value pairs, over those of the image.
	Env []string
	// WorkingDir is where the program starts. Empty means /.
	WorkingDir string
	// Mounts are files and directories of the lab that the container sees.
	Mounts []Mount
	// TTY gives the program a terminal.
	TTY bool
	// Stdin keeps the program's standard input open for Attach. Without it the program reads an empty input.
	Stdin bool
	// ReadOnlyRoot makes / read-only, beside the mounts.
	ReadOnlyRoot bool
	// Capabilities are the names, such as NET_ADMIN, of what the container's programs may have beyond an ordinary user. Nil
	// leaves them what the lab gives anyway, an empty list leaves none.
	Capabilities []string
	// LogPath is the file of the container's output in CRI format. Empty means one below the Runtime's directory.
	LogPath string
}

// Mount is a file or directory of the lab's file system seen in a container.
type Mount struct {
	// Source is a path in the lab's file system; it must exist.
	Source string
	// Target is an absolute path in the container. What is missing of it is made.
	Target string
	// ReadOnly refuses writes.
	ReadOnly bool
}

// WindowSize is the size of a terminal.
type WindowSize struct {
	Width, Height uint16
}

// ExecSpec describes a command to run in a running container.
type ExecSpec struct {
	Command []string
	// Env are NAME=value pairs, over those of the container.
	Env []string
	// TTY gives the command a terminal; its output is then all on Stdout.
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize carries the sizes of the caller's terminal, with TTY.
	Resize <-chan WindowSize
}

// LogOptions select what Logs writes.
type LogOptions struct {
	// Follow goes on with new lines until the container ends.
	Follow bool
	// Timestamps puts the time before every line.
	Timestamps bool
	// Tail is how many of the last lines to start with; -1 means all.
	Tail int
	// Since leaves older lines out, when it is not zero.
	Since time.Time
}

// CannotStartError says that a container's program could not be started in it.
type CannotStartError struct {
	// Code is 127 when there is no such program and 126 when it cannot be run, as in a shell.
	Code int
	// Reason says what went wrong.
	Reason string
}

// Error returns the reason.
func (e *CannotStartError) Error() string { return e.Reason }

// Container is a running or ended container. Its methods may be called from several goroutines.
type Container struct {
	spec    ContainerSpec
	sandbox *Sandbox
	log     *logFile
	done    chan struct{}

	// Set before Start returns, constant afterwards.
	process   *os.Process
	wire      *wire
	startedAt time.Time
	stdin     *os.File       // with ContainerSpec.Stdin and without a terminal
	terminals sync.WaitGroup // copies the output of the program's terminal

	mu         sync.Mutex
	execs      map[int]*execution   // guarded by mu; by number, the container's own program included
	next       int                  // guarded by mu
	ended      bool                 // guarded by mu; no more executions
	code       int                  // guarded by mu
	signal     string               // guarded by mu
	reported   bool                 // guarded by mu; the init has said how the program ended
	finishedAt time.Time            // guarded by mu
	terminal   *os.File             // guarded by mu; with ContainerSpec.TTY, once the program has started
	viewers    map[*viewer]struct{} // guarded by mu
}

// ID returns the identifier of the container.
func (c *Container) ID() string { return c.spec.ID }

// Name returns the container's name within its pod or task.
func (c *Container) Name() string { return c.spec.Name }

// PID returns the process id of the container's init.
func (c *Container) PID() int { return c.process.Pid }

// StartedAt returns when the program started.
func (c *Container) StartedAt() time.Time { return c.startedAt }

// Done is closed when the container has ended and all of its output is in the log.
func (c *Container) Done() <-chan struct{} { return c.done }

// FinishedAt returns when the container ended, or the zero time while it runs.
func (c *Container) FinishedAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finishedAt
}

// ExitStatus returns the exit code and, when a signal ended the program, its name such as SIGKILL. It is 0 and ""
// until Done is closed.
func (c *Container) ExitStatus() (code int, oomOrSignal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code, c.signal
}

// Signal sends a signal to the container's program. SIGKILL ends the whole container.
func (c *Container) Signal(sig syscall.Signal) error {
	select {
	case <-c.done:
		return fmt.Errorf("signal container %s: %w", c.spec.ID, os.ErrProcessDone)
	default:
	}
	if sig == syscall.SIGKILL {
		c.kill()
		return nil
	}
	return c.wire.send(message{Kind: signalMessage, Process: mainProcess, Signal: int(sig)})
}

// Stop asks the program to end with SIGTERM, and kills the container after grace or when ctx ends. It returns when
// the container has ended.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	if err := c.Signal(syscall.SIGTERM); err != nil {
		c.kill() // its init cannot be reached: it has ended, or soon will have
	}
	select {
	case <-c.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	c.kill()
	<-c.done // a process that was killed is gone, however the caller's patience stands
	return nil
}

// kill ends the container at once. When its init is gone the kernel kills everything else in it.
func (c *Container) kill() { _ = c.process.Kill() } // it may have ended already

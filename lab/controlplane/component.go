package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

const (
	// stopGrace is how long a component may take to end after SIGTERM before it is killed.
	stopGrace = 5 * time.Second
	// readyPoll is how often a component that is not ready is asked again.
	readyPoll = 25 * time.Millisecond
	// attemptTimeout bounds one question.
	attemptTimeout = 2 * time.Second
	// minBackoff and maxBackoff bound the pause before a component that ended by itself is started again.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
	// stableAfter is how long a component must have run for its next end to count as the first.
	stableAfter = 30 * time.Second
)

// ComponentConfig describes one supervised program.
type ComponentConfig struct {
	// Name is shown to people and names the log.
	Name string
	// Path and Args are the program; Args do not include the program's name.
	Path string
	Args []string
	// Env is added to the environment that the lab itself runs in.
	Env []string
	// LogPath is where standard output and error go.
	LogPath string
	// Ready reports nil once the program serves. Nil means ready as soon as it runs.
	Ready func(ctx context.Context) error
	// After must be ready before the program is started for the first time. It may be nil.
	After *Component
	// Log receives the starts and ends. It is required.
	Log *slog.Logger
}

// Component runs one program, and runs it again when it ends by itself, until it is stopped on request.
type Component struct {
	cfg ComponentConfig

	// wake carries a request to look at the wanted state again; its one slot makes a second request redundant.
	wake chan struct{}

	mu       sync.Mutex
	stopped  bool        // guarded by mu: the program is wanted down
	process  *os.Process // guarded by mu: nil while down
	started  time.Time   // guarded by mu
	restarts int         // guarded by mu: starts after the first
	lastErr  string      // guarded by mu: how the program last ended
	ready    chan struct{}
	isReady  bool // guarded by mu
}

// Status is what people see of a component.
type Status struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"`
	Ready    bool      `json:"ready"`
	Stopped  bool      `json:"stopped,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Restarts int       `json:"restarts"`
	RSSBytes int64     `json:"rssBytes,omitempty"`
	LastExit string    `json:"lastExit,omitempty"`
}

// NewComponent returns a component that Run starts.
func NewComponent(cfg ComponentConfig) (*Component, error) {
	switch {
	case cfg.Name == "":
		return nil, errors.New("controlplane: ComponentConfig.Name is required")
	case cfg.Path == "":
		return nil, errors.New("controlplane: ComponentConfig.Path is required")
	case cfg.LogPath == "":
		return nil, errors.New("controlplane: ComponentConfig.LogPath is required")
	case cfg.Log == nil:
		return nil, errors.New("controlplane: ComponentConfig.Log is required")
	}
	cfg.Log = cfg.Log.With(slog.String("component", cfg.Name))
	return &Component{cfg: cfg, wake: make(chan struct{}, 1), ready: make(chan struct{})}, nil
}

// Name returns the component's name.
func (c *Component) Name() string { return c.cfg.Name }

// LogPath returns the file of the component's output.
func (c *Component) LogPath() string { return c.cfg.LogPath }

// Run supervises the program until ctx ends, then stops it and returns nil. It returns an error only when the program
// cannot be started at all.
func (c *Component) Run(ctx context.Context) error {
	// The kernel sends the death signal of a child when the thread that forked it ends, not the process. The thread is
	// therefore kept for as long as the component is supervised.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if c.cfg.After != nil {
		if err := c.cfg.After.WaitReady(ctx); err != nil {
			return nil // only ctx ends the wait
		}
	}
	backoff := minBackoff
	for ctx.Err() == nil {
		if c.wantStopped() {
			select {
			case <-ctx.Done():
			case <-c.wake:
			}
			continue
		}
		ran, err := c.runOnce(ctx)
		if err != nil {
			return err
		}
		if ctx.Err() != nil || c.wantStopped() {
			continue
		}
		if ran > stableAfter {
			backoff = minBackoff
		}
		select {
		case <-ctx.Done():
		case <-c.wake: // a restart was asked for: no pause
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
		c.mu.Lock()
		c.restarts++
		c.mu.Unlock()
	}
	return nil
}

// runOnce starts the program and returns when it has ended.
func (c *Component) runOnce(ctx context.Context) (time.Duration, error) {
	out, err := newLogFile(c.cfg.LogPath, maxLogBytes)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	// SIGTERM first, SIGKILL after the grace period: exec does both when the context ends.
	cmd := exec.CommandContext(ctx, c.cfg.Path, c.cfg.Args...)
	cmd.Env = append(os.Environ(), c.cfg.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", c.cfg.Name, err)
	}
	begin := time.Now()
	c.mu.Lock()
	c.process, c.started = cmd.Process, begin
	c.mu.Unlock()
	c.cfg.Log.Info("component started", slog.Int("pid", cmd.Process.Pid))

	watch, stopWatch := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.watchReady(watch) })
	err = cmd.Wait()
	stopWatch()
	wg.Wait()

	c.mu.Lock()
	c.process = nil
	c.lastErr = "exit status 0"
	if err != nil {
		c.lastErr = err.Error()
	}
	if c.isReady {
		c.isReady, c.ready = false, make(chan struct{})
	}
	c.mu.Unlock()
	if ctx.Err() == nil {
		c.cfg.Log.Warn("component ended", slog.Any("error", err), slog.Duration("after", time.Since(begin)))
	}
	return time.Since(begin), nil
}

// watchReady marks the component ready as soon as its condition holds.
func (c *Component) watchReady(ctx context.Context) {
	if c.cfg.Ready != nil {
		if err := Poll(ctx, c.cfg.Ready); err != nil {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil && !c.isReady {
		c.isReady = true
		close(c.ready)
	}
}

// WaitReady returns nil once the component is ready. When ctx ends first, the error says how the component last ended.
func (c *Component) WaitReady(ctx context.Context) error {
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.lastErr != "" {
			return fmt.Errorf("wait for %s: %w; it last ended with %s, see %s", c.cfg.Name, ctx.Err(), c.lastErr, c.cfg.LogPath)
		}
		return fmt.Errorf("wait for %s: %w; see %s", c.cfg.Name, ctx.Err(), c.cfg.LogPath)
	}
}

// Kill ends the program at once, as a crash would; it is started again.
func (c *Component) Kill() error { return c.signal(syscall.SIGKILL) }

// Restart stops the program in good order and starts it again. A stopped component is started.
func (c *Component) Restart() error {
	c.mu.Lock()
	c.stopped = false
	down := c.process == nil
	c.mu.Unlock()
	c.poke()
	if down {
		return nil
	}
	return c.signal(syscall.SIGTERM)
}

// Stop ends the program and keeps it down until Restart.
func (c *Component) Stop() error {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	c.poke()
	return c.signal(syscall.SIGTERM)
}

// Status returns what is known of the component now.
func (c *Component) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Name: c.cfg.Name, Ready: c.isReady, Stopped: c.stopped, Restarts: c.restarts, LastExit: c.lastErr}
	if c.process != nil {
		s.PID, s.Started = c.process.Pid, c.started
		s.RSSBytes = ResidentBytes(c.process.Pid)
	}
	return s
}

func (c *Component) wantStopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stopped
}

func (c *Component) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Component) signal(s syscall.Signal) error {
	c.mu.Lock()
	p := c.process
	c.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", c.cfg.Name, err)
	}
	return nil
}

// Poll calls f until it returns nil, or ctx ends; the error then tells what f said last.
func Poll(ctx context.Context, f func(context.Context) error) error {
	t := time.NewTicker(readyPoll)
	defer t.Stop()
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := f(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil { // an attempt that was cut short says less than the one before
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last answer: %w)", ctx.Err(), last)
		case <-t.C:
		}
	}
}

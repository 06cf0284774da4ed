package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout bounds how long an init may take to build its root and start the program. It is generous: on a loaded
// machine many start at once.
const startTimeout = 60 * time.Second

// Start starts a container in the sandbox. It returns when the program runs. The error is ErrImageNotFound for an
// image that the lab does not have, and a *CannotStartError for a program that the container does not have.
func (s *Sandbox) Start(ctx context.Context, spec ContainerSpec) (*Container, error) {
	c, err := s.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", spec.Name, err)
	}
	s.rt.cfg.Log.Debug("container started", slog.String("sandbox", s.spec.ID), slog.String("container", spec.Name), slog.Int("pid", c.PID()))
	return c, nil
}

func (s *Sandbox) start(ctx context.Context, spec ContainerSpec) (*Container, error) {
	if spec.ID == "" || strings.ContainsAny(spec.ID, "/\x00") || spec.Image == "" {
		return nil, errors.New("ContainerSpec.ID (without a slash) and Image are required")
	}
	image, err := s.rt.cfg.Images.Resolve(spec.Image)
	if err != nil {
		return nil, err
	}
	first, err := s.firstMessage(image, spec)
	if err != nil {
		return nil, err
	}
	if spec.LogPath == "" {
		spec.LogPath = filepath.Join(s.rt.cfg.Dir, "logs", spec.ID+".log")
	}
	log, err := openLog(spec.LogPath, maxLogSize)
	if err != nil {
		return nil, err
	}
	c := &Container{spec: spec, sandbox: s, log: log, done: make(chan struct{}), execs: map[int]*execution{}, next: mainProcess + 1, viewers: map[*viewer]struct{}{}}
	if err := c.launch(first); err != nil {
		return nil, errors.Join(err, log.close(true))
	}
	if err := c.awaitStart(ctx); err != nil {
		c.kill()
		<-c.done
		return nil, errors.Join(err, s.forget(c))
	}
	c.startedAt = time.Now()
	return c, nil
}

// firstMessage describes the container to its init.
func (s *Sandbox) firstMessage(image Image, spec ContainerSpec) (message, error) {
	args := command(image, spec)
	if len(args) == 0 {
		return message{}, &CannotStartError{Code: exitNotFound, Reason: "no command specified"}
	}
	env := mergeEnv([]string{imagePath, "HOSTNAME=" + s.spec.Hostname, "HOME=/root"}, image.Env)
	if spec.TTY {
		env = mergeEnv(env, []string{"TERM=xterm"})
	}
	dir := spec.WorkingDir
	if dir == "" {
		dir = "/"
	}
	var mounts []Mount
	for path, source := range image.Files {
		mounts = append(mounts, Mount{Source: source, Target: path, ReadOnly: true})
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		mounts = append(mounts, Mount{Source: filepath.Join(s.dir(), name), Target: "/etc/" + name})
	}
	capabilities, err := capabilityNumbers(spec.Capabilities)
	if err != nil {
		return message{}, err
	}
	return message{
		Kind: startMessage,
		Root: &rootSpec{
			MountPoint: rootMountPoint(s.rt.cfg.Dir), Hostname: s.spec.Hostname,
			Mounts: append(mounts, spec.Mounts...), ReadOnly: spec.ReadOnlyRoot, Capabilities: capabilities,
		},
		Program: &programSpec{Args: args, Env: mergeEnv(env, spec.Env), Dir: dir, TTY: spec.TTY},
	}, nil
}

// launch starts the init, hands it its orders and begins to listen to it. When it succeeds, c.done will be closed.
func (c *Container) launch(first message) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make the socket of the container's init: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "init")
	defer theirs.Close()
	w, err := newWire(os.NewFile(uintptr(pair[0]), "init"))
	if err != nil {
		return err
	}
	c.wire = w
	output, files, err := outputPipes()
	if err != nil {
		w.close()
		return err
	}
	defer closeAll(files)
	stdin, err := c.openStdin()
	if err != nil {
		w.close()
		closeAll(output)
		return err
	}
	defer stdin.Close()
	c.execs[mainProcess] = newExecution()
	if err := c.register(func() error {
		return c.spawn([]*os.File{stdin, files[0], files[1], theirs})
	}); err != nil {
		w.close()
		closeAll(append(output, c.stdin))
		return err
	}
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		c.listen()
	}()
	go c.attend(output, listened)
	if err := w.send(first); err != nil {
		c.kill()
		<-c.done
		return errors.Join(err, c.sandbox.forget(c))
	}
	return nil
}

// openStdin returns what the program reads, and keeps the other end when there is one.
func (c *Container) openStdin() (*os.File, error) {
	if !c.spec.Stdin || c.spec.TTY {
		return os.Open(os.DevNull)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make an input pipe: %w", err)
	}
	c.stdin = w
	return r, nil
}

// register runs spawn while the sandbox cannot be closed, and makes the container part of it.
func (c *Container) register(spawn func() error) error {
	s := c.sandbox
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("sandbox %s is closed", s.spec.ID)
	}
	if s.containers[c.spec.ID] != nil {
		return fmt.Errorf("container %s exists already", c.spec.ID)
	}
	if err := spawn(); err != nil {
		return err
	}
	s.containers[c.spec.ID] = c
	return nil
}

// forget takes an ended container out of its sandbox and removes its log.
func (s *Sandbox) forget(c *Container) error {
	s.mu.Lock()
	delete(s.containers, c.spec.ID)
	s.mu.Unlock()
	return c.log.close(true)
}

// spawn starts the init with the given descriptors, in the network namespace of the sandbox.
func (c *Container) spawn(files []*os.File) error {
	s := c.sandbox
	var err error
	s.rt.spawner.do(func() {
		err = s.port.Do(func() error {
			var err error
			c.process, err = os.StartProcess(s.rt.cfg.Executable, []string{s.rt.cfg.Executable, initArgument}, &os.ProcAttr{
				Dir: "/", Env: []string{"GOMAXPROCS=2"}, Files: files,
				Sys: &syscall.SysProcAttr{
					Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
					Pdeathsig:  syscall.SIGKILL, Setsid: true,
				},
			})
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("start the container's init: %w", err)
	}
	return nil
}

// outputPipes makes the pipes of standard output and error: the ends to read from and the ends to hand over.
func outputPipes() (readers, writers []*os.File, err error) {
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(readers)
			closeAll(writers)
			return nil, nil, fmt.Errorf("make an output pipe: %w", err)
		}
		readers, writers = append(readers, r), append(writers, w)
	}
	return readers, writers, nil
}

// awaitStart waits until the init has reported the program's start.
func (c *Container) awaitStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c.mu.Lock()
	main := c.execs[mainProcess]
	c.mu.Unlock()
	select {
	case <-main.started:
		if main.failure != nil {
			return main.failure
		}
		return nil
	case <-c.done:
		if main.failure != nil {
			return main.failure
		}
		return errors.New("the container's init ended before the program started")
	case <-ctx.Done():
		return fmt.Errorf("wait for the program to start: %w", context.Cause(ctx))
	}
}

// listen takes the messages of the init until it has gone.
func (c *Container) listen() {
	for {
		m, files, err := c.wire.receive()
		if err != nil {
			return // attend sees the end of the process itself
		}
		c.mu.Lock()
		e := c.execs[m.Process]
		switch m.Kind {
		case startedMessage:
			if e != nil {
				if len(files) > 0 {
					e.terminal, files = files[0], files[1:]
				}
				if m.Process == mainProcess && e.terminal != nil {
					c.terminal = e.terminal
					c.terminals.Go(func() { c.log.copyFrom(c.tee(e.terminal), "stdout") })
				}
				close(e.started)
			}
		case failedMessage:
			if e != nil {
				e.failure = &CannotStartError{Code: m.Code, Reason: m.Error}
				close(e.started)
			}
		case exitedMessage:
			name := ""
			if m.Signal != 0 {
				name = unix.SignalName(syscall.Signal(m.Signal))
			}
			if m.Process == mainProcess {
				c.code, c.signal, c.reported = m.Code, name, true
			}
			if e != nil {
				e.code = m.Code
				close(e.exited)
				delete(c.execs, m.Process)
			}
		case startMessage, execMessage, signalMessage:
			// Not for this side.
		}
		c.mu.Unlock()
		closeAll(files)
	}
}

// attend writes the container's output to its log and sees to its end.
func (c *Container) attend(output []*os.File, listened <-chan struct{}) {
	copied := make(chan struct{}, len(output))
	for i, stream := range []string{"stdout", "stderr"} {
		go func() {
			c.log.copyFrom(c.tee(output[i]), stream)
			copied <- struct{}{}
		}()
	}
	state, err := c.process.Wait()
	for range output {
		<-copied // the kernel has closed the other ends together with the last process
	}
	<-listened // its last message says how the program ended
	c.terminals.Wait()
	closeAll(append(output, c.stdin))
	c.wire.close()
	c.mu.Lock()
	closeAll([]*os.File{c.terminal})
	c.dropViewers()
	c.finishedAt = time.Now()
	if !c.reported {
		c.code, c.signal = 137, "SIGKILL"
		if err == nil {
			if ws, ok := state.Sys().(syscall.WaitStatus); ok && !ws.Signaled() {
				c.code, c.signal = ws.ExitStatus(), ""
			}
		}
	}
	c.ended = true
	for _, e := range c.execs { // killed together with the init
		e.gone()
	}
	c.mu.Unlock()
	_ = c.log.close(false) // what was written was flushed line by line
	c.sandbox.rt.cfg.Log.Debug("container ended", slog.String("sandbox", c.sandbox.spec.ID), slog.String("container", c.spec.Name), slog.Int("code", c.code))
	close(c.done)
}

// Remove forgets an ended container and its log. The log of a container is otherwise kept until its sandbox closes.
func (c *Container) Remove() error {
	select {
	case <-c.done:
		return c.sandbox.forget(c)
	default:
		return fmt.Errorf("remove container %s: it is running", c.spec.ID)
	}
}

func (c *Container) removeLog() { _ = c.log.close(true) } // the directory goes with the lab

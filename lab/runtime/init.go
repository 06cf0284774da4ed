package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/lab/images"
)

// initArgument is the first argument with which the executable becomes the init of a container.
const initArgument = "container-init"

// initSocket is the descriptor of the socket to the runtime in the init.
const initSocket = 3

// Exit codes of a program that cannot be started, as a shell has them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
)

// MaybeInit runs the programs that the running executable can be started again as: the init of a container and the
// lab's own images. args is os.Args. Call it first in main and in TestMain, and exit with exitCode when handled.
func MaybeInit(args []string) (handled bool, exitCode int) {
	if len(args) < 2 {
		return false, 0
	}
	switch args[1] {
	case initArgument:
		return true, runInit()
	case images.Argument:
		return true, images.Run(args[2:], os.Environ(), os.Stdout, os.Stderr)
	}
	return false, 0
}

// containerInit is process 1 of a container.
type containerInit struct {
	wire *wire
	env  []string // of the container's program; base of what Exec runs
	keep []int    // capabilities of its programs, nil for what the lab gives anyway

	mu    sync.Mutex  // held while starting, so that an end is never seen before its start
	procs map[int]int // guarded by mu; number of a process by its pid
	pids  map[int]int // guarded by mu; the inverse
}

// runInit never returns before the container's program has ended.
func runInit() int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "container-init is started by the lab only")
		return 2
	}
	unix.CloseOnExec(initSocket)
	w, err := newWire(os.NewFile(initSocket, "runtime"))
	if err != nil {
		return exitNotExecutable
	}
	in := &containerInit{wire: w, procs: map[int]int{}, pids: map[int]int{}}
	first, _, err := w.receive()
	if err != nil || first.Kind != startMessage || first.Root == nil || first.Program == nil {
		return exitNotExecutable // the runtime has gone: nobody to tell
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	if err := buildRoot(*first.Root); err != nil {
		return in.fail(mainProcess, exitNotExecutable, err)
	}
	in.env, in.keep = first.Program.Env, first.Root.Capabilities
	if code, err := in.start(mainProcess, *first.Program, []*os.File{os.Stdin, os.Stdout, os.Stderr}); err != nil {
		return in.fail(mainProcess, code, err)
	}
	// What building the root took is not needed again, and there is one init per container.
	debug.SetGCPercent(20)
	debug.FreeOSMemory()
	go in.forward(signals)
	go in.serve()
	return in.reap()
}

func (in *containerInit) fail(process, code int, err error) int {
	_ = in.wire.send(message{Kind: failedMessage, Process: process, Code: code, Error: err.Error()}) // a runtime that has gone needs no answer
	return code
}

// forward passes signals that were sent to the init itself on to the program.
func (in *containerInit) forward(signals <-chan os.Signal) {
	for s := range signals {
		if n, ok := s.(syscall.Signal); ok {
			in.kill(mainProcess, n)
		}
	}
}

// serve handles the requests of the runtime. When the runtime goes the container ends at once.
func (in *containerInit) serve() {
	for {
		m, files, err := in.wire.receive()
		if err != nil {
			in.kill(mainProcess, syscall.SIGKILL)
			return
		}
		switch m.Kind {
		case signalMessage:
			in.kill(m.Process, syscall.Signal(m.Signal))
		case execMessage:
			in.exec(m, files)
		case startMessage, startedMessage, failedMessage, exitedMessage:
			// Not for an init that runs already.
		}
		closeAll(files)
	}
}

func (in *containerInit) exec(m message, files []*os.File) {
	if m.Program == nil || (!m.Program.TTY && len(files) != maxDescriptors) {
		in.fail(m.Process, exitNotExecutable, errors.New("request without program or descriptors"))
		return
	}
	p := *m.Program
	p.Env = mergeEnv(in.env, p.Env)
	if code, err := in.start(m.Process, p, files); err != nil {
		in.fail(m.Process, code, err)
	}
}

// kill sends a signal to a process if it still runs.
func (in *containerInit) kill(process int, s syscall.Signal) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if pid, ok := in.pids[process]; ok {
		_ = syscall.Kill(pid, s) // it may have ended this moment
	}
}

// start runs a program with the standard descriptors std, or on a new terminal, and reports its start. A nil file
// means /dev/null.
func (in *containerInit) start(process int, p programSpec, std []*os.File) (code int, err error) {
	path, code, err := lookPath(p.Args[0], p.Env)
	if err != nil {
		return code, err
	}
	_ = os.MkdirAll(p.Dir, 0o755) // a working directory that cannot be made is reported by the start below
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return exitNotExecutable, fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	defer null.Close()
	attr := &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: &syscall.SysProcAttr{Setsid: true}}
	var master *os.File
	if p.TTY {
		m, terminal, err := pty.Open()
		if err != nil {
			return exitNotExecutable, fmt.Errorf("open a terminal: %w", err)
		}
		defer terminal.Close()
		defer m.Close()
		master = m
		std = []*os.File{terminal, terminal, terminal}
		attr.Sys.Setctty = true
	}
	for _, f := range std {
		if f == nil {
			f = null
		}
		attr.Files = append(attr.Files, f.Fd())
	}
	// A program of the container cannot gain privileges by the host's set-user-id files. A child has what its parent's
	// thread has, and it does no harm on the init's own threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return exitNotExecutable, fmt.Errorf("give up gaining privileges: %w", err)
	}
	if err := dropCapabilities(in.keep); err != nil {
		return exitNotExecutable, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	pid, err := syscall.ForkExec(path, p.Args, attr)
	if err != nil {
		return exitNotExecutable, fmt.Errorf("start %q in %q: %w", path, p.Dir, err)
	}
	in.procs[pid], in.pids[process] = process, pid
	var fds []int
	if master != nil {
		fds = append(fds, int(master.Fd()))
	}
	_ = in.wire.send(message{Kind: startedMessage, Process: process}, fds...) // serve notices when the runtime has gone
	return 0, nil
}

// reap collects every process that ends in the container, orphans included, until the container's program has ended.
func (in *containerInit) reap() int {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return exitNotExecutable // no children although the program was not seen to end: cannot happen
		}
		in.mu.Lock()
		process, ours := in.procs[pid]
		delete(in.procs, pid)
		if ours {
			delete(in.pids, process)
		}
		in.mu.Unlock()
		if !ours {
			continue
		}
		m := message{Kind: exitedMessage, Process: process, Code: status.ExitStatus()}
		if status.Signaled() {
			m.Signal = int(status.Signal())
			m.Code = 128 + m.Signal
		}
		_ = in.wire.send(m) // the runtime may have gone
		if process == mainProcess {
			return m.Code
		}
	}
}

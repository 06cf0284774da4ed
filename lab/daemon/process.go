package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// The arguments with which the program starts itself again: process 1 of the lab, which does nothing but reap, and the
// lab's daemon, its only child. Apart, because a process that waits for children it does not know takes the exit
// status from those parts of the program that do know them.
const (
	commandInit  = "_init"
	commandServe = "_serve"
)

// The descriptors that the lab inherits, in this order from 3 on.
const (
	fdLock = 3 + iota
	fdControl
	fdKube
	fdAWS
	fdReport // a pipe on which a failure to start is reported
)

// MaybeInternal runs the program as a part of the lab when args, those after the program's name, ask for it.
func MaybeInternal(args []string) (handled bool, exitCode int) {
	if len(args) != 2 {
		return false, 0
	}
	switch args[0] {
	case commandInit:
		return true, runInit(Dir(args[1]))
	case commandServe:
		return true, runServe(Dir(args[1]))
	}
	return false, 0
}

// runInit is process 1 of the lab. When it ends, the kernel kills every process of the lab.
func runInit(dir Dir) int {
	files := inherited(fdReport)
	report := files[len(files)-1]
	fail := func(err error) int {
		writeReport(report, err)
		fmt.Fprintln(os.Stderr, "isthmus-lab:", err)
		return 1
	}
	if err := enterRoot(dir); err != nil {
		return fail(err)
	}
	self, err := os.Executable()
	if err != nil {
		return fail(fmt.Errorf("find the running executable: %w", err))
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGCHLD)

	runtime.LockOSThread() // the child dies with the thread that starts it
	cmd := exec.Command(self, commandServe, string(dir))
	cmd.ExtraFiles = files
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fail(fmt.Errorf("start the lab's daemon: %w", err))
	}
	for _, f := range files { // a copy here would keep the lock and the listeners
		f.Close()
	}
	return reap(cmd.Process.Pid, signals)
}

// reap waits for all children, own and orphaned, until the main one ends, and passes signals on to that one.
func reap(main int, signals <-chan os.Signal) int {
	for s := range signals {
		if s != unix.SIGCHLD {
			_ = unix.Kill(main, s.(syscall.Signal)) // it may just have ended
			continue
		}
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || pid == 0 {
				break
			}
			if pid == main {
				return status.ExitStatus()
			}
		}
	}
	return 1
}

// inherited returns the inherited descriptors up to last, marked so that no further program inherits them by accident.
func inherited(last int) []*os.File {
	var files []*os.File
	for fd := fdLock; fd <= last; fd++ {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("inherited-%d", fd)))
	}
	return files
}

// failure is a diag.Error on its way between processes.
type failure struct {
	Code    string `json:"code,omitempty"`
	Summary string `json:"summary,omitempty"`
	Cause   string `json:"cause"`
	Fix     string `json:"fix,omitempty"`
}

func newFailure(err error) *failure {
	var e *diag.Error
	if errors.As(err, &e) {
		return &failure{Code: string(e.Code), Summary: e.Summary, Cause: e.Cause, Fix: e.Fix}
	}
	return &failure{Cause: err.Error()}
}

// err turns the failure into the error it was made from.
func (f *failure) err() error {
	if f.Code == "" {
		return errors.New(f.Cause)
	}
	e := diag.New(diag.Code(f.Code), f.Cause)
	e.Summary, e.Fix = f.Summary, f.Fix
	return e
}

// writeReport sends the reason why the lab could not start to the program that starts it.
func writeReport(w io.Writer, err error) {
	_ = json.NewEncoder(w).Encode(newFailure(err)) // the log has it as well
}

// readReport returns the failure that the lab reported before it ended; nil when it reported none.
func readReport(r io.Reader) error {
	var f failure
	if err := json.NewDecoder(io.LimitReader(r, 64<<10)).Decode(&f); err != nil {
		return nil
	}
	return f.err()
}

package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

const (
	// downTimeout is how long `down` waits for a lab that was asked to end before it kills it.
	downTimeout = 10 * time.Second
	// lockTimeout bounds the wait for the lock of a lab that has ended.
	lockTimeout = 5 * time.Second
	// pollEvery is how often a lab is looked at that cannot be waited for otherwise.
	pollEvery = 20 * time.Millisecond
	// logTail is how much of the daemon's log is shown when the lab ends before it can say why.
	logTail = 2 << 10
)

// UpResult says what Up found or did.
type UpResult struct {
	// AlreadyRunning is set when a lab ran before.
	AlreadyRunning bool
	// CleanedUp is set when what a crashed lab had left behind was removed first.
	CleanedUp bool
	// Took is how long the start took, in a lab that was started now or earlier.
	Took time.Duration
}

// Up starts the lab in dir and returns when it is ready. onEvent hears of every step. A lab that runs already is left
// alone, and one that is starting is waited for. When the start fails or ctx ends, nothing is left but the logs.
func Up(ctx context.Context, dir Dir, onEvent func(Event)) (UpResult, error) {
	var result UpResult
	if err := os.MkdirAll(string(dir), 0o700); err != nil {
		return result, fmt.Errorf("make the state directory: %w", err)
	}
	lock, err := dir.lock()
	if errors.Is(err, errLocked) {
		result.AlreadyRunning = true
		last, err := NewClient(dir).Follow(ctx, onEvent)
		if err != nil {
			return result, err
		}
		result.Took = last.Elapsed
		return result, last.Err()
	}
	if err != nil {
		return result, err
	}
	defer lock.Close()
	result.CleanedUp = dir.stale()
	if err := dir.clean(false); err != nil {
		return result, fmt.Errorf("remove what an earlier lab left behind: %w", err)
	}
	programs, err := FindPrograms()
	if err != nil {
		return result, err
	}
	process, err := launch(dir, programs, lock)
	if err != nil {
		return result, errors.Join(err, dir.clean(true))
	}
	lock.Close() // the lab has its own copy, which must be the last
	last, err := NewClient(dir).Follow(ctx, onEvent)
	if err == nil {
		err = last.Err()
	} else if ctx.Err() == nil {
		err = process.explain(dir, err)
	}
	process.report.Close()
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		return result, errors.Join(err, end(stop, dir, true))
	}
	result.Took = last.Elapsed
	return result, nil
}

// launched is a lab that was started by this process.
type launched struct {
	report *os.File
}

// launch opens the lab's ports on the host and starts process 1 of the lab.
func launch(dir Dir, programs Programs, lock *os.File) (*launched, error) {
	if err := os.MkdirAll(dir.Logs(), 0o700); err != nil {
		return nil, fmt.Errorf("make the log directory: %w", err)
	}
	if err := dir.link(programs); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(dir.Log("daemon"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	control, err := dir.listenControl()
	if err != nil {
		return nil, err
	}
	defer control.Close()
	kube, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open a port for the Kubernetes API: %w", err)
	}
	defer kube.Close()
	aws, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open a port for the AWS endpoint: %w", err)
	}
	defer aws.Close()
	report, reportWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open a pipe: %w", err)
	}
	defer reportWriter.Close()

	files := []*os.File{lock}
	for _, l := range []interface{ File() (*os.File, error) }{control, kube.(*net.TCPListener), aws.(*net.TCPListener)} {
		f, err := l.File()
		if err != nil {
			report.Close()
			return nil, fmt.Errorf("hand a listener on: %w", err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if err := dir.writeAWSProfiles("http://" + aws.Addr().String()); err != nil {
		report.Close()
		return nil, err
	}
	pid, err := startInit(programs.Self, dir, append(files, reportWriter), log)
	if err != nil {
		report.Close()
		return nil, err
	}
	state := State{PID: pid, Started: time.Now().UTC(), KubeAddr: kube.Addr().String(), AWSAddr: aws.Addr().String()}
	if err := dir.writeState(state); err != nil {
		report.Close()
		return nil, errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	return &launched{report: report}, nil
}

// startInit starts process 1 of the lab in new namespaces. Root goes on without a user namespace where there are none:
// it does not need one.
func startInit(self string, dir Dir, files []*os.File, log *os.File) (pid int, err error) {
	for _, userNamespace := range []bool{true, false} {
		cmd := exec.Command(self, commandInit, string(dir))
		cmd.Dir = "/"
		cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = files, log, log
		if err = inNamespaces(cmd, userNamespace); err != nil {
			return 0, err
		}
		if err = cmd.Start(); err == nil {
			// The lab is meant to outlive this process; until then its end must not leave a zombie.
			go func() { _ = cmd.Wait() }()
			return cmd.Process.Pid, nil
		}
		if os.Geteuid() != 0 {
			break
		}
	}
	return 0, namespacesRefused(fmt.Errorf("start the lab in namespaces of its own: %w", err), readSetting)
}

// explain finds out why the lab ended before its start did.
func (l *launched) explain(dir Dir, err error) error {
	if l.report.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		if reported := readReport(l.report); reported != nil {
			return reported
		}
	}
	text := "the lab's daemon ended unexpectedly"
	if tail := tailOf(dir.Log("daemon"), logTail); tail != "" {
		text += "; the end of its log:\n" + tail
	}
	e := diag.New(diag.LabComponentFailed, text)
	e.Err = err
	return e.WithFix("read its log: %s", dir.Log("daemon"))
}

// tailOf returns the last whole lines of a file, n bytes at most.
func tailOf(path string, n int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	start := max(0, info.Size()-n)
	b, err := io.ReadAll(io.NewSectionReader(f, start, n))
	if err != nil {
		return ""
	}
	if start > 0 {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return string(bytes.TrimSpace(b))
}

// Down ends the lab in dir, waits until all of it is gone, and removes its files. It reports whether there was
// anything to end or to remove.
func Down(ctx context.Context, dir Dir) (found bool, err error) {
	if _, err := os.Stat(string(dir)); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	found = dir.stale()
	if lock, err := dir.lock(); errors.Is(err, errLocked) {
		found = true
	} else if err != nil {
		return found, err
	} else {
		lock.Close()
	}
	return found, end(ctx, dir, false)
}

// end stops a lab in good order, or kills it when it does not answer in time, and removes its files. The lab is gone
// when its process 1 is: the kernel ends that process only after every other process of the lab.
func end(ctx context.Context, dir Dir, keepLogs bool) error {
	state, running, err := dir.ReadState()
	if err != nil {
		return err
	}
	if lock, err := dir.lock(); err == nil { // nobody holds it: crashed, or never started
		defer lock.Close()
		if running && processIsLab(state.PID, dir) { // between its last breath and its end
			if err := waitGone(ctx, state.PID); err != nil {
				return err
			}
		}
		return dir.clean(keepLogs)
	} else if !errors.Is(err, errLocked) {
		return err
	}
	if !running {
		return diag.New(diag.LabAlreadyRunning, "another command is starting or stopping the lab").WithFix("wait for it and try again")
	}
	graceful, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	err = NewClient(dir).Stop(graceful)
	if err == nil {
		err = waitGone(graceful, state.PID)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && processIsLab(state.PID, dir) {
		if err := unix.Kill(state.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill the lab's process %d: %w", state.PID, err)
		}
		if err := waitGone(ctx, state.PID); err != nil {
			return err
		}
	}
	lock, err := dir.waitLock(ctx)
	if err != nil {
		return fmt.Errorf("the lab's processes are gone, but its lock is held: %w", err)
	}
	defer lock.Close()
	return dir.clean(keepLogs)
}

// processIsLab reports whether pid is process 1 of the lab in dir, and not another process that got its number.
func processIsLab(pid int, dir Dir) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !processAlive(pid) {
		return false
	}
	argv := bytes.Split(bytes.TrimRight(b, "\x00"), []byte{0})
	return len(argv) == 3 && string(argv[1]) == commandInit && string(argv[2]) == string(dir)
}

// waitGone returns when the process has ended.
func waitGone(ctx context.Context, pid int) error {
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for processAlive(pid) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the lab's process %d to end: %w", pid, ctx.Err())
		case <-t.C:
		}
	}
	return nil
}

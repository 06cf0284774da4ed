package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DirVariable names the environment variable that overrides the state directory.
const DirVariable = "ISTHMUS_LAB_DIR"

// Dir is the state directory of one lab. Everything the lab keeps on the host's file system is below it.
//
//	lab.json      where the lab's addresses are; written at up, removed at down
//	lock          locked by the lab for as long as it lives: the truth about whether a lab runs
//	control.sock  the control API
//	kubeconfig    of the administrator, for the host
//	aws/          configuration and credentials of the AWS accounts' administrators, one profile each
//	bin/          kubectl, istioctl and the lab's own programs under their usual names
//	logs/         one log per component; kept when the lab could not start
//	run/          keys, etcd and container roots: a tmpfs that exists only inside the lab
type Dir string

// DefaultDir returns the state directory that the environment asks for.
func DefaultDir(getenv func(string) string) (Dir, error) {
	if d := getenv(DirVariable); d != "" {
		abs, err := filepath.Abs(d)
		if err != nil {
			return "", fmt.Errorf("state directory %q: %w", d, err)
		}
		return Dir(abs), nil
	}
	base := getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // the XDG specification tells to ignore a relative one
		home := getenv("HOME")
		if home == "" {
			return "", fmt.Errorf("find the state directory: neither %s, XDG_STATE_HOME nor HOME is set", DirVariable)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return Dir(filepath.Join(base, "isthmus", "lab")), nil
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// Kubeconfig is the administrator's kubeconfig for the host.
func (d Dir) Kubeconfig() string { return d.path("kubeconfig") }

// AWSConfig and AWSCredentials are the files that AWS's own tools read profiles from.
func (d Dir) AWSConfig() string { return filepath.Join(d.path("aws"), "config") }

// AWSCredentials holds the access keys of the accounts' administrators.
func (d Dir) AWSCredentials() string { return filepath.Join(d.path("aws"), "credentials") }

// Bin holds kubectl, istioctl and the lab's own programs under their usual names.
func (d Dir) Bin() string { return d.path("bin") }

// Logs holds one log per component.
func (d Dir) Logs() string { return d.path("logs") }

// Log returns the log of a component.
func (d Dir) Log(component string) string { return filepath.Join(d.Logs(), component+".log") }

func (d Dir) run() string       { return d.path("run") }
func (d Dir) stateFile() string { return d.path("lab.json") }

// State is what lab.json holds.
type State struct {
	// PID is the lab's process 1, as the host numbers it.
	PID int `json:"pid"`
	// Started is when `up` started the lab.
	Started time.Time `json:"started"`
	// KubeAddr and AWSAddr are host:port on the host's loopback.
	KubeAddr string `json:"kubeAddr"`
	AWSAddr  string `json:"awsAddr"`
}

// ReadState returns the state of the lab; ok is false when there is none.
func (d Dir) ReadState() (state State, ok bool, err error) {
	b, err := os.ReadFile(d.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, fmt.Errorf("read the lab's state: %w", err)
	}
	if err := json.Unmarshal(b, &state); err != nil {
		return State{}, false, fmt.Errorf("read the lab's state in %s: %w", d.stateFile(), err)
	}
	return state, true, nil
}

// writeState replaces lab.json as a whole, so that a reader never sees half of it.
func (d Dir) writeState(s State) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the lab's state: %w", err)
	}
	temporary := d.path("lab.json.new")
	if err := os.WriteFile(temporary, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	if err := os.Rename(temporary, d.stateFile()); err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	return nil
}

// errLocked says that a lab runs in the directory, or is being started or stopped.
var errLocked = errors.New("the lab's lock is held")

// lock takes the lock of the directory without waiting. The lock lasts until every copy of the descriptor is closed,
// the one that the lab inherits included.
func (d Dir) lock() (*os.File, error) {
	f, err := os.OpenFile(d.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lab's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", d.path("lock"), err)
	}
	return f, nil
}

// waitLock takes the lock of a lab whose process 1 has ended. The kernel reports a process as ended before the last of its
// threads has closed its descriptors, so the lock may be held for a moment more.
func (d Dir) waitLock(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		f, err := d.lock()
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-t.C:
		}
	}
}

// stale reports whether a lab has left something behind that a new one would stumble over.
func (d Dir) stale() bool {
	for _, name := range []string{"lab.json", "control.sock", "run"} {
		if _, err := os.Lstat(d.path(name)); err == nil {
			return true
		}
	}
	return false
}

// clean removes what a lab keeps on the host. The caller holds the lock. Only names that a lab makes are removed, in
// case somebody points the lab at a directory with other things in it.
func (d Dir) clean(keepLogs bool) error {
	names := []string{"lab.json", "lab.json.new", "control.sock", "kubeconfig", "aws", "bin", "run"}
	if !keepLogs {
		names = append(names, "logs")
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, os.RemoveAll(d.path(name)))
	}
	return errors.Join(errs...)
}

// maxSocketPath is how long the path of a Unix socket may be, without the final zero.
const maxSocketPath = 107

// socketPath returns a path for the control socket that fits into a socket address, however long the path of the
// directory is: when it is too long, the path goes through a descriptor of the directory, which done closes.
func (d Dir) socketPath() (path string, done func(), err error) {
	path = d.path("control.sock")
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	f, err := os.Open(string(d))
	if err != nil {
		return "", nil, fmt.Errorf("open the state directory: %w", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) + "/control.sock", func() { f.Close() }, nil
}

// listenControl opens the control socket.
func (d Dir) listenControl() (*net.UnixListener, error) {
	path, done, err := d.socketPath()
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // the lab goes on using it when the starter closes its copy
	return l, nil
}

// dialControl connects to the control socket.
func (d Dir) dialControl() (net.Conn, error) {
	path, done, err := d.socketPath()
	if err != nil {
		return nil, err
	}
	defer done()
	return net.Dial("unix", path)
}

// processAlive reports whether the process exists and is not a zombie.
func processAlive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, after, ok := strings.Cut(string(b), ") ")
	return ok && !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

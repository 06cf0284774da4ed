// Package netnstest runs the tests of a package inside namespaces of their own: as the user who runs them without a
// user namespace when that is root, and as an unprivileged user in a user namespace. It is for tests only.
package netnstest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside marks the process that runs in the namespaces; its value says as whom.
const inside = "ISTHMUS_TEST_NAMESPACE"

// nobody is the unprivileged user of the second run.
const nobody = 65534

// Main runs the tests of m in new mount, process, network, host name and IPC namespaces, and returns the exit code.
// Run by root it runs them twice: as root, and as nobody in a new user namespace. Run by another user it runs them
// once, in a user namespace. Tests must call it from TestMain after anything that the executable can be restarted as.
func Main(m *testing.M) int {
	if os.Getenv(inside) != "" {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the test's namespaces:", err)
			return 1
		}
		return m.Run()
	}
	if os.Getuid() != 0 {
		return report(again(os.Args[1:], "user", nil))
	}
	code := report(again(os.Args[1:], "root", nil))
	if code != 0 {
		return code
	}
	return report(againAsNobody())
}

// As returns as whom the tests run: "root" without a user namespace, or "user" or "nobody" in one.
func As() string { return os.Getenv(inside) }

func report(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "FAIL: the tests need new namespaces, and this machine refuses them:", err)
	return 1
}

// again starts the test binary in new namespaces, with a user namespace unless it runs as root.
func again(args []string, as string, change func(*exec.Cmd)) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"="+as)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if as != "root" {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if change != nil {
		change(cmd)
	}
	return cmd.Run()
}

// againAsNobody runs a copy of the test binary, which nobody may read, first as nobody and from there in a user
// namespace: a user namespace that root made would not show what an unprivileged user may do.
func againAsNobody() (err error) {
	dir, err := os.MkdirTemp("", "isthmus-test-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "test")
	if err := copyFile(exe, program); err != nil {
		return err
	}
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.Mkdir(tmp, 0o700), os.Chown(tmp, nobody, nobody), os.Chmod(dir, 0o755)); err != nil {
		return err
	}
	// Files that the go command asked for belong to root; the first run has written them.
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool {
		return strings.HasPrefix(a, "-test.testlogfile") || strings.HasPrefix(a, "-test.coverprofile") || strings.HasPrefix(a, "-test.gocoverdir")
	})
	cmd := exec.Command(program, args...)
	cmd.Dir = tmp
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + tmp, "HOME=" + tmp}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "ISTHMUS_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// prepare makes the mounts private and gives the namespace its own /proc.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

package daemon

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// namespaceFlags are the namespaces of a lab besides the user namespace.
const namespaceFlags = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// inNamespaces makes cmd start as process 1 of new namespaces, in a session of its own so that it outlives the
// terminal. With a user namespace the process is root inside and has no more rights outside than the caller.
func inNamespaces(cmd *exec.Cmd, userNamespace bool) error {
	attr := &syscall.SysProcAttr{Cloneflags: namespaceFlags, Setsid: true}
	cmd.SysProcAttr = attr
	if !userNamespace {
		return nil
	}
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	if os.Geteuid() != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
		return nil
	}
	// Root keeps all users, or files that belong to others, such as the home directory of the person who called
	// sudo, would be out of reach.
	var err error
	if attr.UidMappings, err = sameIDs("/proc/self/uid_map"); err != nil {
		return err
	}
	attr.GidMappings, err = sameIDs("/proc/self/gid_map")
	attr.GidMappingsEnableSetgroups = true
	return err
}

// sameIDs maps every user or group that exists in this namespace to itself.
func sameIDs(file string) ([]syscall.SysProcIDMap, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the mapping of users: %w", err)
	}
	defer f.Close()
	var all []syscall.SysProcIDMap
	for scanner := bufio.NewScanner(f); scanner.Scan(); {
		var inside, outside, size int
		if _, err := fmt.Sscan(scanner.Text(), &inside, &outside, &size); err != nil {
			return nil, fmt.Errorf("read the mapping of users in %s: %w", file, err)
		}
		all = append(all, syscall.SysProcIDMap{ContainerID: inside, HostID: inside, Size: size})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("read the mapping of users: %s is empty", file)
	}
	return all, nil
}

// namespacesRefused explains why the kernel did not make the namespaces. read returns the text of a kernel setting,
// or "" where it does not exist.
func namespacesRefused(err error, read func(path string) string) error {
	e := diag.Wrap(diag.LabNamespacesRefused, err)
	setting := func(path string) string { return strings.TrimSpace(read(path)) }
	switch {
	case setting("/proc/sys/user/max_user_namespaces") == "0":
		e.Cause = "this machine allows no user namespaces: user.max_user_namespaces is 0"
		return e.WithFix("sudo sysctl -w user.max_user_namespaces=15000")
	case setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		e.Cause = "this machine allows user namespaces to root only: kernel.unprivileged_userns_clone is 0"
		return e.WithFix("sudo sysctl -w kernel.unprivileged_userns_clone=1")
	case setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		e.Cause = "AppArmor takes the rights away from user namespaces: kernel.apparmor_restrict_unprivileged_userns is 1"
		return e.WithFix("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
	case errors.Is(err, unix.ENOSPC):
		e.Cause = "the limit of namespaces is reached, or namespaces are nested too deeply: " + err.Error()
		return e.WithFix("raise user.max_user_namespaces and its neighbours (sysctl -a -r 'user.max_.*namespaces'), or leave one level of containers")
	case errors.Is(err, unix.EINVAL):
		e.Cause = "the kernel is built without one of the namespaces the lab needs: " + err.Error()
		return e.WithFix("use a kernel with CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, CONFIG_UTS_NS and CONFIG_IPC_NS")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Cause = "making namespaces is not permitted here: " + err.Error()
		return e.WithFix("inside a container, start it with --security-opt seccomp=unconfined --security-opt systempaths=unconfined (or --privileged); elsewhere, run as root")
	}
	return e
}

// readSetting returns the text of a kernel setting, or "" where it does not exist.
func readSetting(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// enterRoot prepares the mounts and the host name of the lab. It runs as process 1 of the new namespaces.
func enterRoot(dir Dir) error {
	// From here on no mount of the lab shows on the host, and none of the host in the lab.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return namespacesRefused(fmt.Errorf("make mounts private: %w", err), readSetting)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return namespacesRefused(fmt.Errorf("mount /proc: %w", err), readSetting)
	}
	if err := os.MkdirAll(dir.run(), 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir.run(), err)
	}
	if err := unix.Mount("isthmus-lab", dir.run(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir.run(), err)
	}
	if err := unix.Sethostname([]byte("isthmus-lab")); err != nil {
		return fmt.Errorf("set the host name of the lab: %w", err)
	}
	return nil
}

package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hostDirs are the directories of the host that every container sees, read-only. What else a distribution may keep
// its programs in is here too; what is missing is left out.
func hostDirs() []string {
	return []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libexec", "/etc", "/opt", "/nix", "/gnu"}
}

// ownLinks are symbolic links of the private part of a container's root.
func ownLinks() map[string]string {
	return map[string]string{"/var/run": "/run", "/var/lock": "/run/lock"}
}

// maxLinks bounds the symbolic links followed in one path, as the kernel does.
const maxLinks = 40

// root builds the file system of a container below dir, in the mount namespace of the calling process. Nothing can be
// created in a directory that is bound read-only from the host, so a host directory on the way to a mount target that
// does not exist is opened up: it becomes a directory of the container's own, and its entries are bound one by one.
type root struct {
	dir    string
	opened map[string]bool // host directories to open up
	mounts []Mount         // with resolved targets, parents first
}

// buildRoot makes the root that spec describes and moves the process into it. It must run in a mount namespace of its
// own; on an error the process is of no further use.
func buildRoot(spec rootSpec) error {
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", spec.Hostname, err)
	}
	unix.Umask(0)
	defer unix.Umask(0o022)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", spec.MountPoint, "tmpfs", unix.MS_NOSUID, "mode=755,size=1g"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	r := &root{dir: spec.MountPoint, opened: map[string]bool{}}
	if err := r.plan(spec.Mounts); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"bind the host's directories", r.bindHost},
		{"make the private directories", r.makeOwn},
		{"make /dev", r.makeDev},
		{"mount /proc and /sys", r.mountKernel},
		{"mount volumes", r.bindMounts},
		{"make the root read-only", func() error { return r.seal(spec.ReadOnly) }},
		{"enter the root", r.enter},
	} {
		if err := step.run(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// hostBacked reports whether a path of the container is the host's.
func hostBacked(path string) bool {
	return slices.ContainsFunc(hostDirs(), func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") })
}

// plan resolves the targets of the mounts and decides which host directories have to be opened up.
func (r *root) plan(mounts []Mount) error {
	for _, m := range mounts {
		if !filepath.IsAbs(m.Target) || filepath.Clean(m.Target) == "/" {
			return fmt.Errorf("mount target %q is not an absolute path below /", m.Target)
		}
		src, err := os.Stat(m.Source)
		if err != nil {
			return fmt.Errorf("mount source of %s: %w", m.Target, err)
		}
		target, err := resolveTarget(m.Target)
		if err != nil {
			return err
		}
		m.Target = target
		r.mounts = append(r.mounts, m)
		if !hostBacked(target) {
			continue
		}
		if have, err := os.Lstat(target); err == nil && have.Mode()&fs.ModeSymlink == 0 && have.IsDir() == src.IsDir() {
			continue // can be mounted over where it is
		}
		for d := filepath.Dir(target); d != "/"; d = filepath.Dir(d) {
			r.opened[d] = true
		}
	}
	slices.SortStableFunc(r.mounts, func(a, b Mount) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	return nil
}

// resolveTarget follows the symbolic links of the directories on the way to target, as the container will see them.
// The last component is not followed: a mount replaces a link.
func resolveTarget(target string) (string, error) {
	own := ownLinks()
	done, rest := "/", strings.Split(strings.Trim(filepath.Clean(target), "/"), "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(done, rest[0])
		rest = rest[1:]
		link, isLink := own[next]
		if !isLink && hostBacked(next) {
			if l, err := os.Readlink(next); err == nil {
				link, isLink = l, true
			}
		}
		if !isLink || len(rest) == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("mount target %q: too many symbolic links", target)
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(done, link)
		}
		done = "/"
		rest = append(strings.Split(strings.Trim(filepath.Clean(link), "/"), "/"), rest...)
	}
	return done, nil
}

// in returns the place of a container path while the root is being built.
func (r *root) in(path string) string { return filepath.Join(r.dir, path) }

func (r *root) bindHost() error {
	for _, d := range hostDirs() {
		if err := r.bindHostEntry(d); err != nil {
			return err
		}
	}
	// NixOS keeps the names of its programs here.
	if _, err := os.Stat("/run/current-system"); err == nil {
		if err := os.MkdirAll(r.in("/run/current-system"), 0o755); err != nil {
			return err
		}
		if err := bind("/run/current-system", r.in("/run/current-system")); err != nil {
			return err
		}
	}
	return r.setReadOnlyBelow()
}

// bindHostEntry makes one file, directory or link of the host appear in the container.
func (r *root) bindHostEntry(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		if r.opened[path] {
			return os.MkdirAll(r.in(path), 0o755)
		}
		return nil // not on this host, or gone this moment
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(link, r.in(path))
	case st.IsDir() && r.opened[path]:
		if err := os.Mkdir(r.in(path), 0o755); err != nil {
			return err
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := r.bindHostEntry(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
		return nil
	case st.IsDir():
		if err := os.Mkdir(r.in(path), 0o755); err != nil {
			return err
		}
		return bind(path, r.in(path))
	case st.Mode().IsRegular():
		if err := touch(r.in(path)); err != nil {
			return err
		}
		return bind(path, r.in(path))
	}
	return nil // sockets, pipes and devices are not for containers
}

// setReadOnlyBelow makes everything bound so far read-only, and the root itself writable again.
func (r *root) setReadOnlyBelow() error {
	if err := setReadOnly(r.dir); err != nil {
		return err
	}
	return setWritable(r.dir)
}

func (r *root) makeOwn() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{"/tmp", 0o777 | os.ModeSticky}, {"/run", 0o755}, {"/run/lock", 0o755}, {"/root", 0o700}, {"/home", 0o755}, {"/var", 0o755},
		{"/var/tmp", 0o777 | os.ModeSticky}, {"/var/log", 0o755}, {"/var/cache", 0o755}, {"/var/lib", 0o755}, {"/mnt", 0o755},
		{"/proc", 0o755}, {"/sys", 0o755}, {"/dev", 0o755}, {"/dev/pts", 0o755}, {"/dev/shm", 0o777 | os.ModeSticky},
	} {
		if err := os.MkdirAll(r.in(d.path), d.mode); err != nil {
			return err
		}
	}
	for path, to := range ownLinks() {
		if err := os.Symlink(to, r.in(path)); err != nil {
			return err
		}
	}
	return nil
}

func (r *root) makeDev() error {
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := touch(r.in("/dev/" + name)); err != nil {
			return err
		}
		if err := bind("/dev/"+name, r.in("/dev/"+name)); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", r.in("/dev/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, r.in("/dev/"+name)); err != nil {
			return err
		}
	}
	return nil
}

// mountKernel mounts /proc and /sys. A lab inside a container of others may not mount new ones (its own are masked);
// then the lab's are bound instead, which show more processes but work.
func (r *root) mountKernel() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", r.in("/proc"), "proc", flags, ""); err != nil {
		if bindErr := bind("/proc", r.in("/proc")); bindErr != nil {
			return errors.Join(fmt.Errorf("mount /proc: %w", err), bindErr)
		}
	}
	if err := unix.Mount("sysfs", r.in("/sys"), "sysfs", flags|unix.MS_RDONLY, ""); err != nil {
		if bindErr := bind("/sys", r.in("/sys")); bindErr != nil {
			return errors.Join(fmt.Errorf("mount /sys: %w", err), bindErr)
		}
		return setReadOnly(r.in("/sys"))
	}
	return nil
}

// bindMounts mounts the volumes, parents first. They become read-only only when all are there, because the targets of
// some may have to be made inside others.
func (r *root) bindMounts() error {
	for _, m := range r.mounts {
		if err := r.bindMount(m); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
		}
	}
	for _, m := range r.mounts {
		if m.ReadOnly {
			if err := setReadOnly(r.in(m.Target)); err != nil {
				return fmt.Errorf("make %s read-only: %w", m.Target, err)
			}
		}
	}
	return nil
}

func (r *root) bindMount(m Mount) error {
	src, err := os.Stat(m.Source)
	if err != nil {
		return err
	}
	at := r.in(m.Target)
	if have, err := os.Lstat(at); err == nil && have.Mode()&fs.ModeSymlink != 0 {
		if err := os.Remove(at); err != nil {
			return err
		}
	}
	if src.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(at), 0o755); err == nil {
		err = touch(at)
	}
	if err != nil {
		return err
	}
	return bind(m.Source, at)
}

// seal makes the container's own part of the root read-only if that was asked for.
func (r *root) seal(readOnly bool) error {
	if !readOnly {
		return nil
	}
	return unix.Mount("", r.dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID, "")
}

// enter makes the new root the root of the process and lets go of the old one.
func (r *root) enter() error {
	if err := unix.Chdir(r.dir); err != nil {
		return err
	}
	// With both arguments the same the old root ends up on top of the new one, and needs no directory there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// touch makes an empty file unless there is one.
func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// bind makes the file or directory at source, with everything mounted below it, appear at target.
func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	return nil
}

// setReadOnly makes the mount at path and all mounts below it read-only.
func setReadOnly(path string) error {
	err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if !errors.Is(err, unix.ENOSYS) {
		if err != nil {
			return fmt.Errorf("set read-only: %w", err)
		}
		return nil
	}
	return remountReadOnly(path) // a kernel older than 5.12
}

// setWritable makes the mount at path alone writable. Only mounts of the container's own may become so.
func setWritable(path string) error {
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("set writable: %w", err)
	}
	return nil
}

// remountReadOnly does what setReadOnly does, mount by mount. A flag that a mount has must be given again: in a user
// namespace the kernel refuses to take it away.
func remountReadOnly(path string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	flags := map[string]uintptr{
		"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 {
			continue
		}
		at := unescapeMount(fields[4])
		if at != path && !strings.HasPrefix(at, path+"/") {
			continue
		}
		flag := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY)
		for option := range strings.SplitSeq(fields[5], ",") {
			flag |= flags[option]
		}
		if err := unix.Mount("", at, "", flag, ""); err != nil {
			return fmt.Errorf("remount %s read-only: %w", at, err)
		}
	}
	return nil
}

// unescapeMount undoes the octal escapes of mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

package runtime

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// capabilityNames are Linux's capabilities in the order of their numbers.
func capabilityNames() []string {
	return []string{
		"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE",
		"NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
		"SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE",
		"MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
	}
}

// capabilityNumbers turns names into numbers. Nil stays nil, which means what the runtime gives anyway.
func capabilityNumbers(names []string) ([]int, error) {
	if names == nil {
		return nil, nil
	}
	all := capabilityNames()
	out := []int{}
	for _, n := range names {
		i := slices.Index(all, n)
		if i < 0 {
			return nil, fmt.Errorf("no capability %q", n)
		}
		out = append(out, i)
	}
	return out, nil
}

// dropCapabilities takes from the programs that the calling thread starts what would change the machine rather than
// the lab, and all that is not in keep unless that is nil. In a user namespace the first mean nothing; in a lab that root
// runs without one they prevent accidents. They are no security boundary: containers of the lab are programs that its
// user trusts.
func dropCapabilities(keep []int) error {
	drop := []int{
		unix.CAP_SYS_MODULE, unix.CAP_SYS_RAWIO, unix.CAP_SYS_BOOT, unix.CAP_SYS_TIME, unix.CAP_MKNOD, unix.CAP_MAC_ADMIN,
		unix.CAP_MAC_OVERRIDE, unix.CAP_WAKE_ALARM, unix.CAP_BLOCK_SUSPEND,
	}
	if keep != nil {
		for i := range capabilityNames() {
			if !slices.Contains(keep, i) {
				drop = append(drop, i)
			}
		}
	}
	for _, c := range drop {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: an older kernel
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

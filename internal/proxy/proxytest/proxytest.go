// Package proxytest lets tests of the data plane work on the proxy's real ports, in a network namespace of their own,
// without privileges. Nothing but tests imports it.
package proxytest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inside marks the process that runs in the namespace.
const inside = "ISTHMUS_PROXYTEST_INSIDE"

// Main runs the tests of a package in a new network namespace whose loopback has the addresses. It works as root and,
// where user namespaces are allowed, as anybody. It fails where they are not: a test that is not run proves nothing.
func Main(m *testing.M, addrs ...netip.Addr) int {
	if os.Getenv(inside) == "" {
		return enter()
	}
	runtime.LockOSThread()
	if err := prepare(addrs); err != nil {
		fmt.Fprintf(os.Stderr, "proxytest: prepare the namespace: %v\n", err)
		return 1
	}
	runtime.UnlockOSThread()
	return m.Run()
}

func enter() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintf(os.Stderr, "proxytest: %v\n", err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	runtime.LockOSThread() // Pdeathsig is tied to the thread that starts the child
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "proxytest: user and network namespaces are needed and not available here: %v\n", err)
		return 1
	}
	return 0
}

func prepare(addrs []netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range addrs {
		ipn := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		// A fuzzing worker is a child of a process that is inside already.
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipn}); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	return nil
}

// Curl runs the real curl and returns what it printed on stdout and stderr, and its exit code.
func Curl(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "10"}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"} // no proxy of the environment
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errOut.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("run curl: %v", err)
	}
	return out.String(), errOut.String(), 0
}

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The helpers. Each prints a line when it is at work, and ends when its standard input does.
const (
	helperSniff = "sniff"
	helperBlock = "block"
)

const helperReady = "ready"

// helper is a helper that runs.
type helper struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// startHelper starts this test binary as a helper inside the lab's network namespace, and waits until it is at work.
func (w *world) startHelper(t *testing.T, name string, args ...string) *helper {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	enter := []string{"-t", strconv.Itoa(w.pid), "-n"}
	// Without user namespaces of its own, which only root's lab can be, there is none to enter.
	if ours, theirs := userNamespace(t, "self"), userNamespace(t, strconv.Itoa(w.pid)); ours != theirs {
		enter = append(enter, "-U", "--preserve-credentials")
	}
	h := &helper{cmd: exec.Command("nsenter", append(append(enter, self), args...)...)}
	h.cmd.Env, h.cmd.Stderr = append(os.Environ(), helperVariable+"="+name), os.Stderr
	in, err := h.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.stdin, h.out = in, bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatalf("start the helper %s (nsenter is part of util-linux): %v", name, err)
	}
	t.Cleanup(func() { in.Close() })
	if line, err := h.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != helperReady {
		t.Fatalf("the helper %s says %q, %v", name, line, err)
	}
	return h
}

func userNamespace(t *testing.T, pid string) string {
	t.Helper()
	link, err := os.Readlink("/proc/" + pid + "/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// end ends the helper and returns what it has printed.
func (h *helper) end(t *testing.T) []byte {
	t.Helper()
	if err := h.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(h.out)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Wait(); err != nil {
		t.Fatalf("helper: %v", err)
	}
	return out
}

// maxFrame is more than any frame is long, segmentation offload included.
const maxFrame = 128 << 10

// sniff prints every IPv4 packet that passes any interface of this network namespace from one of two addresses to the
// other, each after its length.
func sniff(args []string) error {
	var pair [2]netip.Addr
	for i := range pair {
		addr, err := netip.ParseAddr(args[i])
		if err != nil {
			return err
		}
		pair[i] = addr
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	// Nothing may be lost on a busy machine.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return fmt.Errorf("set a timeout: %w", err)
	}
	fmt.Fprintln(os.Stdout, helperReady)
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	out, frame := bufio.NewWriter(os.Stdout), make([]byte, maxFrame)
	for {
		n, _, err := unix.Recvfrom(fd, frame, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			select {
			case <-ended: // and the queue is empty
				return checkDrops(fd, out)
			default:
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("receive a packet: %w", err)
		}
		src, dst, ok := endpoints(frame[:n])
		if !ok || !(src == pair[0] && dst == pair[1] || src == pair[1] && dst == pair[0]) {
			continue
		}
		if _, err := out.Write(binary.BigEndian.AppendUint32(nil, uint32(n))); err != nil {
			return err
		}
		if _, err := out.Write(frame[:n]); err != nil {
			return err
		}
	}
}

// checkDrops fails when the kernel had to drop packets: what was not seen proves nothing.
func checkDrops(fd int, out *bufio.Writer) error {
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("read the statistics: %w", err)
	}
	if stats.Drops > 0 {
		return fmt.Errorf("the kernel dropped %d of %d packets", stats.Drops, stats.Packets)
	}
	return out.Flush()
}

// endpoints returns the addresses of an IPv4 packet.
func endpoints(packet []byte) (src, dst netip.Addr, ok bool) {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return src, dst, false
	}
	return netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20])), true
}

// block makes a TCP port of the lab's own unreachable, as when the machine that serves it is gone: packets vanish.
func block(args []string) error {
	port, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "e2e-outage"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(port))},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("block port %d: %w", port, err)
	}
	fmt.Fprintln(os.Stdout, helperReady)
	_, _ = io.Copy(io.Discard, os.Stdin)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("open port %d again: %w", port, err)
	}
	return nil
}

// Package inpod lets a node proxy work inside the network namespaces of pods: it speaks ZDS, by which the CNI agent
// hands over a namespace per pod, and opens sockets in them.
//
// ZDS is one protobuf message per packet on a SOCK_SEQPACKET unix socket. The agent listens. A proxy connects, says
// hello, gets all pods of the node, then "snapshot sent", then changes; it answers every message, in order. The
// descriptor of a pod's namespace travels with the message that adds it.
package inpod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod/zdspb"
)

// MaxMessage is the most bytes a message may have.
const MaxMessage = 1024

// Workload is one pod to serve.
type Workload struct {
	UID            string
	Name           string
	Namespace      string
	ServiceAccount string
}

// Handler is told which pods to serve. Calls come one at a time.
type Handler interface {
	// Add starts serving a pod whose network namespace is ns, or goes over to that namespace if the pod is served
	// already. The Handler owns ns. An error is reported to the agent, and the call repeated later.
	Add(ctx context.Context, w Workload, ns *os.File) error
	// Remove stops serving a pod at once: its namespace is about to vanish.
	Remove(uid string)
	// Synced is called with true when a snapshot is complete and none of its pods is waiting for another attempt, and
	// with false when that is no longer so or the agent is lost.
	Synced(ok bool)
}

// errProtocol is wrapped by the errors that mean the other end does not speak ZDS.
var errProtocol = errors.New("zds protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, args...))
}

// packet is a received message and the descriptors that came with it.
type packet struct {
	data []byte
	fds  []*os.File
}

func (p *packet) close() {
	for _, f := range p.fds {
		f.Close()
	}
	p.fds = nil
}

// receive reads one packet. More descriptors than any message may have, or a packet cut short, is a violation.
func receive(c *net.UnixConn) (*packet, error) {
	const maxFDs = 4 // one more than needed would do; what does not fit is closed by the kernel and marked as cut
	buf := make([]byte, MaxMessage+1)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	p := &packet{data: buf[:n]}
	if err := p.takeFDs(oob[:oobn]); err != nil {
		p.close()
		return nil, err
	}
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		p.close()
		return nil, violation("descriptors cut off")
	case flags&unix.MSG_TRUNC != 0 || n > MaxMessage:
		p.close()
		return nil, violation("message longer than %d bytes", MaxMessage)
	case n == 0:
		p.close()
		return nil, net.ErrClosed // the end of a SOCK_SEQPACKET connection
	}
	return p, nil
}

func (p *packet) takeFDs(oob []byte) error {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return violation("control data: %v", err)
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return violation("control data: %v", err)
		}
		for _, fd := range fds {
			p.fds = append(p.fds, os.NewFile(uintptr(fd), "netns"))
		}
	}
	return nil
}

// send writes one message with at most one descriptor.
func send(c *net.UnixConn, m proto.Message, f *os.File) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode zds message: %w", err)
	}
	if len(data) > MaxMessage {
		return fmt.Errorf("zds message of %d bytes is longer than %d", len(data), MaxMessage)
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	if _, _, err := c.WriteMsgUnix(data, oob, nil); err != nil {
		return fmt.Errorf("send zds message: %w", err)
	}
	return nil
}

// request is a decoded WorkloadRequest: exactly one of its kinds.
type request struct {
	kind requestKind
	w    Workload
	info bool     // the pod's names were given
	ns   *os.File // for add
}

type requestKind int

const (
	kindAdd requestKind = iota
	kindKeep
	kindDel
	kindSnapshotSent
)

// decodeRequest understands what an agent sent; on success it takes the descriptor from p.
func decodeRequest(p *packet) (request, error) {
	var m zdspb.WorkloadRequest
	if err := proto.Unmarshal(p.data, &m); err != nil {
		return request{}, violation("decode request: %v", err)
	}
	var r request
	switch t := m.GetPayload().(type) {
	case *zdspb.WorkloadRequest_Add:
		info := t.Add.GetWorkloadInfo()
		r = request{kind: kindAdd, info: info != nil, w: Workload{
			UID: t.Add.GetUid(), Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount(),
		}}
	case *zdspb.WorkloadRequest_Keep:
		r = request{kind: kindKeep, w: Workload{UID: t.Keep.GetUid()}}
	case *zdspb.WorkloadRequest_Del:
		r = request{kind: kindDel, w: Workload{UID: t.Del.GetUid()}}
	case *zdspb.WorkloadRequest_SnapshotSent:
		r = request{kind: kindSnapshotSent}
	default:
		return request{}, violation("request of unknown kind")
	}
	want := 0
	if r.kind == kindAdd {
		want = 1
	}
	if len(p.fds) != want {
		return request{}, violation("%d descriptors with a message that has %d", len(p.fds), want)
	}
	if want == 1 {
		r.ns, p.fds = p.fds[0], nil
	}
	return r, nil
}

// netnsID tells network namespaces apart.
type netnsID struct{ dev, ino uint64 }

func idOf(f *os.File) (netnsID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return netnsID{}, fmt.Errorf("stat network namespace: %w", err)
	}
	return netnsID{st.Dev, st.Ino}, nil
}

// duplicate returns a second descriptor of the same open file.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

package runtime

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The runtime and a container's init talk over a Unix stream socket: a length of four bytes, then a JSON message.
// Descriptors travel with the length.

// maxMessage bounds a message; a container with that much environment could not be started anyway.
const maxMessage = 4 << 20

// maxDescriptors is the largest number of descriptors of one message: standard input, output and error.
const maxDescriptors = 3

// mainProcess is the number of the container's own program; Exec counts up from there.
const mainProcess = 0

// message is what both sides send. Which fields matter depends on Kind.
type message struct {
	Kind messageKind `json:"kind"`
	// Process is the number of the process that the message is about.
	Process int `json:"process,omitempty"`
	// Root is what the init builds, in startMessage.
	Root *rootSpec `json:"root,omitempty"`
	// Program is what to run, in startMessage and execMessage.
	Program *programSpec `json:"program,omitempty"`
	// Signal is the number of the signal to send, in signalMessage, or that ended the process, in exitedMessage.
	Signal int `json:"signal,omitempty"`
	// Code is the exit code, in exitedMessage and failedMessage.
	Code int `json:"code,omitempty"`
	// Error says why a process could not be started, in failedMessage.
	Error string `json:"error,omitempty"`
}

type messageKind string

const (
	startMessage   messageKind = "start"   // to init: build the root and run the program; the first message
	execMessage    messageKind = "exec"    // to init: run another program; with descriptors unless it has a terminal
	signalMessage  messageKind = "signal"  // to init: send a signal to a process
	startedMessage messageKind = "started" // from init: the process runs; with the terminal's descriptor if it has one
	failedMessage  messageKind = "failed"  // from init: the process could not be started
	exitedMessage  messageKind = "exited"  // from init: the process has ended
)

// programSpec is a program to run inside a container.
type programSpec struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	TTY  bool     `json:"tty,omitempty"`
}

// rootSpec is the root file system, the host name and the rights of a container.
type rootSpec struct {
	MountPoint string  `json:"mountPoint"`
	Hostname   string  `json:"hostname"`
	Mounts     []Mount `json:"mounts"`
	ReadOnly   bool    `json:"readOnly,omitempty"`
	// Capabilities are the numbers of those that programs get; null means what the lab gives anyway, none is an empty list.
	Capabilities []int `json:"capabilities"`
}

// wire sends and receives messages on one end of the socket. send may be called from several goroutines, receive
// from one.
type wire struct {
	conn *net.UnixConn
	mu   sync.Mutex // held while sending
}

// newWire takes over f.
func newWire(f *os.File) (*wire, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open the socket of the container's init: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("open the socket of the container's init: it is a %T", c), c.Close())
	}
	return &wire{conn: u}, nil
}

func (w *wire) send(m message, fds ...int) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message %s: %w", m.Kind, err)
	}
	if len(body) > maxMessage {
		return fmt.Errorf("send message %s: %d bytes are more than %d", m.Kind, len(body), maxMessage)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, _, err := w.conn.WriteMsgUnix(head, rights, nil); err != nil {
		return fmt.Errorf("send message %s: %w", m.Kind, err)
	}
	if _, err := w.conn.Write(body); err != nil {
		return fmt.Errorf("send message %s: %w", m.Kind, err)
	}
	return nil
}

// receive returns the next message and its descriptors, which the caller closes. io.EOF means that the other side has
// closed the socket.
func (w *wire) receive() (message, []*os.File, error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, oobn, _, _, err := w.conn.ReadMsgUnix(head, oob)
	if err != nil {
		return message{}, nil, err
	}
	if n == 0 {
		return message{}, nil, io.EOF
	}
	files, err := parseRights(oob[:oobn])
	if err != nil {
		return message{}, nil, err
	}
	m, err := w.body(head, n)
	if err != nil {
		closeAll(files)
		return message{}, nil, err
	}
	return m, files, nil
}

// body reads the rest of a message of whose length n bytes have been read.
func (w *wire) body(head []byte, n int) (message, error) {
	var m message
	if _, err := io.ReadFull(w.conn, head[n:]); err != nil {
		return m, fmt.Errorf("receive message: %w", err)
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxMessage {
		return m, fmt.Errorf("receive message: %d bytes are more than %d", size, maxMessage)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(w.conn, body); err != nil {
		return m, fmt.Errorf("receive message: %w", err)
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, fmt.Errorf("receive message: %w", err)
	}
	return m, nil
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for i := range controls {
		fds, err := unix.ParseUnixRights(&controls[i])
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("receive descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func (w *wire) close() { _ = w.conn.Close() } // nothing buffered can be lost

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // only descriptors are let go
		}
	}
}

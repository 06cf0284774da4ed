package ecs

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"
)

// ErrImageNotFound is what Runtime.CheckImage wraps for an image the lab does not have.
var ErrImageNotFound = errors.New("image not found")

// Runtime is what tasks run on.
type Runtime interface {
	// CheckImage fails with ErrImageNotFound when the image cannot be run.
	CheckImage(ref string) error
	NewSandbox(ctx context.Context, spec SandboxSpec) (Sandbox, error)
}

// SandboxSpec is the network namespace of a task.
type SandboxSpec struct {
	ID, Hostname string
	Addr         netip.Addr
}

// Sandbox holds the containers of a task. Close kills what is left in it and frees its address.
type Sandbox interface {
	Start(ctx context.Context, spec ContainerSpec) (Container, error)
	Close() error
}

// ContainerSpec is one container to start.
type ContainerSpec struct {
	ID, Name, Image     string
	Entrypoint, Command []string
	Env                 []string
	WorkingDir          string
	Mounts              []Mount
	TTY, ReadOnlyRoot   bool
	Capabilities        []string // all that the container has
}

// Mount is a directory of the lab seen in a container.
type Mount struct {
	Source, Target string
	ReadOnly       bool
}

// Container is a started container.
type Container interface {
	Done() <-chan struct{}
	// ExitStatus is valid once Done is closed.
	ExitStatus() (code int, signal string)
	Stop(ctx context.Context, grace time.Duration) error
	Exec(ctx context.Context, spec ExecSpec) (exitCode int, err error)
	// Follow writes the output of the container, one line per Write call at least, until the container ends.
	Follow(ctx context.Context, w io.Writer) error
}

// WindowSize is the size of a terminal.
type WindowSize struct{ Width, Height uint16 }

// ExecSpec is a command to run in a container.
type ExecSpec struct {
	Command        []string
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan WindowSize
}

package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/creack/pty"
)

// maxViewerChunks bounds what a slow viewer of a container's output may be behind. One that is further behind is cut
// off, because the container must not wait for it.
const maxViewerChunks = 256

// ErrTooSlow says that an attached client did not take the container's output fast enough.
var ErrTooSlow = errors.New("the client does not take the container's output fast enough")

// AttachSpec describes a client of a running container's standard streams.
type AttachSpec struct {
	// Stdin is sent to the program, if it was started with Stdin.
	Stdin io.Reader
	// StdinOnce closes the program's input at the end of Stdin.
	StdinOnce bool
	// Output takes what the program prints from now on, on both of its streams.
	Output io.Writer
	// Resize carries the sizes of the caller's terminal, if the program has one.
	Resize <-chan WindowSize
}

// viewer is a client that sees the output.
type viewer struct {
	chunks chan []byte   // closed when there is no more
	slow   chan struct{} // closed when it was cut off
}

// Attach connects a client to the container's standard streams until the container or ctx ends.
func (c *Container) Attach(ctx context.Context, spec AttachSpec) error {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return fmt.Errorf("attach to container %s: it is not running", c.spec.Name)
	}
	v := &viewer{chunks: make(chan []byte, maxViewerChunks), slow: make(chan struct{})}
	c.viewers[v] = struct{}{}
	terminal := c.terminal
	c.mu.Unlock()
	defer c.drop(v)
	input := c.stdin
	if terminal != nil {
		input = terminal
		sizes, stop := context.WithCancel(ctx)
		defer stop()
		go c.resizeTerminal(sizes, terminal, spec.Resize)
	}
	if spec.Stdin != nil && input == nil {
		return fmt.Errorf("attach to container %s: its standard input is not open", c.spec.Name)
	}
	if spec.Stdin != nil {
		go func() {
			_, err := io.Copy(input, spec.Stdin)
			if err == nil && spec.StdinOnce && terminal == nil {
				_ = input.Close() // end of input
			}
		}()
	}
	for {
		select {
		case chunk, ok := <-v.chunks:
			if !ok {
				return nil
			}
			if _, err := spec.Output.Write(chunk); err != nil {
				return fmt.Errorf("attach to container %s: %w", c.spec.Name, err)
			}
		case <-v.slow:
			return fmt.Errorf("attach to container %s: %w", c.spec.Name, ErrTooSlow)
		case <-ctx.Done():
			return nil
		}
	}
}

// resizeTerminal applies the sizes of an attached client's terminal.
func (c *Container) resizeTerminal(ctx context.Context, terminal *os.File, sizes <-chan WindowSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = pty.Setsize(terminal, &pty.Winsize{Cols: size.Width, Rows: size.Height}) // a terminal that has gone needs no size
		case <-c.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// drop forgets a viewer.
func (c *Container) drop(v *viewer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.viewers, v)
}

// dropViewers tells all viewers that there is no more output. c.mu is held.
func (c *Container) dropViewers() {
	for v := range c.viewers {
		close(v.chunks)
		delete(c.viewers, v)
	}
}

// tee shows what is read from r to the viewers.
func (c *Container) tee(r io.Reader) io.Reader { return &teeReader{c: c, r: r} }

type teeReader struct {
	c *Container
	r io.Reader
}

func (t *teeReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		t.c.show(p[:n])
	}
	return n, err
}

// show hands output to every viewer, and cuts off those that are too slow.
func (c *Container) show(output []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for v := range c.viewers {
		select {
		case v.chunks <- append([]byte{}, output...):
		default:
			close(v.slow)
			delete(c.viewers, v)
		}
	}
}

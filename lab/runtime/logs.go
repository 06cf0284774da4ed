package runtime

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLogSize is the size at which a container's log is turned over; one older file is kept.
const maxLogSize = 10 << 20

// maxLogLine is the longest line in one entry of the log. A longer line is several entries, marked as parts.
const maxLogLine = 16 << 10

// The tags of the CRI log format: an entry is "<time> <stream> <tag> <text>".
const (
	tagFull    = "F"
	tagPartial = "P"
)

// logFile is the output of a container in CRI format, with a bound.
type logFile struct {
	path string
	max  int64

	mu      sync.Mutex
	f       *os.File      // guarded by mu; nil after close
	size    int64         // guarded by mu
	turn    int           // guarded by mu; how often the file was turned over
	changed chan struct{} // guarded by mu; closed at the next change
	closed  bool          // guarded by mu
}

func openLog(path string, limit int64) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of log %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &logFile{path: path, max: limit, f: f, changed: make(chan struct{})}, nil
}

// copyFrom writes everything that r yields as entries of stream.
func (l *logFile) copyFrom(r io.Reader, stream string) {
	in := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			tag := tagPartial
			if line[len(line)-1] == '\n' {
				tag, line = tagFull, line[:len(line)-1]
			} else if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				tag = tagFull // the last line, without an end
			}
			l.write(stream, tag, line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// write appends one entry. A full disk loses output rather than stopping the container.
func (l *logFile) write(stream, tag string, text []byte) {
	entry := make([]byte, 0, len(text)+48)
	entry = time.Now().UTC().AppendFormat(entry, time.RFC3339Nano)
	entry = append(entry, ' ')
	entry = append(append(append(append(entry, stream...), ' '), tag...), ' ')
	entry = append(append(entry, text...), '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return
	}
	if l.size > 0 && l.size+int64(len(entry)) > l.max {
		l.turnOver()
	}
	n, _ := l.f.Write(entry)
	l.size += int64(n)
	close(l.changed)
	l.changed = make(chan struct{})
}

// turnOver moves the file away and starts a new one. l.mu is held. When that fails the old file goes on.
func (l *logFile) turnOver() {
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return
	}
	_ = l.f.Close() // every entry was written through
	l.f, l.size = f, 0
	l.turn++
}

// close ends the log; its readers see the end. With remove the files go too.
func (l *logFile) close(remove bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if !l.closed {
		l.closed = true
		err = l.f.Close()
		l.f = nil
		close(l.changed)
	}
	if remove {
		for _, p := range []string{l.path, l.path + ".1"} {
			if rmErr := os.Remove(p); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
				err = errors.Join(err, rmErr)
			}
		}
	}
	return err
}

// state returns what a reader has to know to go on.
func (l *logFile) state() (turn int, closed bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turn, l.closed, l.changed
}

// Logs writes the container's output as opt selects. The container may have ended.
func (c *Container) Logs(ctx context.Context, opt LogOptions, w io.Writer) error {
	if err := c.log.read(ctx, opt, w); err != nil {
		return fmt.Errorf("logs of container %s: %w", c.spec.Name, err)
	}
	return nil
}

// read writes the entries to w: first what is there, then, with Follow, what comes.
func (l *logFile) read(ctx context.Context, opt LogOptions, w io.Writer) error {
	l.mu.Lock()
	turn := l.turn
	old, _ := os.Open(l.path + ".1")
	cur, err := os.Open(l.path)
	l.mu.Unlock()
	if old != nil {
		defer old.Close()
	}
	if err != nil {
		return err
	}
	defer func() { _ = cur.Close() }() // cur changes below
	sources := []*os.File{cur}
	if old != nil {
		sources = []*os.File{old, cur}
	}
	out := &entryWriter{w: w, opt: opt}
	var last *entryReader
	tail := newRing(opt.Tail)
	for _, f := range sources {
		last = &entryReader{r: bufio.NewReaderSize(f, 64<<10)}
		for entry := last.next(); entry != nil; entry = last.next() {
			if out.wanted(entry) {
				if err := tail.push(entry, out.write); err != nil {
					return err
				}
			}
		}
	}
	if err := tail.flush(out.write); err != nil {
		return err
	}
	for opt.Follow {
		now, closed, changed := l.state()
		for entry := last.next(); entry != nil; entry = last.next() {
			if err := out.write(entry); err != nil {
				return err
			}
		}
		if now != turn {
			next, err := os.Open(l.path)
			if err != nil {
				return err
			}
			_ = cur.Close() // read to its end
			cur, turn = next, now
			last = &entryReader{r: bufio.NewReaderSize(cur, 64<<10)}
			continue
		}
		if closed {
			return nil
		}
		if f, ok := w.(interface{ Flush() }); ok {
			f.Flush()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// entryReader reads whole entries and keeps the beginning of one whose rest is not written yet.
type entryReader struct {
	r       *bufio.Reader
	partial []byte
}

// next returns the next whole entry with its end of line, or nil when there is none now. The caller may keep it.
func (e *entryReader) next() []byte {
	line, err := e.r.ReadBytes('\n')
	e.partial = append(e.partial, line...)
	if err != nil {
		return nil
	}
	entry := e.partial
	e.partial = nil
	return entry
}

// entryWriter writes entries in the form that the options ask for.
type entryWriter struct {
	w   io.Writer
	opt LogOptions
}

// wanted reports whether an entry is young enough.
func (e *entryWriter) wanted(entry []byte) bool {
	if e.opt.Since.IsZero() {
		return true
	}
	at, _, _ := bytes.Cut(entry, []byte(" "))
	t, err := time.Parse(time.RFC3339Nano, string(at))
	return err != nil || !t.Before(e.opt.Since)
}

func (e *entryWriter) write(entry []byte) error {
	parts := bytes.SplitN(entry, []byte(" "), 4)
	if len(parts) != 4 {
		return nil // not one of ours
	}
	text := parts[3]
	if string(parts[2]) == tagPartial {
		text = text[:len(text)-1] // the line goes on
	}
	if e.opt.Timestamps {
		text = append(append(append([]byte{}, parts[0]...), ' '), text...)
	}
	_, err := e.w.Write(text)
	return err
}

// ring keeps the last n entries; with n < 0 it passes everything through.
type ring struct {
	n       int
	entries [][]byte
}

func newRing(n int) *ring { return &ring{n: n} }

func (r *ring) push(entry []byte, write func([]byte) error) error {
	if r.n < 0 {
		return write(entry)
	}
	r.entries = append(r.entries, entry)
	if len(r.entries) > r.n {
		r.entries = r.entries[1:]
	}
	return nil
}

func (r *ring) flush(write func([]byte) error) error {
	for _, e := range r.entries {
		if err := write(e); err != nil {
			return err
		}
	}
	return nil
}

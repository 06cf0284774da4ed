package daemon

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// spinEvery is the pace of the animation.
const spinEvery = 100 * time.Millisecond

// Progress prints the steps of the start, one line each when it has ended. On a terminal the steps that run are shown
// below, on a line that is drawn again and again.
type Progress struct {
	w        io.Writer
	terminal bool
	symbols  symbols

	mu      sync.Mutex
	running []string // guarded by mu
	frame   int      // guarded by mu
	drawn   bool     // guarded by mu: the last line of the terminal is the animation
	stop    chan struct{}
	stopped sync.WaitGroup
}

type symbols struct {
	done, failed string
	frames       []string
}

// NewProgress returns a Progress that prints to w. utf8 chooses the symbols, terminal the animation. Close ends it.
func NewProgress(w io.Writer, terminal, utf8 bool) *Progress {
	p := &Progress{w: w, terminal: terminal, stop: make(chan struct{}), symbols: symbols{"ok", "failed", []string{"-", `\`, "|", "/"}}}
	if utf8 {
		p.symbols = symbols{"✓", "✗", []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}}
	}
	if terminal {
		p.stopped.Go(p.animate)
	}
	return p
}

// Event prints one event.
func (p *Progress) Event(e Event) {
	if e.Step == "" {
		return // the caller says how it all went
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.State {
	case StateRunning:
		p.running = append(p.running, e.Step)
		return
	case StateDone:
		p.line("%s %s (%s)", p.symbols.done, e.Step, Seconds(e.Elapsed))
	case StateFailed:
		p.line("%s %s (%s)", p.symbols.failed, e.Step, Seconds(e.Elapsed))
	}
	p.running = slices.DeleteFunc(p.running, func(s string) bool { return s == e.Step })
}

// line prints a line that stays. The caller holds mu.
func (p *Progress) line(format string, args ...any) {
	p.erase()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *Progress) erase() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *Progress) animate() {
	t := time.NewTicker(spinEvery)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
		}
		p.mu.Lock()
		p.erase()
		if len(p.running) > 0 {
			p.frame = (p.frame + 1) % len(p.symbols.frames)
			fmt.Fprintf(p.w, "%s %s", p.symbols.frames[p.frame], strings.Join(p.running, ", "))
			p.drawn = true
		}
		p.mu.Unlock()
	}
}

// Close ends the animation.
func (p *Progress) Close() {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

// Seconds prints a duration as people read it beside a step.
func Seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// IsUTF8 reports whether the locale of the environment is one of UTF-8.
func IsUTF8(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

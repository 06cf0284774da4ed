package output

import (
	"fmt"
	"time"
)

// When progress is shown: nothing for what is quick, a line in place on a terminal, and elsewhere, where each line stays,
// one for each change but not more often than a person reads.
const (
	quiet   = 2 * time.Second
	between = 5 * time.Second
	repeat  = 30 * time.Second
)

// Step runs f, announces it on standard error and reports how it ended and how long it took.
func (s *Streams) Step(title string, f func() error) error {
	return s.Follow(title, func(func(string)) error { return f() })
}

// Follow is Step for what may take long: f calls say, as often as it looks, with what it still waits for. After two
// seconds a terminal shows the latest word with the time, and a log gets a line when it changes.
func (s *Streams) Follow(title string, f func(say func(state string)) error) error {
	if s.TTY {
		fmt.Fprintf(s.Err, " %s %s ...", s.symbol("•", "-"), title)
	}
	p := &progress{s: s, title: title, start: time.Now(), now: time.Now}
	err := f(p.say)
	if s.TTY {
		fmt.Fprint(s.Err, "\r\x1b[K")
	}
	mark := s.Paint(Green, s.symbol("✓", "ok"))
	if err != nil {
		mark = s.Paint(Red, s.symbol("✗", "FAIL"))
	}
	fmt.Fprintf(s.Err, " %s %s %s\n", mark, title, s.Paint(Dim, "("+Seconds(time.Since(p.start))+")"))
	return err
}

// Patiently runs f, whose result is what counts: what is quick says nothing, and for what takes longer than two seconds
// standard error tells what is going on, until it ends.
func (s *Streams) Patiently(title string, f func() error) error {
	return s.patiently(title, f, time.Second)
}

func (s *Streams) patiently(title string, f func() error, tick time.Duration) error {
	p := &progress{s: s, title: title, start: time.Now(), now: time.Now}
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(tick)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				p.say("...")
			}
		}
	}()
	err := f()
	close(done)
	<-stopped
	if s.TTY && !p.lastAt.IsZero() {
		fmt.Fprint(s.Err, "\r\x1b[K")
	}
	return err
}

// progress is one step that is under way.
type progress struct {
	s      *Streams
	title  string
	start  time.Time
	now    func() time.Time
	last   string
	lastAt time.Time // zero before the first line
}

// maxState is how much of a state a terminal line shows: a line that wraps cannot be redrawn.
const maxState = 100

func (p *progress) say(state string) {
	now := p.now()
	took := now.Sub(p.start)
	if took < quiet {
		return
	}
	if p.s.TTY {
		if r := []rune(state); len(r) > maxState {
			state = string(r[:maxState-3]) + "..."
		}
		fmt.Fprintf(p.s.Err, "\r\x1b[K %s %s %s %s", p.s.symbol("•", "-"), p.title, p.s.Paint(Dim, "("+Seconds(took)+")"), state)
		p.lastAt = now
		return
	}
	since := now.Sub(p.lastAt)
	if !p.lastAt.IsZero() && since < repeat && (state == p.last || since < between) {
		return
	}
	fmt.Fprintf(p.s.Err, " %s %s (%s) %s\n", p.s.symbol("•", "-"), p.title, Seconds(took), state)
	p.last, p.lastAt = state, now
}

package ssmchannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	firstRTO = 200 * time.Millisecond
	maxRTO   = time.Second
	// silence is how long a message may stay unacknowledged before the channel is given up.
	silence = 5 * time.Minute
)

// link is a reliable, ordered stream of messages in both directions over a transport that may lose, repeat and
// reorder. One goroutine runs it; any may send.
type link struct {
	t        transport
	sendType string // of this end's data messages
	recvType string // of the other end's
	// deliver takes the messages of the other end in order, in run's goroutine. When it says false the message is
	// not taken: it stays unacknowledged and comes again.
	deliver func(m Message) (taken bool, err error)
	// control takes messages that are not data, in the order of their arrival.
	control func(m Message) error

	writeMu sync.Mutex // serialises frames

	mu      sync.Mutex
	next    int64              // sequence number of the next message sent; guarded by mu
	unacked map[int64]*pending // guarded by mu
	paused  bool               // guarded by mu
	rto     time.Duration      // guarded by mu
	moved   time.Time          // when data last moved; guarded by mu
	space   chan struct{}      // closed and replaced when an acknowledgement arrives; guarded by mu

	expected int64             // used by run only
	early    map[int64]Message // used by run only
}

// pending is a message that has not been acknowledged.
type pending struct {
	frame       []byte
	first, last time.Time
	sends       int
}

func newLink(t transport, sendType, recvType string) *link {
	return &link{t: t, sendType: sendType, recvType: recvType, unacked: map[int64]*pending{}, rto: firstRTO, moved: time.Now(),
		space: make(chan struct{}), early: map[int64]Message{}}
}

// send puts one data message on its way; it blocks while the window is full or the other end has paused the stream.
func (l *link) send(ctx context.Context, p PayloadType, payload []byte) error {
	l.mu.Lock()
	for l.paused || len(l.unacked) >= window {
		space := l.space
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-space:
		}
		l.mu.Lock()
	}
	now := time.Now()
	m := Message{Type: l.sendType, Created: now, Sequence: l.next, ID: newID(), PayloadType: p, Payload: payload}
	if l.next == 0 {
		m.Flags = 1 // SYN
	}
	l.next++
	out := &pending{frame: m.Marshal(), first: now, last: now, sends: 1}
	l.unacked[m.Sequence] = out
	l.moved = now
	l.mu.Unlock()
	return l.write(ctx, out.frame)
}

// sendJSON sends a document as one data message.
func (l *link) sendJSON(ctx context.Context, p PayloadType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return l.send(ctx, p, b)
}

// write sends a binary frame.
func (l *link) write(ctx context.Context, frame []byte) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if err := l.t.write(ctx, true, frame); err != nil {
		return fmt.Errorf("write to the data channel: %w", err)
	}
	return nil
}

// run reads and resends until the transport ends or an error; it never returns nil.
func (l *link) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var resender sync.WaitGroup
	defer resender.Wait()
	defer cancel(nil)
	resender.Go(func() {
		if err := l.resend(ctx); err != nil {
			cancel(err)
		}
	})
	for {
		binary, frame, err := l.t.read(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return fmt.Errorf("read from the data channel: %w", err)
		}
		if !binary {
			continue // nothing after the opening message is text
		}
		m, err := Parse(frame)
		if err != nil {
			return err
		}
		if err := l.receive(ctx, m); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			return err
		}
	}
}

func (l *link) receive(ctx context.Context, m Message) error {
	switch m.Type {
	case TypeAck:
		var a ack
		if err := json.Unmarshal(m.Payload, &a); err != nil {
			return fmt.Errorf("decode an acknowledgement: %w", err)
		}
		l.acknowledged(a.Sequence)
		return nil
	case TypePause, TypeStart:
		l.mu.Lock()
		l.paused = m.Type == TypePause
		close(l.space)
		l.space = make(chan struct{})
		l.mu.Unlock()
		return nil
	case l.recvType:
		return l.receiveData(ctx, m)
	}
	if l.control != nil {
		return l.control(m)
	}
	return nil
}

// receiveData delivers what is in order, keeps what came early, and acknowledges both and what came again.
func (l *link) receiveData(ctx context.Context, m Message) error {
	switch {
	case m.Sequence < l.expected:
		return l.acknowledge(ctx, m)
	case m.Sequence > l.expected:
		if _, have := l.early[m.Sequence]; !have {
			if len(l.early) >= window {
				return nil // it will be sent again
			}
			m.Payload = append([]byte(nil), m.Payload...)
			l.early[m.Sequence] = m
		}
		return l.acknowledge(ctx, m)
	}
	taken, err := l.deliver(m)
	if err != nil || !taken {
		return err
	}
	l.mu.Lock()
	l.moved = time.Now()
	l.mu.Unlock()
	if err := l.acknowledge(ctx, m); err != nil {
		return err
	}
	l.expected++
	for {
		held, ok := l.early[l.expected]
		if !ok {
			return nil
		}
		// It was acknowledged when it came, so it cannot be refused now; deliver must take what fits a window.
		if _, err := l.deliver(held); err != nil {
			return err
		}
		delete(l.early, l.expected)
		l.expected++
	}
}

func (l *link) acknowledge(ctx context.Context, m Message) error {
	body, err := json.Marshal(ack{MessageType: m.Type, MessageID: m.ID.String(), Sequence: m.Sequence, IsSequential: true})
	if err != nil {
		return err
	}
	a := Message{Type: TypeAck, Created: time.Now(), Flags: 3, ID: newID(), Payload: body}
	return l.write(ctx, a.Marshal())
}

func (l *link) acknowledged(sequence int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.unacked[sequence]
	if p == nil {
		return
	}
	delete(l.unacked, sequence)
	if p.sends == 1 { // the round trip of a message sent twice is not known
		l.rto = min(max((7*l.rto+2*time.Since(p.first))/8, firstRTO/2), maxRTO)
	}
	close(l.space)
	l.space = make(chan struct{})
}

// resend repeats what has not been acknowledged in time. It ends with ctx, or with an error when the other end has
// fallen silent or the session is idle.
func (l *link) resend(ctx context.Context) error {
	tick := time.NewTicker(firstRTO / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		due, err := l.due(time.Now())
		if err != nil {
			return err
		}
		for _, frame := range due {
			if err := l.write(ctx, frame); err != nil {
				if ctx.Err() != nil {
					return nil //nolint:nilerr // the channel is being closed
				}
				return err
			}
		}
	}
}

func (l *link) due(now time.Time) ([][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out [][]byte
	for _, p := range l.unacked {
		if now.Sub(p.first) > silence {
			return nil, errSilent
		}
		if now.Sub(p.last) >= l.rto {
			p.last, p.sends = now, p.sends+1
			out = append(out, p.frame)
		}
	}
	if now.Sub(l.moved) > IdleTimeout {
		return nil, ErrIdle
	}
	return out, nil
}

// flushed waits until everything sent has been acknowledged.
func (l *link) flushed(ctx context.Context) error {
	for {
		l.mu.Lock()
		left, space := len(l.unacked), l.space
		l.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errSilent, context.Cause(ctx))
		case <-space:
		}
	}
}

package ssmchannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	resendAfter = 200 * time.Millisecond
	// maxUnacked bounds the messages on their way; a sender waits when there are more.
	maxUnacked = 256
	// maxAhead bounds the messages kept that came before their turn.
	maxAhead = 1024
	// flagsAck is what acknowledgements carry: first and last message at once.
	flagsAck = 3
)

var errClosed = errors.New("the data channel is closed")

// link is one side of a channel: it numbers, resends and acknowledges.
type link struct {
	ws       *websocket.Conn
	sendType string
	ready    chan struct{}
	done     chan struct{}
	slots    chan struct{} // one per message on its way

	mu      sync.Mutex
	next    int64               // guarded by mu; sequence number of the next message sent
	unacked map[int64]*onItsWay // guarded by mu
	want    int64               // only the reading goroutine; sequence number of the next message taken
	ahead   map[int64]*Message  // only the reading goroutine
	drained chan struct{}       // guarded by mu; closed when unacked is empty, if somebody waits
}

type onItsWay struct {
	wire []byte
	sent time.Time
}

type ack struct {
	AcknowledgedMessageType           string
	AcknowledgedMessageID             string `json:"AcknowledgedMessageId"`
	AcknowledgedMessageSequenceNumber int64
	IsSequentialMessage               bool
}

func newLink(ws *websocket.Conn, sendType string) *link {
	return &link{
		ws: ws, sendType: sendType, ready: make(chan struct{}), done: make(chan struct{}), slots: make(chan struct{}, maxUnacked),
		unacked: map[int64]*onItsWay{}, ahead: map[int64]*Message{},
	}
}

// send sends one message in order. It waits while too many are on their way.
func (l *link) send(ctx context.Context, payloadType uint32, payload []byte) error {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &Message{Type: l.sendType, Created: time.Now(), Sequence: l.next, ID: NewUUID(), PayloadType: payloadType, Payload: payload}
	if l.next == 0 {
		m.Flags = 1 // first of the stream
	}
	wire, err := m.AppendBinary(nil)
	if err != nil {
		return err
	}
	l.unacked[l.next] = &onItsWay{wire: wire, sent: time.Now()}
	l.next++
	return l.ws.Write(ctx, websocket.MessageBinary, wire)
}

// run reads messages and gives each data message to handle, in order and once, until the channel closes.
func (l *link) run(ctx context.Context, handle func(*Message) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		close(l.done)
		l.ws.Close(websocket.StatusNormalClosure, "") //nolint:errcheck // it may be closed already
	}()
	go l.resend(ctx)
	for {
		kind, b, err := l.ws.Read(ctx)
		if err != nil {
			if websocket.CloseStatus(err) == websocket.StatusNormalClosure {
				return nil
			}
			return fmt.Errorf("read from the data channel: %w", err)
		}
		if kind != websocket.MessageBinary {
			continue
		}
		m, err := ParseMessage(b)
		if err != nil {
			return fmt.Errorf("read from the data channel: %w", err)
		}
		switch m.Type {
		case TypeClosed:
			return nil
		case TypeAcknowledge:
			l.acknowledged(m.Payload)
		case TypeInput, TypeOutput:
			if err := l.take(ctx, m, handle); err != nil {
				return err
			}
		}
	}
}

// take acknowledges a data message and handles it and those after it that are already here. A message that came before,
// or is too far ahead, is not handled; the latter is not acknowledged either, so that it comes again.
func (l *link) take(ctx context.Context, m *Message, handle func(*Message) error) error {
	if m.Sequence > l.want+maxAhead {
		return nil
	}
	if err := l.acknowledge(ctx, m); err != nil {
		return err
	}
	if m.Sequence < l.want {
		return nil
	}
	l.ahead[m.Sequence] = m
	for {
		next, ok := l.ahead[l.want]
		if !ok {
			return nil
		}
		delete(l.ahead, l.want)
		l.want++
		if err := handle(next); err != nil {
			return err
		}
	}
}

func (l *link) acknowledge(ctx context.Context, m *Message) error {
	b, err := json.Marshal(ack{AcknowledgedMessageType: m.Type, AcknowledgedMessageID: m.ID.String(), AcknowledgedMessageSequenceNumber: m.Sequence, IsSequentialMessage: true})
	if err != nil {
		return err
	}
	return l.write(ctx, &Message{Type: TypeAcknowledge, Created: time.Now(), Flags: flagsAck, ID: NewUUID(), Payload: b})
}

// write sends a message outside the numbered stream.
func (l *link) write(ctx context.Context, m *Message) error {
	wire, err := m.AppendBinary(nil)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ws.Write(ctx, websocket.MessageBinary, wire)
}

func (l *link) acknowledged(payload []byte) {
	var a ack
	if json.Unmarshal(payload, &a) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.unacked[a.AcknowledgedMessageSequenceNumber]; !ok || a.AcknowledgedMessageType != l.sendType {
		return
	}
	delete(l.unacked, a.AcknowledgedMessageSequenceNumber)
	<-l.slots
	if len(l.unacked) == 0 && l.drained != nil {
		close(l.drained)
		l.drained = nil
	}
}

// resend repeats what was not acknowledged in time.
func (l *link) resend(ctx context.Context) {
	t := time.NewTicker(resendAfter)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			l.mu.Lock()
			for _, u := range l.unacked {
				if now.Sub(u.sent) >= resendAfter {
					u.sent = now
					if l.ws.Write(ctx, websocket.MessageBinary, u.wire) != nil {
						break
					}
				}
			}
			l.mu.Unlock()
		}
	}
}

// close waits until everything sent is acknowledged, then says that the channel is closed.
func (l *link) close(ctx context.Context, message string) error {
	l.mu.Lock()
	drained := make(chan struct{})
	if len(l.unacked) == 0 {
		close(drained)
	} else {
		l.drained = drained
	}
	l.mu.Unlock()
	select {
	case <-drained:
	case <-l.done:
		return errClosed
	case <-ctx.Done():
	}
	id := NewUUID()
	b, err := json.Marshal(map[string]any{"MessageType": TypeClosed, "MessageId": id.String(), "SchemaVersion": 1, "Output": message})
	if err != nil {
		return err
	}
	return l.write(ctx, &Message{Type: TypeClosed, Created: time.Now(), Flags: flagsAck, ID: id, Payload: b})
}

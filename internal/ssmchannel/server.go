package ssmchannel

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// agentVersion is the version of the SSM agent the server side behaves like.
const agentVersion = "3.3.2746.0"

// Streams are what a command of a session reads and writes.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Resize <-chan Size
}

// Session is the agent's end of a session.
type Session struct {
	ID    string
	Token string
	// Run runs the command. It returns when the command has ended or ctx has.
	Run func(ctx context.Context, s Streams) (exitCode int, err error)
}

// serving is a session while it is served.
type serving struct {
	s       Session
	link    *link
	own     bool // the client is this package's
	answer  chan handshakeResponse
	input   *inputQueue
	resize  chan Size
	end     context.CancelCauseFunc
	started time.Time
}

var errTerminated = errors.New("the client ended the session")

// Serve runs one session on an accepted websocket, from the client's opening message to the end of the command, and
// closes it.
func Serve(ctx context.Context, conn *websocket.Conn, s Session) error {
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(maxFrame)
	err := serveOn(ctx, socket{conn}, s)
	switch {
	case err == nil:
		return conn.Close(websocket.StatusNormalClosure, "")
	case errors.Is(err, ErrToken):
		_ = conn.Close(websocket.StatusPolicyViolation, ErrToken.Error()) // the client learns why; err says the rest
	}
	return err
}

func serveOn(ctx context.Context, t transport, s Session) error {
	open, err := readOpen(ctx, t)
	if err != nil {
		return err
	}
	if s.Token == "" || subtle.ConstantTimeCompare([]byte(open.TokenValue), []byte(s.Token)) != 1 {
		return ErrToken
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := &serving{s: s, link: newLink(t, TypeOutput, TypeInput), own: strings.HasPrefix(open.ClientVersion, ownClient),
		answer: make(chan handshakeResponse, 1), input: newInputQueue(), resize: make(chan Size, 8), end: cancel, started: time.Now()}
	v.link.deliver = v.take
	var reader sync.WaitGroup
	defer reader.Wait()
	linkCtx, endLink := context.WithCancel(context.WithoutCancel(ctx))
	defer endLink()
	reader.Go(func() { cancel(v.link.run(linkCtx)) })
	return v.session(ctx)
}

func readOpen(ctx context.Context, t transport) (openInput, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	var open openInput
	binary, frame, err := t.read(ctx)
	if err != nil {
		return open, fmt.Errorf("read the opening of a data channel: %w", err)
	}
	if binary {
		return open, errors.New("a data channel must open with a text message")
	}
	if err := json.Unmarshal(frame, &open); err != nil {
		return open, fmt.Errorf("decode the opening of a data channel: %w", err)
	}
	return open, nil
}

// session shakes hands, runs the command and says goodbye.
func (v *serving) session(ctx context.Context) error {
	if err := v.shakeHands(ctx); err != nil {
		return err
	}
	out := &outputWriter{ctx: ctx, link: v.link}
	code, err := v.s.Run(ctx, Streams{Stdin: v.input, Stdout: out, Resize: v.resize})
	v.input.close()
	message := ""
	if err != nil {
		if ctx.Err() == nil {
			message = err.Error()
		} else if !errors.Is(context.Cause(ctx), errTerminated) {
			return context.Cause(ctx) // the client is gone
		}
		code = -1
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), openTimeout)
	defer cancel()
	if v.own && err == nil {
		if err := v.link.send(last, PayloadExitCode, []byte(strconv.Itoa(code))); err != nil {
			return err
		}
	}
	if err := v.link.flushed(last); err != nil {
		return err
	}
	return v.sayClosed(last, message)
}

func (v *serving) sayClosed(ctx context.Context, message string) error {
	id := newID()
	body, err := json.Marshal(channelClosed{MessageID: id.String(), CreatedDate: time.Now().UTC().Format(time.RFC3339), SessionID: v.s.ID,
		MessageType: TypeClosed, SchemaVersion: 1, Output: message})
	if err != nil {
		return err
	}
	m := Message{Type: TypeClosed, Created: time.Now(), ID: id, Payload: body}
	return v.link.write(ctx, m.Marshal())
}

func (v *serving) shakeHands(ctx context.Context) error {
	req := handshakeRequest{AgentVersion: agentVersion, RequestedClientActions: []clientAction{
		{ActionType: "SessionType", ActionParameters: sessionType{SessionType: "InteractiveCommands", Properties: map[string]any{}}}}}
	if err := v.link.sendJSON(ctx, PayloadHandshakeRequest, req); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for the client's handshake: %w", context.Cause(ctx))
	case resp := <-v.answer:
		for _, a := range resp.ProcessedClientActions {
			if a.ActionStatus != 1 {
				return fmt.Errorf("the client refused %s: %s", a.ActionType, a.Error)
			}
		}
	}
	return v.link.sendJSON(ctx, PayloadHandshakeComplete, handshakeComplete{HandshakeTimeToComplete: time.Since(v.started)})
}

// take handles one message of the client, in the link's goroutine, so it must not block.
func (v *serving) take(m Message) (bool, error) {
	switch m.PayloadType {
	case PayloadOutput:
		return v.input.put(m.Payload), nil
	case PayloadSize:
		var s Size
		if err := json.Unmarshal(m.Payload, &s); err != nil {
			return false, fmt.Errorf("decode a terminal size: %w", err)
		}
		select {
		case v.resize <- s:
		default: // the command does not look; a later size will do
		}
	case PayloadHandshakeResponse:
		var resp handshakeResponse
		if err := json.Unmarshal(m.Payload, &resp); err != nil {
			return false, fmt.Errorf("decode the client's handshake: %w", err)
		}
		select {
		case v.answer <- resp:
		default: // a second answer has no meaning
		}
	case PayloadFlag:
		if len(m.Payload) >= 4 && binary.BigEndian.Uint32(m.Payload) == flagTerminate {
			v.end(errTerminated)
		}
	}
	return true, nil
}

// outputWriter cuts a command's output into messages.
type outputWriter struct {
	ctx  context.Context //nolint:containedctx // io.Writer has no place for it; it is the session's
	link *link
}

// Write blocks while the client does not keep up.
func (w *outputWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += MaxPayload {
		part := append([]byte(nil), p[n:min(n+MaxPayload, len(p))]...)
		if err := w.link.send(w.ctx, PayloadOutput, part); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// inputQueue holds what the client typed until the command reads it.
type inputQueue struct {
	mu     sync.Mutex
	buf    []byte        // guarded by mu
	closed bool          // guarded by mu
	more   chan struct{} // holds a token when there may be something to read
}

func newInputQueue() *inputQueue { return &inputQueue{more: make(chan struct{}, 1)} }

// put says false when the queue is full. One window of messages always fits beyond the bound, because messages that
// came early have been acknowledged before they are put.
func (q *inputQueue) put(p []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.buf) > maxInput {
		return false
	}
	if !q.closed {
		q.buf = append(q.buf, p...)
	}
	q.signal()
	return true
}

func (q *inputQueue) signal() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

func (q *inputQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

// Read blocks until there is input; it ends when the session does.
func (q *inputQueue) Read(p []byte) (int, error) {
	for {
		q.mu.Lock()
		if len(q.buf) > 0 {
			n := copy(p, q.buf)
			q.buf = q.buf[n:]
			if len(q.buf) > 0 {
				q.signal()
			}
			q.mu.Unlock()
			return n, nil
		}
		closed := q.closed
		q.mu.Unlock()
		if closed {
			q.signal() // for another reader
			return 0, io.EOF
		}
		<-q.more
	}
}

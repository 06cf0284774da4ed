// Package ssmchannel speaks the data channel of AWS Session Manager, over which ECS Exec runs commands: binary messages
// in a WebSocket with sequence numbers, acknowledgements and resending. Dial is the client's side, as the AWS
// session-manager-plugin has it; Accept is the agent's side, for a local endpoint.
package ssmchannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/coder/websocket"
)

const (
	clientVersion = "1.2.0.0"
	agentVersion  = "3.2.0.0"
	// maxInput is the most that a client puts into one message.
	maxInput = 1024
	// maxOpen bounds the first text message.
	maxOpen = 64 << 10
	// handshakeTimeout bounds the opening of a channel.
	handshakeTimeout = 15 * time.Second
)

// Size is the size of a terminal in characters.
type Size struct {
	Columns uint16 `json:"cols"`
	Rows    uint16 `json:"rows"`
}

type openInput struct {
	MessageSchemaVersion string
	RequestID            string `json:"RequestId"`
	TokenValue           string
	ClientID             string `json:"ClientId"`
	ClientVersion        string
}

type handshakeRequest struct {
	AgentVersion           string
	RequestedClientActions []clientAction
}

type clientAction struct {
	ActionType       string
	ActionParameters json.RawMessage
}

type handshakeResponse struct {
	ClientVersion          string
	ProcessedClientActions []processedAction
	Errors                 []string
}

type processedAction struct {
	ActionType   string
	ActionStatus int // 1 success, 2 failed, 3 unsupported
	ActionResult json.RawMessage
	Error        string
}

// Session is the client's side of an open channel.
type Session struct{ link *link }

// Dial opens the channel that ExecuteCommand names. The token is a secret.
func Dial(ctx context.Context, streamURL, token string) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, streamURL, nil)
	if err != nil {
		return nil, fmt.Errorf("open the data channel: %w", err)
	}
	if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
	ws.SetReadLimit(MaxPayload + offPayload)
	b, err := json.Marshal(openInput{MessageSchemaVersion: "1.0", RequestID: NewUUID().String(), TokenValue: token, ClientID: NewUUID().String(), ClientVersion: clientVersion})
	if err != nil {
		return nil, err
	}
	if err := ws.Write(ctx, websocket.MessageText, b); err != nil {
		ws.CloseNow() //nolint:errcheck // already failing
		return nil, fmt.Errorf("open the data channel: %w", err)
	}
	return &Session{link: newLink(ws, TypeInput)}, nil
}

// Run carries the session until the command ends: stdin to the command, which may be nil, and what it writes to stdout.
// A terminal's sizes may be sent on sizes, which may be nil. Run closes the channel.
func (s *Session) Run(ctx context.Context, stdin io.Reader, stdout io.Writer, sizes <-chan Size) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan struct{})
	go s.input(ctx, stdin, started)
	go s.sizes(ctx, sizes, started)
	opened := false
	return s.link.run(ctx, func(m *Message) error {
		switch m.PayloadType {
		case PayloadOutput, PayloadError, PayloadStderr:
			_, err := stdout.Write(m.Payload)
			return err
		case PayloadHandshakeRequest:
			return s.answer(ctx, m.Payload)
		case PayloadHandshakeComplete:
			if !opened {
				opened = true
				close(started)
			}
		}
		return nil
	})
}

// answer replies to the agent's handshake; the session's type is the only thing we agree to.
func (s *Session) answer(ctx context.Context, payload []byte) error {
	var req handshakeRequest
	if err := json.Unmarshal(payload, &req); err != nil {
		return fmt.Errorf("read the agent's handshake: %w", err)
	}
	resp := handshakeResponse{ClientVersion: clientVersion, Errors: []string{}}
	for _, a := range req.RequestedClientActions {
		p := processedAction{ActionType: a.ActionType, ActionStatus: 1}
		if a.ActionType != "SessionType" {
			p.ActionStatus, p.Error = 3, "unsupported action "+a.ActionType
			resp.Errors = append(resp.Errors, p.Error)
		}
		resp.ProcessedClientActions = append(resp.ProcessedClientActions, p)
	}
	b, err := json.Marshal(resp)
	if err != nil {
		return err
	}
	return s.link.send(ctx, PayloadHandshakeResponse, b)
}

func (s *Session) input(ctx context.Context, stdin io.Reader, started <-chan struct{}) {
	if stdin == nil {
		return
	}
	select {
	case <-started:
	case <-ctx.Done():
		return
	}
	buf := make([]byte, maxInput)
	for {
		n, err := stdin.Read(buf)
		if n > 0 && s.link.send(ctx, PayloadOutput, append([]byte(nil), buf[:n]...)) != nil || err != nil {
			return
		}
	}
}

func (s *Session) sizes(ctx context.Context, sizes <-chan Size, started <-chan struct{}) {
	select {
	case <-started:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			b, err := json.Marshal(size)
			if err != nil || s.link.send(ctx, PayloadSize, b) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// Agent is the agent's side of an open channel.
type Agent struct{ link *link }

// Accept reads the first message of a WebSocket that a client opened and gives its token to check, which returns an error
// for a token that opens no session.
func Accept(ctx context.Context, ws *websocket.Conn, check func(token string) error) (*Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	ws.SetReadLimit(maxOpen)
	kind, b, err := ws.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the opening of the data channel: %w", err)
	}
	var open openInput
	if kind != websocket.MessageText || json.Unmarshal(b, &open) != nil {
		return nil, errors.New("the first message does not open a data channel")
	}
	if err := check(open.TokenValue); err != nil {
		return nil, err
	}
	ws.SetReadLimit(MaxPayload + offPayload)
	return &Agent{link: newLink(ws, TypeOutput)}, nil
}

// Run serves the session: it shakes hands, gives what the client types to stdin and its terminal's sizes to sizes, and
// returns when the client goes, or with nil after Close.
func (a *Agent) Run(ctx context.Context, stdin io.Writer, sizes func(Size)) error {
	params, err := json.Marshal(map[string]any{"SessionType": "Standard_Stream", "Properties": map[string]any{}})
	if err != nil {
		return err
	}
	req, err := json.Marshal(handshakeRequest{AgentVersion: agentVersion, RequestedClientActions: []clientAction{{ActionType: "SessionType", ActionParameters: params}}})
	if err != nil {
		return err
	}
	if err := a.link.send(ctx, PayloadHandshakeRequest, req); err != nil {
		return err
	}
	return a.link.run(ctx, func(m *Message) error {
		switch m.PayloadType {
		case PayloadOutput:
			// A command that has gone no longer reads; the client's typing is then nobody's.
			_, _ = stdin.Write(m.Payload)
		case PayloadSize:
			var s Size
			if json.Unmarshal(m.Payload, &s) == nil {
				sizes(s)
			}
		case PayloadHandshakeResponse:
			close(a.link.ready)
			return a.link.send(ctx, PayloadHandshakeComplete, []byte(`{"HandshakeTimeToComplete":1000000,"CustomerMessage":""}`))
		}
		return nil
	})
}

// Ready is closed when the client has answered the handshake; output is to be sent only then.
func (a *Agent) Ready() <-chan struct{} { return a.link.ready }

// Write sends output of the command to the client.
func (a *Agent) Write(p []byte) (int, error) {
	const chunk = 8 << 10
	for sent := 0; sent < len(p); {
		n := min(chunk, len(p)-sent)
		if err := a.link.send(context.Background(), PayloadOutput, append([]byte(nil), p[sent:sent+n]...)); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

// Close waits until the client has everything, then says that the command has ended.
func (a *Agent) Close(ctx context.Context, message string) error { return a.link.close(ctx, message) }

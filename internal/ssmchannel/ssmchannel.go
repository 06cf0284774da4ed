// Package ssmchannel speaks the data channel over which ECS Exec and SSM sessions run: binary messages on a websocket,
// each acknowledged, sent again until it is, and put in order by its sequence number. It has both ends, a client for
// "isthmus ecs exec" and the server side for the lab; either works with AWS's own counterpart.
//
// The layers are: message.go, the codec; link.go, the reliable ordered stream over an unreliable one; client.go and
// server.go, the handshake and what the two ends do.
package ssmchannel

import (
	"context"
	"errors"
	"time"

	"github.com/coder/websocket"
)

// Limits of a channel.
const (
	// MaxPayload is the largest payload sent in one message, that of AWS's own client.
	MaxPayload = 1024
	// maxFrame is the largest frame accepted from the other end.
	maxFrame = 256 << 10
	// window is how many messages may be unacknowledged, and how many may wait for an earlier one.
	window = 256
	// maxInput is how much input the server side holds for a program that does not read.
	maxInput = 1 << 20
	// openTimeout bounds the first message and the handshake.
	openTimeout = 30 * time.Second
	// IdleTimeout ends a session in which nothing moves, as ECS Exec does.
	IdleTimeout = 20 * time.Minute
)

// ownClient is how this package's client introduces itself. The server side sends the exit code only to it, because
// AWS's client would print it.
const ownClient = "isthmus-"

// Errors of a channel.
var (
	// ErrToken refuses a channel whose first message carries the wrong token.
	ErrToken = errors.New("the token of the data channel is wrong")
	// ErrIdle ends a session that was idle too long.
	ErrIdle = errors.New("the session was idle for 20 minutes")
	// errSilent ends a channel whose other end no longer acknowledges.
	errSilent = errors.New("the other end of the data channel no longer acknowledges")
)

// Size is the size of a terminal.
type Size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// transport carries frames; a websocket does, and tests have one that loses and reorders.
type transport interface {
	read(ctx context.Context) (binary bool, frame []byte, err error)
	write(ctx context.Context, binary bool, frame []byte) error
}

// socket is the transport over a websocket.
type socket struct{ conn *websocket.Conn }

func (s socket) read(ctx context.Context) (bool, []byte, error) {
	kind, b, err := s.conn.Read(ctx)
	return kind == websocket.MessageBinary, b, err
}

func (s socket) write(ctx context.Context, binary bool, frame []byte) error {
	kind := websocket.MessageText
	if binary {
		kind = websocket.MessageBinary
	}
	return s.conn.Write(ctx, kind, frame)
}

// openInput is the first message of a client, a text frame.
type openInput struct {
	MessageSchemaVersion string `json:"MessageSchemaVersion"`
	RequestID            string `json:"RequestId"`
	TokenValue           string `json:"TokenValue"`
	ClientID             string `json:"ClientId"`
	ClientVersion        string `json:"ClientVersion"`
}

// handshakeRequest is the agent's first message.
type handshakeRequest struct {
	AgentVersion           string         `json:"AgentVersion"`
	RequestedClientActions []clientAction `json:"RequestedClientActions"`
}

type clientAction struct {
	ActionType       string `json:"ActionType"`
	ActionParameters any    `json:"ActionParameters"`
}

// sessionType are the parameters of the action SessionType.
type sessionType struct {
	SessionType string         `json:"SessionType"`
	Properties  map[string]any `json:"Properties"`
}

// handshakeResponse answers it.
type handshakeResponse struct {
	ClientVersion          string            `json:"ClientVersion"`
	ProcessedClientActions []processedAction `json:"ProcessedClientActions"`
	Errors                 []string          `json:"Errors"`
}

type processedAction struct {
	ActionType   string `json:"ActionType"`
	ActionStatus int    `json:"ActionStatus"` // 1 success, 2 failed, 3 unsupported
	ActionResult any    `json:"ActionResult"`
	Error        string `json:"Error"`
}

// handshakeComplete ends the handshake.
type handshakeComplete struct {
	HandshakeTimeToComplete time.Duration `json:"HandshakeTimeToComplete"`
	CustomerMessage         string        `json:"CustomerMessage"`
}

// channelClosed is the payload of the agent's last message.
type channelClosed struct {
	MessageID     string `json:"MessageId"`
	CreatedDate   string `json:"CreatedDate"`
	DestinationID string `json:"DestinationId"`
	SessionID     string `json:"SessionId"`
	MessageType   string `json:"MessageType"`
	SchemaVersion int    `json:"SchemaVersion"`
	Output        string `json:"Output"`
}

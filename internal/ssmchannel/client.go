package ssmchannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// clientVersion is the version of AWS's client whose behaviour this one has.
const clientVersion = ownClient + "1.2.0.0"

// Client is the user's end of a session.
type Client struct {
	conn *websocket.Conn
	link *link
	res  result
}

// result is how a session ended. It is written by Run only.
type result struct {
	exitCode int
	known    bool
	message  string
}

// ExitCode returns the command's exit code once Run has returned, when the other end told it: the lab does, AWS does
// not.
func (c *Client) ExitCode() (code int, known bool) { return c.res.exitCode, c.res.known }

// Message returns what the agent said when it closed the channel, once Run has returned; it is often empty.
func (c *Client) Message() string { return c.res.message }

// errClosed ends the client's run when the agent has closed the channel.
var errClosed = errors.New("the channel was closed by the agent")

// Dial opens the data channel of a session that ExecuteCommand has started: its streamUrl and tokenValue.
func Dial(ctx context.Context, streamURL, token string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, streamURL, nil)
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close() // empty once upgraded, of no interest otherwise
	}
	if err != nil {
		return nil, fmt.Errorf("open the data channel%s: %w", status(resp), err)
	}
	conn.SetReadLimit(maxFrame)
	c := &Client{conn: conn, link: newLink(socket{conn}, TypeInput, TypeOutput)}
	open, err := json.Marshal(openInput{MessageSchemaVersion: "1.0", RequestID: newID().String(), TokenValue: token,
		ClientID: newID().String(), ClientVersion: clientVersion})
	if err != nil {
		return nil, err
	}
	if err := c.link.t.write(ctx, false, open); err != nil {
		_ = conn.CloseNow()
		return nil, fmt.Errorf("open the data channel: %w", err)
	}
	return c, nil
}

func status(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	return " (HTTP " + strconv.Itoa(resp.StatusCode) + ")"
}

// Run carries the session until the agent closes it: stdin to the command, its output to stdout, and every value of
// sizes to its terminal. A nil stdin sends nothing; the end of stdin is sent as an end-of-file character, for the
// command has a terminal. Run closes the channel and may be called once.
func (c *Client) Run(ctx context.Context, stdin io.Reader, stdout io.Writer, sizes <-chan Size) error {
	defer func() { _ = c.conn.CloseNow() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan struct{})
	var once sync.Once
	begun := func() { once.Do(func() { close(ready) }) }
	c.link.deliver = func(m Message) (bool, error) { return true, c.take(ctx, m, stdout, begun) }
	c.link.control = func(m Message) error {
		if m.Type != TypeClosed {
			return nil
		}
		var closed channelClosed
		if err := json.Unmarshal(m.Payload, &closed); err == nil {
			c.res.message = closed.Output
		}
		return errClosed
	}
	var pumps sync.WaitGroup
	if sizes != nil {
		pumps.Go(func() { c.sendSizes(ctx, ready, sizes) })
	}
	if stdin != nil {
		// The reader of stdin may be stuck in Read for ever; it is left behind, and ends with the next byte.
		go c.sendInput(ctx, ready, stdin)
	}
	keep := time.AfterFunc(openTimeout, func() {
		select {
		case <-ready:
		default:
			cancel()
		}
	})
	defer keep.Stop()
	err := c.link.run(ctx)
	cancel()
	pumps.Wait()
	if errors.Is(err, errClosed) || c.res.known && websocket.CloseStatus(err) == websocket.StatusNormalClosure {
		return nil
	}
	return err
}

// take handles one message of the agent.
func (c *Client) take(ctx context.Context, m Message, stdout io.Writer, begun func()) error {
	switch m.PayloadType {
	case PayloadHandshakeRequest:
		return c.shakeHands(ctx, m.Payload)
	case PayloadHandshakeComplete:
		begun()
		return nil
	case PayloadExitCode:
		n, err := strconv.Atoi(string(m.Payload))
		if err != nil {
			return fmt.Errorf("decode the exit code %q: %w", m.Payload, err)
		}
		c.res.exitCode, c.res.known = n, true
		return nil
	case PayloadOutput, PayloadStderr, PayloadError:
		begun() // old agents do not shake hands
		if _, err := stdout.Write(m.Payload); err != nil {
			return fmt.Errorf("write the command's output: %w", err)
		}
	}
	return nil
}

// shakeHands accepts an interactive session and nothing else; encryption by KMS is answered as unsupported.
func (c *Client) shakeHands(ctx context.Context, payload []byte) error {
	var req handshakeRequest
	if err := json.Unmarshal(payload, &req); err != nil {
		return fmt.Errorf("decode the handshake: %w", err)
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
	if err := c.link.sendJSON(ctx, PayloadHandshakeResponse, resp); err != nil {
		return err
	}
	if len(resp.Errors) > 0 {
		return fmt.Errorf("the agent asks for what this client lacks: %s (an encrypted session needs AWS's session-manager-plugin)", resp.Errors[0])
	}
	return nil
}

func (c *Client) sendSizes(ctx context.Context, ready <-chan struct{}, sizes <-chan Size) {
	select {
	case <-ctx.Done():
		return
	case <-ready:
	}
	for {
		select {
		case <-ctx.Done():
			return
		case s, ok := <-sizes:
			if !ok || c.link.sendJSON(ctx, PayloadSize, s) != nil {
				return // a broken channel is reported by run
			}
		}
	}
}

func (c *Client) sendInput(ctx context.Context, ready <-chan struct{}, stdin io.Reader) {
	select {
	case <-ctx.Done():
		return
	case <-ready:
	}
	buf := make([]byte, MaxPayload)
	for {
		n, err := stdin.Read(buf)
		if n > 0 && c.link.send(ctx, PayloadOutput, append([]byte(nil), buf[:n]...)) != nil {
			return // a broken channel is reported by run
		}
		if err != nil {
			_ = c.link.send(ctx, PayloadOutput, []byte{4})
			return
		}
	}
}

// Close ends the session without waiting for the command.
func (c *Client) Close() error { return c.conn.Close(websocket.StatusNormalClosure, "") }

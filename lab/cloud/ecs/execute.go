package ecs

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/isthmus-mesh/isthmus/internal/ssmchannel"
	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

const (
	// DataChannelPath is where the data channels of ECS Exec are.
	DataChannelPath = "/v1/data-channel/"
	// maxSessions bounds the sessions that were asked for and not yet opened or ended.
	maxSessions = 1000
	// openWithin is how long a session's token may be used.
	openWithin = 10 * time.Minute
)

// execSession is a session that ExecuteCommand has granted.
type execSession struct {
	id, token string
	createdAt time.Time
	command   []string
	task      *task
	container *container
	handle    Container
	opened    bool
}

type executeInput struct {
	Cluster     string `json:"cluster"`
	Task        string `json:"task"`
	Container   string `json:"container"`
	Command     string `json:"command"`
	Interactive bool   `json:"interactive"`
}

func (s *Service) executeCommand(_ context.Context, r *awsserver.Request) (any, error) {
	var in executeInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if !in.Interactive {
		return nil, invalid("Interactive is the only mode supported currently.")
	}
	command, err := splitCommand(in.Command)
	if err != nil || len(command) == 0 {
		return nil, invalid("The command is empty or has an open quote.")
	}
	ctx := map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}, "ecs:task": {taskARN(r, in.Cluster, in.Task)}}
	if in.Container != "" {
		ctx["ecs:container-name"] = []string{in.Container}
	}
	if err := r.Authorize("ecs:ExecuteCommand", taskARN(r, in.Cluster, in.Task), ctx); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	t, ct, err := c.execTarget(in)
	if err != nil {
		return nil, err
	}
	if len(s.sessions) >= maxSessions {
		return nil, awsserver.Errorf("LimitExceededException", "There are too many ECS Exec sessions.")
	}
	x := &execSession{id: "ecs-execute-command-" + hexID(9), token: hexID(64), createdAt: s.now(), command: command, task: t, container: ct, handle: ct.handle}
	s.sessions[x.id] = x
	scheme := "ws://"
	if r.HTTP.TLS != nil {
		scheme = "wss://"
	}
	// The client reaches the channel the way it reached this call, whichever address of the lab that was.
	url := scheme + r.HTTP.Host + DataChannelPath + x.id + "?role=publish_subscribe"
	return doc{"clusterArn": c.arn, "taskArn": t.arn, "containerArn": ct.arn, "containerName": ct.def.Name, "interactive": true,
		"session": doc{"sessionId": x.id, "streamUrl": url, "tokenValue": x.token}}, nil
}

// execTarget finds the container of an ExecuteCommand, which must be able to take one.
func (c *cluster) execTarget(in executeInput) (*task, *container, error) {
	t := c.task(in.Task)
	if t == nil {
		return nil, nil, invalid("The referenced task was not found.")
	}
	if !t.exec {
		return nil, nil, invalid("The execute command failed because execute command was not enabled when the task was run or the execute command agent isn’t running. " +
			"Wait and try again or run a new task with execute command enabled and try again.")
	}
	ct := t.container(in.Container)
	if in.Container == "" {
		if len(t.containers) > 1 {
			return nil, nil, invalid("The container name is required: the task has more than one container.")
		}
		ct = t.containers[0]
	}
	switch {
	case ct == nil:
		return nil, nil, invalid("The container %s was not found in the task.", in.Container)
	case ct.def.ReadOnlyRoot:
		return nil, nil, awsserver.Errorf("TargetNotConnectedException", "The execute command failed due to an internal error. Try again later. (the agent needs a writable root file system)")
	case t.last == stateStopped || ct.last != stateRunning || ct.handle == nil:
		return nil, nil, awsserver.Errorf("TargetNotConnectedException", "The execute command failed because the target container is not running.")
	}
	return t, ct, nil
}

// openSession hands a session to the first who asks for it, once.
func (s *Service) openSession(id string) *execSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.sessions[id]
	if x == nil || x.opened || s.now().Sub(x.createdAt) > openWithin {
		return nil
	}
	x.opened = true
	return x
}

func (s *Service) endSession(x *execSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, x.id)
}

// ServeDataChannel serves the websocket of a session. It carries no signature: the session's token, which only the
// caller of ExecuteCommand has, is its first message.
func (s *Service) ServeDataChannel(w http.ResponseWriter, r *http.Request) {
	x := s.openSession(strings.TrimPrefix(r.URL.Path, DataChannelPath))
	if x == nil {
		http.Error(w, "no such session, or it was used already", http.StatusNotFound)
		return
	}
	defer s.endSession(x)
	// Any origin: the token decides, and clients of this channel are no browsers.
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "data channel not opened", slog.String("error", err.Error()))
		return // Accept has answered
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-x.handle.Done():
			cancel() // the container ended, and its commands with it
		case <-ctx.Done():
		}
	}()
	err = ssmchannel.Serve(ctx, ws, ssmchannel.Session{ID: x.id, Token: x.token, Run: x.run})
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "exec session ended", slog.String("session", x.id), slog.String("error", err.Error()))
	}
}

// run runs the command with a terminal, as ECS Exec always does.
func (x *execSession) run(ctx context.Context, st ssmchannel.Streams) (int, error) {
	sizes := make(chan WindowSize)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case size := <-st.Resize:
				select {
				case <-ctx.Done():
					return
				case sizes <- WindowSize{Width: size.Cols, Height: size.Rows}:
				}
			}
		}
	}()
	return x.handle.Exec(ctx, ExecSpec{Command: x.command, TTY: true, Stdin: st.Stdin, Stdout: st.Stdout, Stderr: st.Stdout, Resize: sizes})
}

// splitCommand splits a command line into words as a shell does, with single and double quotes and backslashes, and
// nothing else: no variables, no globs, no operators.
func splitCommand(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, escaped, quote := false, false, rune(0)
	for _, c := range line {
		switch {
		case escaped:
			if quote == '"' && c != '"' && c != '\\' && c != '$' && c != '`' {
				word.WriteByte('\\') // within double quotes a backslash escapes only these
			}
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				word.WriteRune(c)
			}
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is open")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

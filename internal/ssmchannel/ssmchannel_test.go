package ssmchannel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

func TestMessageRoundTrip(t *testing.T) {
	t.Parallel()
	want := Message{Type: TypeOutput, Created: time.UnixMilli(1700000000123), Sequence: 7, Flags: 1, ID: newID(), PayloadType: PayloadOutput, Payload: []byte("hello")}
	b := want.Marshal()
	got, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	if !bytes.Equal(b[64:72], want.ID[8:]) {
		t.Error("the halves of the message id are not swapped on the wire")
	}
	b[len(b)-1]++
	if _, err := Parse(b); err == nil {
		t.Error("a changed payload was accepted")
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good := (&Message{Type: TypeInput, Payload: []byte("x")}).Marshal()
	for name, change := range map[string]func([]byte) []byte{
		"short":            func(b []byte) []byte { return b[:100] },
		"huge header":      func(b []byte) []byte { b[0] = 0xff; return b },
		"small header":     func(b []byte) []byte { b[3] = 10; return b },
		"long payload":     func(b []byte) []byte { return append(b, 'y') },
		"cut payload":      func(b []byte) []byte { return b[:len(b)-1] },
		"no type":          func(b []byte) []byte { copy(b[4:36], strings.Repeat(" ", 32)); return b },
		"negative in line": func(b []byte) []byte { b[48] = 0x80; return b },
	} {
		if m, err := Parse(change(slices.Clone(good))); err == nil {
			t.Errorf("Parse(%s) = %+v, want an error", name, m)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add((&Message{Type: TypeInput, Payload: []byte("x")}).Marshal())
	f.Add([]byte{0, 0, 0, 116})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(m.Marshal())
		if err != nil || !bytes.Equal(again.Payload, m.Payload) || again.Sequence != m.Sequence {
			t.Errorf("Parse(Marshal(%+v)) = %+v, %v", m, again, err)
		}
	})
}

// upper is a session whose command echoes its input in capitals, ends at "quit" or the end of input, and exits with 3.
func upper(token string) Session {
	return Session{ID: "s", Token: token, Run: func(_ context.Context, s Streams) (int, error) {
		buf := make([]byte, 4096)
		for {
			n, err := s.Stdin.Read(buf)
			if n > 0 {
				p := bytes.TrimSuffix(buf[:n], []byte{4})
				if _, err := s.Stdout.Write(bytes.ToUpper(p)); err != nil {
					return 0, err
				}
				if strings.HasSuffix(string(p), "quit") || len(p) < n {
					return 3, nil
				}
			}
			if err != nil {
				return 3, nil //nolint:nilerr // the end of input ends the command
			}
		}
	}}
}

// start serves sessions and returns their URL.
func start(t *testing.T, s Session) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if err := Serve(r.Context(), ws, s); err != nil {
			t.Logf("Serve() = %v", err)
		}
	}))
	t.Cleanup(srv.Close)
	return "ws" + strings.TrimPrefix(srv.URL, "http")
}

func TestSession(t *testing.T) {
	t.Parallel()
	c, err := Dial(t.Context(), start(t, upper("secret")), "secret")
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("abcdefghij", 20000)
	var out bytes.Buffer
	if err := c.Run(t.Context(), strings.NewReader(big+"quit"), &out, nil); err != nil {
		t.Fatal(err)
	}
	if want := strings.ToUpper(big) + "QUIT"; out.String() != want {
		t.Errorf("session gave %d bytes, want %d in order", out.Len(), len(want))
	}
	if code, known := c.ExitCode(); code != 3 || !known {
		t.Errorf("ExitCode() = %d, %v, want 3, true", code, known)
	}
}

func TestWrongTokenIsRefused(t *testing.T) {
	t.Parallel()
	c, err := Dial(t.Context(), start(t, upper("secret")), "guess")
	if err != nil {
		t.Fatal(err)
	}
	err = c.Run(t.Context(), nil, io.Discard, nil)
	if websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("Run() with a wrong token = %v, want a policy violation", err)
	}
}

func TestTerminalSizeArrives(t *testing.T) {
	t.Parallel()
	got := make(chan Size, 1)
	url := start(t, Session{Token: "t", Run: func(ctx context.Context, s Streams) (int, error) {
		select {
		case size := <-s.Resize:
			got <- size
			return 0, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}})
	c, err := Dial(t.Context(), url, "t")
	if err != nil {
		t.Fatal(err)
	}
	sizes := make(chan Size, 1)
	sizes <- Size{Cols: 120, Rows: 40}
	if err := c.Run(t.Context(), nil, io.Discard, sizes); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != (Size{Cols: 120, Rows: 40}) {
		t.Errorf("size = %+v", s)
	}
}

func TestFailedCommandTellsWhy(t *testing.T) {
	t.Parallel()
	url := start(t, Session{Token: "t", Run: func(context.Context, Streams) (int, error) { return 0, errors.New("no such file") }})
	c, err := Dial(t.Context(), url, "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context(), nil, io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	if _, known := c.ExitCode(); known || c.Message() != "no such file" {
		t.Errorf("exit code known %v, message %q", known, c.Message())
	}
}

func TestClientGoneEndsCommand(t *testing.T) {
	t.Parallel()
	began, ended := make(chan struct{}), make(chan struct{})
	url := start(t, Session{Token: "t", Run: func(ctx context.Context, _ Streams) (int, error) {
		close(began)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}})
	c, err := Dial(t.Context(), url, "t")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if err := c.Run(ctx, nil, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Run() = %v, want canceled", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the command outlived its client")
	}
}

// lossy is one end of a transport that drops and repeats binary frames and delivers some late.
type lossy struct {
	in, out chan []byte
	mu      *sync.Mutex
	rnd     *rand.Rand
	held    []byte
}

func (l *lossy) read(ctx context.Context) (bool, []byte, error) {
	select {
	case b, ok := <-l.in:
		if !ok {
			return false, nil, io.EOF
		}
		return b[0] != '{', b, nil
	case <-ctx.Done():
		return false, nil, ctx.Err()
	}
}

func (l *lossy) write(ctx context.Context, binary bool, frame []byte) error {
	l.mu.Lock()
	dice := l.rnd.IntN(10)
	held := l.held
	l.held = nil
	if binary && dice == 2 {
		l.held = frame
	}
	l.mu.Unlock()
	var send [][]byte
	switch {
	case !binary || dice > 3:
		send = [][]byte{frame}
	case dice == 3:
		send = [][]byte{frame, frame}
	}
	if held != nil {
		send = append(send, held)
	}
	for _, f := range send {
		select {
		case l.out <- f:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func TestLossyTransport(t *testing.T) {
	t.Parallel()
	a, b := make(chan []byte, 1000), make(chan []byte, 1000)
	server := &lossy{in: a, out: b, mu: &sync.Mutex{}, rnd: rand.New(rand.NewPCG(1, 2))}
	client := &lossy{in: b, out: a, mu: &sync.Mutex{}, rnd: rand.New(rand.NewPCG(3, 4))}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	const n = 300
	var got []byte
	done := make(chan struct{})
	up := newLink(client, TypeInput, TypeOutput)
	down := newLink(server, TypeOutput, TypeInput)
	up.deliver = func(Message) (bool, error) { return true, nil }
	down.deliver = func(m Message) (bool, error) {
		got = append(got, m.Payload...)
		if len(got) == n {
			close(done)
		}
		return true, nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = up.run(ctx) })
	wg.Go(func() { _ = down.run(ctx) })
	var want []byte
	for i := range n {
		want = append(want, byte(i))
		if err := up.send(ctx, PayloadOutput, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := up.flushed(ctx); err != nil {
		t.Fatal(err)
	}
	<-done
	if !bytes.Equal(got, want) {
		t.Errorf("received %d messages in the wrong order or number, want %d", len(got), n)
	}
}

// TestPause checks that a paused client sends nothing and goes on afterwards.
func TestPause(t *testing.T) {
	t.Parallel()
	l := newLink(&lossy{out: make(chan []byte, 10), mu: &sync.Mutex{}, rnd: rand.New(rand.NewPCG(1, 1))}, TypeInput, TypeOutput)
	if err := l.receive(t.Context(), Message{Type: TypePause}); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() { sent <- l.send(t.Context(), PayloadOutput, []byte("x")) }()
	select {
	case err := <-sent:
		t.Fatalf("send() while paused = %v, want it to wait", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := l.receive(t.Context(), Message{Type: TypeStart}); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestRefusedInputComesAgain checks that a message which is not taken is neither acknowledged nor lost.
func TestRefusedInputComesAgain(t *testing.T) {
	t.Parallel()
	q := newInputQueue()
	if !q.put(make([]byte, maxInput+1)) {
		t.Fatal("an empty queue refused input")
	}
	if q.put([]byte("x")) {
		t.Error("a full queue took input")
	}
	if _, err := q.Read(make([]byte, maxInput+1)); err != nil {
		t.Fatal(err)
	}
	if !q.put([]byte("x")) {
		t.Error("an emptied queue refused input")
	}
	q.close()
	if n, err := q.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("Read() = %d, %v, want the last byte", n, err)
	}
	if _, err := q.Read(make([]byte, 10)); !errors.Is(err, io.EOF) {
		t.Errorf("Read() of a closed queue = %v, want EOF", err)
	}
}

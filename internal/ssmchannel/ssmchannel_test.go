package ssmchannel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

func TestMessageRoundTrip(t *testing.T) {
	want := &Message{Type: TypeOutput, Created: time.UnixMilli(1700000000123), Sequence: 7, Flags: 1, ID: NewUUID(), PayloadType: PayloadOutput, Payload: []byte("hello")}
	b, err := want.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	if !bytes.Equal(b[offID:offID+8], want.ID[8:]) {
		t.Error("the halves of the message id are not swapped on the wire")
	}
	b[len(b)-1]++
	if _, err := ParseMessage(b); err == nil {
		t.Error("a changed payload was accepted")
	}
}

func FuzzParseMessage(f *testing.F) {
	b, err := (&Message{Type: TypeInput, Payload: []byte("x")}).AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0, 0, 0, 116})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err == nil && len(m.Payload) > len(b) {
			t.Error("payload is longer than the message")
		}
	})
}

// serve runs an agent whose command echoes each line of its input in capitals and ends at "quit".
func serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		a, err := Accept(r.Context(), ws, func(token string) error {
			if token != "secret" {
				return errors.New("no such session")
			}
			return nil
		})
		if err != nil {
			ws.CloseNow() //nolint:errcheck // refused
			return
		}
		in, typed := io.Pipe()
		go func() {
			<-a.Ready()
			io.Copy(writerFunc(func(p []byte) (int, error) {
				if _, err := a.Write(bytes.ToUpper(p)); err != nil {
					return 0, err
				}
				if strings.Contains(string(p), "quit") {
					in.Close()
				}
				return len(p), nil
			}), in) //nolint:errcheck // ends with the pipe
			if err := a.Close(context.WithoutCancel(r.Context()), "bye"); err != nil {
				t.Errorf("Close = %v", err)
			}
		}()
		if err := a.Run(r.Context(), typed, func(Size) {}); err != nil && !strings.Contains(err.Error(), "EOF") && websocket.CloseStatus(err) == -1 {
			t.Logf("agent: %v", err)
		}
	}))
	t.Cleanup(s.Close)
	return "ws" + strings.TrimPrefix(s.URL, "http")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestSession(t *testing.T) {
	s, err := Dial(t.Context(), serve(t), "secret")
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("abcdefghij", 20000)
	var out bytes.Buffer
	if err := s.Run(t.Context(), strings.NewReader(big+"quit"), &out, nil); err != nil {
		t.Fatal(err)
	}
	if want := strings.ToUpper(big) + "QUIT"; out.String() != want {
		t.Errorf("session gave %d bytes, want %d in order", out.Len(), len(want))
	}
}

func TestWrongTokenIsRefused(t *testing.T) {
	s, err := Dial(t.Context(), serve(t), "guess")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), nil, io.Discard, nil); err == nil {
		t.Error("Run with a wrong token succeeded")
	}
}

package hbone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// frameSizes go from what every peer takes to what we say that we take.
func frameSizes() []int {
	return []int{1, 16<<10 - 9, 16 << 10, 16<<10 + 1, 64 << 10, 256 << 10, 1<<20 - 1, 1 << 20}
}

// A peer may send DATA of any size up to what our SETTINGS allow, to either role; one byte more ends the connection.
func TestFrameSizesReceived(t *testing.T) {
	t.Parallel()
	var want []byte
	for i, n := range frameSizes() {
		want = append(want, bytes.Repeat([]byte{byte('a' + i)}, n)...)
	}
	send := func(r *raw, id uint32) {
		rest := want
		for _, n := range frameSizes() {
			_ = r.fr.WriteData(id, false, rest[:n])
			rest = rest[n:]
		}
	}
	check := func(t *testing.T, got []byte, err error) {
		t.Helper()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes arrived, %v, want %d in order", len(got), err, len(want))
		}
	}
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		w := rawServer(t, nil, func(r *raw, id uint32) {
			_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(":status", "200"), EndHeaders: true})
			send(r, id)
			_ = r.fr.WriteData(id, false, make([]byte, 1<<20+1))
		})
		s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		_, err = io.ReadFull(s, got)
		check(t, got, err)
		_, err = io.ReadAll(s)
		if goAway, ok := errors.AsType[*GoAwayError](err); !ok || goAway.Code != FrameSizeError {
			t.Errorf("after a frame that is too long: %v, want FRAME_SIZE_ERROR", err)
		}
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		type result struct {
			got []byte
			err error
		}
		arrived := make(chan result, 1)
		w := newWorld(t, func(_ context.Context, ss *ServerStream) {
			if s, err := ss.Accept(nil); err == nil {
				got := make([]byte, len(want))
				_, err := io.ReadFull(s, got)
				arrived <- result{got, err}
				<-s.Done()
			}
		}, options{})
		r := dialRaw(t, w)
		r.connect(1)
		send(r, 1)
		res := <-arrived
		check(t, res.got, res.err)
		_ = r.fr.WriteData(1, false, make([]byte, 1<<20+1))
		r.wantGoAway(FrameSizeError)
	})
}

// No frame is longer than a peer's SETTINGS allow, whatever they allow.
func TestFrameSizesSent(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	for _, limit := range []uint32{16 << 10, 16<<10 + 1, 64 << 10, 1 << 20, 1<<24 - 1} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			t.Parallel()
			longest, ended := make(chan uint32, 1), make(chan error, 1)
			w := rawServer(t, []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: limit}, {ID: http2.SettingInitialWindowSize, Val: 2 * size}}, func(r *raw, id uint32) {
				_ = r.c.SetDeadline(time.Now().Add(20 * time.Second))
				r.fr.SetMaxReadFrameSize(1<<24 - 1)
				_ = r.fr.WriteWindowUpdate(0, 2*size)
				_ = r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(":status", "200"), EndHeaders: true})
				var most uint32
				total := 0
				for {
					f, err := r.fr.ReadFrame()
					if err != nil {
						ended <- err
						return
					}
					if d, ok := f.(*http2.DataFrame); ok {
						most = max(most, d.Length)
						total += len(d.Data())
						if d.StreamEnded() {
							if total != size {
								err = fmt.Errorf("%d bytes arrived, want %d", total, size)
							}
							longest <- most
							ended <- err
							return
						}
					}
				}
			})
			s, _, err := w.pool.Connect(t.Context(), w.key(), Request{Authority: "x:1"})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if n, err := s.Write(make([]byte, size)); n != size || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			_ = s.CloseWrite()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if most := <-longest; most > limit {
				t.Errorf("a frame of %d bytes, the peer allows %d", most, limit)
			}
		})
	}
}

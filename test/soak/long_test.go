package soak_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// The connections that last: what policies and rotations may do to them, and what not, shows here.

// lasting keeps one connection to the steady server for the whole soak, which nothing may end.
func (f *flows) lasting() {
	c, err := dial(aliceIP, "alice", "steady")
	if err != nil {
		f.l.fault("lasting connection: %v", err)
		return
	}
	defer c.Close()
	for n := uint64(1); f.pause(); n++ {
		if err := exchange(c, n); err != nil {
			f.l.fault("lasting connection, word %d: %v", n, err)
			return
		}
		f.l.count("lasting words")
	}
}

// lateVerdict is how much later than new connections live ones may feel a policy.
const lateVerdict = 2 * time.Second

// held keeps a connection to the toggled server for as long as it may: a policy must end it, and nothing else.
func (f *flows) held() {
	c, err := dial(aliceIP, "alice", "toggled")
	if err != nil {
		f.pause()
		return
	}
	defer c.Close()
	spoken := -1 // the epoch of the last answer
	for n := uint64(1); f.pause(); n++ {
		before := f.now()
		err := exchange(c, n)
		after := f.now()
		if before.epoch != after.epoch {
			if err != nil {
				return
			}
			continue
		}
		switch {
		case err == nil && before.closed && before.settled && time.Since(before.since) > lateVerdict:
			f.l.fault("held connection: alive %v after its denial had been seen", time.Since(before.since))
			return
		case err == nil:
			spoken = after.epoch
			f.l.count("held words")
		case !before.closed && spoken == before.epoch:
			f.l.fault("held connection ended while it was allowed: %v", err)
			return
		default:
			if spoken >= 0 {
				f.l.count("held ended")
			}
			return
		}
	}
}

// toggleState is what is expected of the toggled server at a moment.
type toggleState struct {
	epoch           int
	closed, settled bool
	since           time.Time
}

func (f *flows) now() toggleState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return toggleState{f.epoch, f.closed, f.settled, f.since}
}

// pause waits between two words and reports whether to go on.
func (f *flows) pause() bool {
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case <-f.stop:
		return false
	case <-t.C:
		return true
	}
}

// exchange has one word echoed.
func exchange(c net.Conn, n uint64) error {
	var word, back [16]byte
	binary.BigEndian.PutUint64(word[:], n)
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(word[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, back[:]); err != nil {
		return err
	}
	if word != back {
		return errCorrupt
	}
	return nil
}

const (
	bulkBytes = 64 << 20
	bulkChunk = 64 << 10
)

// bulk sends as much as goes through one connection, both ways at once.
func (f *flows) bulk() {
	c, err := dial(aliceIP, "alice", "steady")
	if err != nil {
		f.l.fault("bulk connection: %v", err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
	pattern := make([]byte, 2*bulkChunk)
	for i := 0; i < len(pattern); i += 8 {
		binary.NativeEndian.PutUint64(pattern[i:], rand.Uint64())
	}
	at := func(sent int) []byte { return pattern[sent/bulkChunk%251:][:bulkChunk] } // each chunk begins elsewhere in it
	wrote := make(chan error, 1)
	go func() {
		for sent := 0; sent < bulkBytes; sent += bulkChunk {
			select {
			case <-f.stop:
				sent = bulkBytes
				continue
			default:
			}
			if _, err := c.Write(at(sent)); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- c.CloseWrite()
	}()
	got := make([]byte, bulkChunk)
	for n := 0; ; n += bulkChunk {
		if _, err = io.ReadFull(c, got); err != nil {
			break
		}
		if !bytes.Equal(got, at(n)) {
			err = errCorrupt
			break
		}
		if n%(1<<20) == 0 {
			f.l.count("bulk MiB")
		}
	}
	if !errors.Is(err, io.EOF) {
		c.Close()
		f.l.fault("bulk connection: %v, writing: %v", err, <-wrote)
		return
	}
	if err := <-wrote; err != nil {
		f.l.fault("bulk connection: writing: %v", err)
	}
}

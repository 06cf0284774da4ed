package ssmchannel

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Types of messages.
const (
	TypeInput       = "input_stream_data"  // client to agent
	TypeOutput      = "output_stream_data" // agent to client
	TypeAcknowledge = "acknowledge"
	TypeClosed      = "channel_closed"
	TypeStart       = "start_publication"
	TypePause       = "pause_publication"
)

// Types of payloads.
const (
	PayloadOutput            uint32 = 1
	PayloadError             uint32 = 2
	PayloadSize              uint32 = 3
	PayloadHandshakeRequest  uint32 = 5
	PayloadHandshakeResponse uint32 = 6
	PayloadHandshakeComplete uint32 = 7
	PayloadFlag              uint32 = 10
	PayloadStderr            uint32 = 11
	PayloadExitCode          uint32 = 12
)

// MaxPayload bounds the payload of one message. The peers send far less: a client at most 1 KiB.
const MaxPayload = 1 << 20

// The header as it stands on the wire, all numbers big-endian: header length, type (padded with spaces), schema version,
// time in milliseconds, sequence number, flags, message id, SHA-256 of the payload, payload type. The payload's length
// and the payload follow.
const (
	offType        = 4
	offSchema      = 36
	offCreated     = 40
	offSequence    = 48
	offFlags       = 56
	offID          = 64
	offDigest      = 80
	offPayloadType = 112
	headerLength   = 116
	offPayload     = headerLength + 4
)

// UUID identifies a message.
type UUID [16]byte

// NewUUID returns a random UUID, version 4.
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) //nolint:errcheck // crypto/rand never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

// String returns the usual form with hyphens.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// Message is one frame of the data channel.
type Message struct {
	Type        string
	Created     time.Time
	Sequence    int64
	Flags       uint64
	ID          UUID
	PayloadType uint32
	Payload     []byte
}

// AppendBinary appends the wire form of m to b.
func (m *Message) AppendBinary(b []byte) ([]byte, error) {
	if len(m.Type) > offSchema-offType {
		return nil, fmt.Errorf("message type %q is too long", m.Type)
	}
	if len(m.Payload) > MaxPayload {
		return nil, fmt.Errorf("payload of %d bytes is too long", len(m.Payload))
	}
	h := make([]byte, offPayload)
	binary.BigEndian.PutUint32(h, headerLength)
	copy(h[offType:offSchema], m.Type+strings.Repeat(" ", offSchema-offType))
	binary.BigEndian.PutUint32(h[offSchema:], 1)
	binary.BigEndian.PutUint64(h[offCreated:], uint64(m.Created.UnixMilli())) //nolint:gosec // after 1970
	binary.BigEndian.PutUint64(h[offSequence:], uint64(m.Sequence))           //nolint:gosec // two's complement on the wire
	binary.BigEndian.PutUint64(h[offFlags:], m.Flags)
	copy(h[offID:], m.ID[8:]) // the less significant half comes first
	copy(h[offID+8:], m.ID[:8])
	digest := sha256.Sum256(m.Payload)
	copy(h[offDigest:], digest[:])
	binary.BigEndian.PutUint32(h[offPayloadType:], m.PayloadType)
	binary.BigEndian.PutUint32(h[headerLength:], uint32(len(m.Payload))) //nolint:gosec // bounded above
	return append(append(b, h...), m.Payload...), nil
}

var errShort = errors.New("message is shorter than it says")

// ParseMessage reads the wire form. The payload aliases b.
func ParseMessage(b []byte) (*Message, error) {
	if len(b) < offPayload {
		return nil, errShort
	}
	if n := binary.BigEndian.Uint32(b); n != headerLength {
		return nil, fmt.Errorf("header length is %d, want %d", n, headerLength)
	}
	n := binary.BigEndian.Uint32(b[headerLength:])
	if n > MaxPayload || int(n) > len(b)-offPayload {
		return nil, errShort
	}
	m := &Message{
		Type:        strings.TrimRight(string(b[offType:offSchema]), " \x00"),
		Created:     time.UnixMilli(int64(binary.BigEndian.Uint64(b[offCreated:]))), //nolint:gosec // any value is a time
		Sequence:    int64(binary.BigEndian.Uint64(b[offSequence:])),                //nolint:gosec // two's complement on the wire
		Flags:       binary.BigEndian.Uint64(b[offFlags:]),
		PayloadType: binary.BigEndian.Uint32(b[offPayloadType:]),
		Payload:     b[offPayload : offPayload+int(n)],
	}
	copy(m.ID[8:], b[offID:])
	copy(m.ID[:8], b[offID+8:])
	if digest := sha256.Sum256(m.Payload); n > 0 && !bytes.Equal(digest[:], b[offDigest:offDigest+32]) {
		return nil, errors.New("payload does not match its digest")
	}
	return m, nil
}

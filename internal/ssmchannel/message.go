package ssmchannel

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Types of messages.
const (
	TypeInput  = "input_stream_data"
	TypeOutput = "output_stream_data"
	TypeAck    = "acknowledge"
	TypeClosed = "channel_closed"
	TypeStart  = "start_publication"
	TypePause  = "pause_publication"
)

// PayloadType says what the payload of a data message is.
type PayloadType uint32

// Payload types.
const (
	PayloadOutput            PayloadType = 1 // data of the stream, in both directions
	PayloadError             PayloadType = 2
	PayloadSize              PayloadType = 3
	PayloadParameter         PayloadType = 4
	PayloadHandshakeRequest  PayloadType = 5
	PayloadHandshakeResponse PayloadType = 6
	PayloadHandshakeComplete PayloadType = 7
	PayloadFlag              PayloadType = 10
	PayloadStderr            PayloadType = 11
	PayloadExitCode          PayloadType = 12
)

// flagTerminate is the payload of a PayloadFlag that asks to end the session.
const flagTerminate = 2

// The layout of a message, big endian:
//
//	  0 header length, the offset of the payload length   4
//	  4 message type, padded with spaces                  32
//	 36 schema version                                     4
//	 40 created, milliseconds since 1970                   8
//	 48 sequence number                                    8
//	 56 flags                                              8
//	 64 message id, the low half of the UUID first        16
//	 80 SHA-256 of the payload                            32
//	112 payload type                                       4
//	116 payload length                                     4
//	120 payload
const (
	headerLen     = 116
	payloadAt     = headerLen + 4
	typeLen       = 32
	schemaVersion = 1
)

// ID is a message's UUID.
type ID [16]byte

// String writes the UUID in its usual form.
func (id ID) String() string {
	h := hex.EncodeToString(id[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

func newID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

// Message is one message of the channel.
type Message struct {
	Type        string
	Created     time.Time
	Sequence    int64
	Flags       uint64
	ID          ID
	PayloadType PayloadType
	Payload     []byte
}

// Marshal encodes the message.
func (m *Message) Marshal() []byte {
	b := make([]byte, payloadAt, payloadAt+len(m.Payload))
	binary.BigEndian.PutUint32(b[0:], headerLen)
	copy(b[4:4+typeLen], m.Type+strings.Repeat(" ", typeLen))
	binary.BigEndian.PutUint32(b[36:], schemaVersion)
	binary.BigEndian.PutUint64(b[40:], uint64(m.Created.UnixMilli()))
	binary.BigEndian.PutUint64(b[48:], uint64(m.Sequence))
	binary.BigEndian.PutUint64(b[56:], m.Flags)
	copy(b[64:72], m.ID[8:])
	copy(b[72:80], m.ID[:8])
	digest := sha256.Sum256(m.Payload)
	copy(b[80:112], digest[:])
	binary.BigEndian.PutUint32(b[112:], uint32(m.PayloadType))
	binary.BigEndian.PutUint32(b[116:], uint32(len(m.Payload)))
	return append(b, m.Payload...)
}

// Parse decodes a message. The payload shares b's memory.
func Parse(b []byte) (Message, error) {
	if len(b) < payloadAt {
		return Message{}, fmt.Errorf("data channel message of %d bytes is shorter than its header", len(b))
	}
	head := binary.BigEndian.Uint32(b)
	// A longer header is legal: fields may be added before the payload length.
	if head < headerLen || uint64(head)+4 > uint64(len(b)) {
		return Message{}, fmt.Errorf("data channel message has a header length of %d", head)
	}
	payload := b[head+4:]
	if n := binary.BigEndian.Uint32(b[head:]); uint64(n) != uint64(len(payload)) {
		return Message{}, fmt.Errorf("data channel message says its payload has %d bytes, it has %d", n, len(payload))
	}
	m := Message{
		Type:        strings.TrimRight(string(b[4:4+typeLen]), " \x00"),
		Created:     time.UnixMilli(int64(binary.BigEndian.Uint64(b[40:]))),
		Sequence:    int64(binary.BigEndian.Uint64(b[48:])),
		Flags:       binary.BigEndian.Uint64(b[56:]),
		PayloadType: PayloadType(binary.BigEndian.Uint32(b[112:])),
		Payload:     payload,
	}
	copy(m.ID[8:], b[64:72])
	copy(m.ID[:8], b[72:80])
	digest := sha256.Sum256(payload)
	// Some peers send acknowledgements without a digest; data must have a right one.
	if (m.Type == TypeInput || m.Type == TypeOutput) && subtle.ConstantTimeCompare(digest[:], b[80:112]) != 1 {
		return Message{}, errors.New("data channel message has the wrong payload digest")
	}
	if m.Type == "" || m.Sequence < 0 {
		return Message{}, errors.New("data channel message has no type or a negative sequence number")
	}
	return m, nil
}

// ack is the payload of an acknowledgement.
type ack struct {
	MessageType  string `json:"AcknowledgedMessageType"`
	MessageID    string `json:"AcknowledgedMessageId"`
	Sequence     int64  `json:"AcknowledgedMessageSequenceNumber"`
	IsSequential bool   `json:"IsSequentialMessage"`
}

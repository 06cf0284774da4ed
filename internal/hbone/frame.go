package hbone

import "encoding/binary"

// Frame types, flags and settings of RFC 9113 as far as they are used.
const (
	frameHeaderLen = 9

	typeData         = 0x0
	typeHeaders      = 0x1
	typePriority     = 0x2
	typeRSTStream    = 0x3
	typeSettings     = 0x4
	typePushPromise  = 0x5
	typePing         = 0x6
	typeGoAway       = 0x7
	typeWindowUpdate = 0x8
	typeContinuation = 0x9

	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	settingHeaderTableSize      = 0x1
	settingEnablePush           = 0x2
	settingMaxConcurrentStreams = 0x3
	settingInitialWindowSize    = 0x4
	settingMaxFrameSize         = 0x5
	settingMaxHeaderListSize    = 0x6

	clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

	defaultWindow   = 65535
	defaultMaxFrame = 16384
	maxWindow       = 1<<31 - 1
	maxStreamID     = 1<<31 - 1
)

// What this end advertises; the numbers are ztunnel's.
const (
	streamWindow   = 4 << 20
	connWindow     = 16 << 20
	maxFrame       = 1 << 20
	headerTable    = 4096
	clientHeaders  = 16 << 10
	serverHeaders  = 64 << 10
	serverStreams  = 200
	assumedStreams = 100
)

// frameHeader is the head of a frame.
type frameHeader struct {
	length int
	typ    byte
	flags  byte
	stream uint32
}

func (h frameHeader) has(flag byte) bool { return h.flags&flag != 0 }

// parseFrameHeader reads the nine bytes of a frame's head; the reserved bit is ignored as it must be.
func parseFrameHeader(b []byte) frameHeader {
	_ = b[8]
	return frameHeader{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    b[3],
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

// putFrameHeader writes a frame's head to the first nine bytes of b.
func putFrameHeader(b []byte, length int, typ, flags byte, stream uint32) {
	_ = b[8]
	b[0], b[1], b[2], b[3], b[4] = byte(length>>16), byte(length>>8), byte(length), typ, flags
	binary.BigEndian.PutUint32(b[5:], stream)
}

func appendFrameHeader(b []byte, length int, typ, flags byte, stream uint32) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), typ, flags)
	return binary.BigEndian.AppendUint32(b, stream)
}

func appendWindowUpdate(b []byte, stream, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(b, 4, typeWindowUpdate, 0, stream), n)
}

func appendRST(b []byte, stream uint32, code ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHeader(b, 4, typeRSTStream, 0, stream), uint32(code))
}

func appendPing(b []byte, flags byte, data [8]byte) []byte {
	return append(appendFrameHeader(b, 8, typePing, flags, 0), data[:]...)
}

func appendGoAway(b []byte, last uint32, code ErrCode, reason string) []byte {
	b = appendFrameHeader(b, 8+len(reason), typeGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, reason...)
}

func appendSettings(b []byte, pairs ...uint32) []byte {
	b = appendFrameHeader(b, len(pairs)/2*6, typeSettings, 0, 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		b = binary.BigEndian.AppendUint16(b, uint16(pairs[i]))
		b = binary.BigEndian.AppendUint32(b, pairs[i+1])
	}
	return b
}

// appendHeaderBlock writes an encoded header block as HEADERS and as many CONTINUATION frames as it takes.
func appendHeaderBlock(b, block []byte, stream uint32, endStream bool, limit int) []byte {
	typ, flags := byte(typeHeaders), byte(0)
	if endStream {
		flags = flagEndStream
	}
	for {
		n := min(len(block), limit)
		if n == len(block) {
			flags |= flagEndHeaders
		}
		b = appendFrameHeader(b, n, typ, flags, stream)
		b = append(b, block[:n]...)
		block = block[n:]
		if flags&flagEndHeaders != 0 {
			return b
		}
		typ, flags = typeContinuation, 0
	}
}

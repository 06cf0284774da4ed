package hbone

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// Limits are the flow-control limits that a connection advertises. Zero fields mean the defaults, which are ztunnel's.
type Limits struct {
	StreamWindow int // received and not yet read bytes of a stream; 4 MiB
	ConnWindow   int // received and not yet read bytes of a connection; 16 MiB, of which a stalled stream can take a quarter
	FrameSize    int // of one frame; 1 MiB
}

// Check says what is wrong with the limits, by RFC 9113.
func (l Limits) Check() error {
	l = l.orDefaults()
	switch {
	case l.StreamWindow < defaultWindow || l.StreamWindow > maxWindow:
		return fmt.Errorf("stream window of %d bytes: want %d to %d", l.StreamWindow, defaultWindow, maxWindow)
	case l.ConnWindow < defaultWindow || l.ConnWindow > maxBuffered:
		return fmt.Errorf("connection window of %d bytes: want %d to %d", l.ConnWindow, defaultWindow, maxBuffered)
	case l.FrameSize < defaultMaxFrame || l.FrameSize > 1<<24-1:
		return fmt.Errorf("frame size of %d bytes: want %d to %d", l.FrameSize, defaultMaxFrame, 1<<24-1)
	case l.ConnWindow < l.StreamWindow:
		return errors.New("the connection window is smaller than a stream's: one stream could stall all")
	}
	return nil
}

func (l Limits) orDefaults() Limits {
	orDefault(&l.StreamWindow, streamWindow)
	orDefault(&l.ConnWindow, connWindow)
	orDefault(&l.FrameSize, maxFrame)
	return l
}

// TLSPolicy narrows or widens what is spoken below HTTP/2. The zero value is TLS 1.3 alone.
type TLSPolicy struct {
	TLS12       bool // also TLS 1.2, with ECDHE and AES-GCM only
	PostQuantum bool // only the hybrid key exchange X25519MLKEM768, which implies TLS 1.3
}

// Apply sets what the policy says in a configuration.
func (p TLSPolicy) Apply(c *tls.Config) {
	switch {
	case p.PostQuantum:
		c.MinVersion = tls.VersionTLS13
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	case p.TLS12:
		c.MinVersion = tls.VersionTLS12
		c.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		}
	}
}

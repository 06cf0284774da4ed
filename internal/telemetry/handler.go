package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// Format is how log lines are written.
type Format uint8

// The two formats of ztunnel.
const (
	Text Format = iota // tab-separated columns, then key=value
	JSON               // one flat object per line
)

// ParseFormat reads the value of LOG_FORMAT; anything but "json" is text, as in ztunnel.
func ParseFormat(s string) Format {
	if s == "json" {
		return JSON
	}
	return Text
}

// Handler is a slog.Handler that writes lines exactly as ztunnel does:
//
//	2026-01-02T03:04:05.678901Z	info	access	connection complete	src.addr=10.0.0.1:4000 src.workload="a"
//
// Strings are quoted; addresses, numbers and logattr.Bare are not. Groups flatten into dotted keys.
type Handler struct {
	w      io.Writer
	mu     *sync.Mutex // serialises writes to w
	format Format
	levels *Levels
	scope  string
	prefix string // dotted group prefix
	attrs  []slog.Attr
}

var _ slog.Handler = (*Handler)(nil)

// NewHandler returns a handler that writes to w the lines that levels let through. Each line is one call of w.Write.
func NewHandler(w io.Writer, format Format, levels *Levels) *Handler {
	return &Handler{w: w, mu: &sync.Mutex{}, format: format, levels: levels, scope: "ztunnel"}
}

// Enabled reports whether the scope's level lets level through.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.levels.For(h.scope)
}

// WithAttrs returns a handler whose lines carry as; a scope attribute moves them to that scope.
func (h *Handler) WithAttrs(as []slog.Attr) slog.Handler {
	n := *h
	n.attrs = make([]slog.Attr, len(h.attrs), len(h.attrs)+len(as))
	copy(n.attrs, h.attrs)
	for _, a := range as {
		if a.Key == logattr.ScopeKey && h.prefix == "" {
			n.scope = a.Value.String()
			continue
		}
		a.Key = h.prefix + a.Key
		n.attrs = append(n.attrs, a)
	}
	return &n
}

// WithGroup returns a handler that prefixes keys with name and a dot.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.prefix = h.prefix + name + "."
	return &n
}

// Handle writes one line.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	bp := lineBuffers.Get().(*[]byte)
	b := (*bp)[:0]
	if h.format == JSON {
		b = h.json(b, r)
	} else {
		b = h.text(b, r)
	}
	h.mu.Lock()
	_, err := h.w.Write(b)
	h.mu.Unlock()
	if cap(b) <= maxPooledLine {
		*bp = b
		lineBuffers.Put(bp)
	}
	return err
}

const maxPooledLine = 16 << 10

// lineBuffers saves one allocation per line; a pool is safe for concurrent use and holds no state.
var lineBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

func (h *Handler) text(b []byte, r slog.Record) []byte {
	b = appendTime(b, r.Time)
	b = append(b, '\t')
	b = append(b, levelName(r.Level)...)
	b = append(b, '\t')
	b = append(b, h.scope...)
	b = append(b, '\t')
	b = append(b, r.Message...)
	sep := byte('\t')
	each := func(key string, v slog.Value) {
		b = append(b, sep)
		sep = ' '
		b = append(b, key...)
		b = append(b, '=')
		b = appendTextValue(b, v)
	}
	h.each(r, each)
	return append(b, '\n')
}

func (h *Handler) json(b []byte, r slog.Record) []byte {
	b = append(b, `{"level":"`...)
	b = append(b, levelName(r.Level)...)
	b = append(b, `","time":"`...)
	b = appendTime(b, r.Time)
	b = append(b, `","scope":`...)
	b = appendJSONString(b, h.scope)
	b = append(b, `,"message":`...)
	b = appendJSONString(b, r.Message)
	h.each(r, func(key string, v slog.Value) {
		b = append(b, ',')
		b = appendJSONString(b, key)
		b = append(b, ':')
		b = appendJSONValue(b, v)
	})
	return append(b, '}', '\n')
}

// each calls f for every attribute that has a key, groups flattened.
func (h *Handler) each(r slog.Record, f func(string, slog.Value)) {
	for _, a := range h.attrs {
		flatten("", a, f)
	}
	r.Attrs(func(a slog.Attr) bool { flatten(h.prefix, a, f); return true })
}

func flatten(prefix string, a slog.Attr, f func(string, slog.Value)) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			flatten(prefix, g, f)
		}
		return
	}
	if a.Key == "" {
		return
	}
	f(prefix+a.Key, v)
}

func appendTime(b []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z")
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	case l >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}

func appendTextValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindString:
		return strconv.AppendQuote(b, v.String())
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		return strconv.AppendFloat(b, v.Float64(), 'g', -1, 64)
	case slog.KindDuration:
		return append(b, v.Duration().String()...)
	case slog.KindTime:
		return appendTime(b, v.Time())
	}
	switch a := v.Any().(type) {
	case netip.AddrPort:
		return a.AppendTo(b)
	case logattr.Bare:
		return appendBare(b, string(a))
	case error:
		return strconv.AppendQuote(b, a.Error())
	case fmt.Stringer:
		return appendBare(b, a.String())
	}
	return strconv.AppendQuote(b, fmt.Sprint(v.Any()))
}

// appendBare appends s without quotes unless it holds something that would break the line apart: a peer chooses the
// authority it asks for, and must not be able to forge columns or lines.
func appendBare(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '"' || c == '=' || c == 0x7f {
			return strconv.AppendQuote(b, s)
		}
	}
	return append(b, s...)
}

func appendJSONValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindInt64, slog.KindUint64, slog.KindBool, slog.KindFloat64:
		return appendTextValue(b, v)
	case slog.KindString:
		return appendJSONString(b, v.String())
	case slog.KindDuration:
		return appendJSONString(b, v.Duration().String())
	case slog.KindTime:
		return appendJSONString(b, string(appendTime(nil, v.Time())))
	}
	if err, ok := v.Any().(error); ok {
		return appendJSONString(b, err.Error())
	}
	return appendJSONString(b, fmt.Sprint(v.Any()))
}

func appendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\t':
			b = append(b, '\\', 't')
		case r == '\r':
			b = append(b, '\\', 'r')
		case r < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

package telemetry

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Levels says which level each scope logs at. It can be changed while loggers use it.
type Levels struct {
	mu      sync.Mutex // serialises changes
	initial levelSet
	current atomic.Pointer[levelSet]
}

type levelSet struct {
	base   slog.Level
	scopes map[string]slog.Level // never changed after publication
}

// LevelOff is above every level that is logged; LevelTrace is below debug.
const (
	LevelOff   slog.Level = 100
	LevelTrace slog.Level = -8
)

// NewLevels parses a filter as RUST_LOG has it: "info", "debug,access=info", "proxy:debug". "" means info.
func NewLevels(filter string) (*Levels, error) {
	l := &Levels{}
	set, err := levelSet{base: slog.LevelInfo}.with(filter)
	if err != nil {
		return nil, err
	}
	l.initial = set
	l.current.Store(&set)
	return l, nil
}

// For returns the level of a scope: its own, or that of its longest dotted parent, or the base level.
func (l *Levels) For(scope string) slog.Level {
	set := l.current.Load()
	if len(set.scopes) == 0 {
		return set.base
	}
	for s := scope; s != ""; {
		if lv, ok := set.scopes[s]; ok {
			return lv
		}
		i := strings.LastIndexByte(s, '.')
		if i < 0 {
			break
		}
		s = s[:i]
	}
	return set.base
}

// Set changes levels by a filter, on top of the current ones, or of the initial ones when reset is true.
func (l *Levels) Set(filter string, reset bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := *l.current.Load()
	if reset {
		from = l.initial
	}
	set, err := from.with(filter)
	if err != nil {
		return err
	}
	l.current.Store(&set)
	return nil
}

// String returns the current filter, scopes sorted.
func (l *Levels) String() string {
	set := l.current.Load()
	parts := make([]string, 0, 1+len(set.scopes))
	for _, s := range slices.Sorted(maps.Keys(set.scopes)) {
		parts = append(parts, s+"="+filterName(set.scopes[s]))
	}
	return strings.Join(append(parts, filterName(set.base)), ",")
}

func filterName(l slog.Level) string {
	if l >= LevelOff {
		return "off"
	}
	return levelName(l)
}

// maxScopes bounds the filter that can be set from outside.
const maxScopes = 64

func (s levelSet) with(filter string) (levelSet, error) {
	out := levelSet{base: s.base, scopes: maps.Clone(s.scopes)}
	if out.scopes == nil {
		out.scopes = map[string]slog.Level{}
	}
	for part := range strings.SplitSeq(filter, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		scope, name, ok := cutScope(part)
		if !ok {
			lv, err := parseLevel(part)
			if err != nil {
				return s, err
			}
			out.base = lv
			continue
		}
		lv, err := parseLevel(name)
		if err != nil {
			return s, err
		}
		out.scopes[scope] = lv
	}
	if len(out.scopes) > maxScopes {
		return s, fmt.Errorf("log filter names %d scopes, more than %d", len(out.scopes), maxScopes)
	}
	return out, nil
}

// cutScope splits "scope=level" and "scope:level". Rust's paths separate with "::", which becomes a dot; the prefix
// "ztunnel::" is dropped as ztunnel drops it when it prints.
func cutScope(s string) (scope, level string, ok bool) {
	if i := strings.LastIndexAny(s, "=:"); i > 0 {
		scope, level = strings.TrimSuffix(s[:i], ":"), s[i+1:]
		if scope == "ztunnel" {
			return "", level, false
		}
		return strings.ReplaceAll(strings.TrimPrefix(scope, "ztunnel::"), "::", "."), level, true
	}
	return "", s, false
}

func parseLevel(s string) (slog.Level, error) {
	if i := strings.LastIndexAny(s, "=:"); i >= 0 {
		s = s[i+1:]
	}
	switch strings.ToLower(s) {
	case "off":
		return LevelOff, nil
	case "error":
		return slog.LevelError, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "info":
		return slog.LevelInfo, nil
	case "debug":
		return slog.LevelDebug, nil
	case "trace":
		return LevelTrace, nil
	}
	return 0, fmt.Errorf("unknown log level %q: want off, error, warn, info, debug or trace", s)
}

package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// pattern is an event pattern: for each name either a pattern for the object of that name, or the values one of which it
// must have.
type pattern map[string]any // of pattern or []matcher

// matcher decides on one value of an event; exists is whether there is any.
type matcher func(v any, exists bool) bool

// parsePattern reads an event pattern.
func parsePattern(text string) (pattern, error) {
	var doc map[string]any
	dec := json.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(&doc); err != nil || len(doc) == 0 {
		return nil, errors.New("it must be a JSON object that is not empty")
	}
	return patternOf(doc)
}

func patternOf(doc map[string]any) (pattern, error) {
	p := pattern{}
	for name, v := range doc {
		switch v := v.(type) {
		case map[string]any:
			if len(v) == 0 {
				return nil, fmt.Errorf("empty objects are not allowed, at %q", name)
			}
			sub, err := patternOf(v)
			if err != nil {
				return nil, err
			}
			p[name] = sub
		case []any:
			if len(v) == 0 {
				return nil, fmt.Errorf("empty arrays are not allowed, at %q", name)
			}
			var all []matcher
			for _, item := range v {
				m, err := matcherOf(item)
				if err != nil {
					return nil, fmt.Errorf("%w, at %q", err, name)
				}
				all = append(all, m)
			}
			p[name] = all
		default:
			return nil, fmt.Errorf("%q must be an object or an array", name)
		}
	}
	return p, nil
}

// matcherOf makes a matcher of one item of an array of a pattern.
func matcherOf(item any) (matcher, error) {
	m, ok := item.(map[string]any)
	if !ok {
		return func(v any, exists bool) bool { return exists && v == item }, nil
	}
	if len(m) != 1 {
		return nil, errors.New("a match expression has one key")
	}
	for kind, arg := range m {
		switch kind {
		case "exists":
			want, ok := arg.(bool)
			if !ok {
				return nil, errors.New("exists takes true or false")
			}
			return func(_ any, exists bool) bool { return exists == want }, nil
		case "prefix", "suffix", "equals-ignore-case", "wildcard":
			test, err := textTest(kind, arg)
			if err != nil {
				return nil, err
			}
			return func(v any, exists bool) bool { s, ok := v.(string); return exists && ok && test(s) }, nil
		case "anything-but":
			return anythingBut(arg)
		default:
			return nil, fmt.Errorf("unrecognized match type %s (the lab has exists, prefix, suffix, equals-ignore-case, wildcard and anything-but)", kind)
		}
	}
	return nil, errors.New("a match expression has one key")
}

func textTest(kind string, arg any) (func(string) bool, error) {
	want, ok := arg.(string)
	if !ok {
		return nil, fmt.Errorf("%s takes a string", kind)
	}
	switch kind {
	case "prefix":
		return func(s string) bool { return strings.HasPrefix(s, want) }, nil
	case "suffix":
		return func(s string) bool { return strings.HasSuffix(s, want) }, nil
	case "wildcard":
		return func(s string) bool { return wildcard(want, s) }, nil
	}
	return func(s string) bool { return strings.EqualFold(s, want) }, nil
}

// wildcard matches a text against a pattern in which * stands for anything. Unlike awsserver.Wildcard, a question mark is
// one: event patterns have no other sign.
func wildcard(p, s string) bool {
	parts := strings.Split(p, "*")
	if len(parts) == 1 {
		return p == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, part := range parts[1 : len(parts)-1] {
		_, rest, ok := strings.Cut(s, part)
		if !ok {
			return false
		}
		s = rest
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// anythingBut takes a value, a list of values, or an expression about a text.
func anythingBut(arg any) (matcher, error) {
	not := func(is func(any) bool) matcher {
		return func(v any, exists bool) bool { return exists && !is(v) }
	}
	switch arg := arg.(type) {
	case []any:
		if len(arg) == 0 {
			return nil, errors.New("anything-but takes values")
		}
		return not(func(v any) bool {
			for _, a := range arg {
				if a == v {
					return true
				}
			}
			return false
		}), nil
	case map[string]any:
		for kind, sub := range arg {
			if len(arg) != 1 || kind != "prefix" && kind != "suffix" && kind != "equals-ignore-case" && kind != "wildcard" {
				break
			}
			test, err := textTest(kind, sub)
			if err != nil {
				return nil, err
			}
			return not(func(v any) bool { s, ok := v.(string); return ok && test(s) }), nil
		}
		return nil, errors.New("anything-but takes values, or one of prefix, suffix, equals-ignore-case and wildcard")
	}
	return not(func(v any) bool { return v == arg }), nil
}

// matches reports whether an event has, under every name of the pattern, a value that fits. Of a list of an event one item
// is enough.
func (p pattern) matches(event map[string]any) bool {
	for name, want := range p {
		v, exists := event[name]
		switch want := want.(type) {
		case pattern:
			if !want.matchesAny(v) {
				return false
			}
		case []matcher:
			if !anyMatches(want, v, exists) {
				return false
			}
		}
	}
	return true
}

func (p pattern) matchesAny(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return p.matches(v)
	case []any:
		for _, item := range v {
			if m, ok := item.(map[string]any); ok && p.matches(m) {
				return true
			}
		}
		return false
	}
	return p.matches(nil) // what must not exist does not
}

func anyMatches(want []matcher, v any, exists bool) bool {
	values := []any{v}
	if list, ok := v.([]any); ok {
		if values = list; len(list) == 0 {
			values, exists = []any{nil}, false
		}
	}
	for _, m := range want {
		for _, one := range values {
			switch one.(type) {
			case map[string]any, []any:
				continue // patterns are about leaves
			}
			if m(one, exists) {
				return true
			}
		}
	}
	return false
}

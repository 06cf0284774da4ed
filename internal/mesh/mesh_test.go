package mesh

import (
	"strings"
	"testing"
)

func TestParseIdentity(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want Identity
		ok   bool
	}{
		{"spiffe://cluster.local/ns/default/sa/web", Identity{"cluster.local", "default", "web"}, true},
		{"spiffe://td/ns/a/sa/b/", Identity{}, false},
		{"spiffe://td/ns/a/sa/", Identity{}, false},
		{"spiffe://td/ns//sa/b", Identity{}, false},
		{"spiffe:///ns/a/sa/b", Identity{}, false},
		{"spiffe://td/sa/a/ns/b", Identity{}, false},
		{"https://td/ns/a/sa/b", Identity{}, false},
		{"spiffe://td/ns/a/sa/b?x", Identity{}, false},
		{"spiffe://td/ns/a%2fb/sa/b", Identity{}, false},
		{"", Identity{}, false},
	} {
		got, err := ParseIdentity(c.uri)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("ParseIdentity(%q) = %v, %v, want %v, ok %v", c.uri, got, err, c.want, c.ok)
		}
	}
}

func FuzzParseIdentity(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/default/sa/web")
	f.Add("spiffe://td/ns/a/sa/b/c")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := ParseIdentity(uri)
		if err == nil && id.String() != uri {
			t.Errorf("ParseIdentity(%q).String() = %q", uri, id.String())
		}
		if err == nil && strings.Contains(id.Namespace, "/") {
			t.Errorf("namespace %q holds a slash", id.Namespace)
		}
	})
}

func TestStringMatch(t *testing.T) {
	for _, c := range []struct {
		m    StringMatch
		s    string
		want bool
	}{
		{StringMatch{MatchExact, "a"}, "a", true},
		{StringMatch{MatchExact, "a"}, "ab", false},
		{StringMatch{MatchPrefix, "a"}, "ab", true},
		{StringMatch{MatchSuffix, "b"}, "ab", true},
		{StringMatch{MatchSuffix, "a"}, "ab", false},
		{StringMatch{Kind: MatchPresence}, "", false},
		{StringMatch{Kind: MatchPresence}, "x", true},
	} {
		if got := c.m.Matches(c.s); got != c.want {
			t.Errorf("%+v.Matches(%q) = %v, want %v", c.m, c.s, got, c.want)
		}
	}
}

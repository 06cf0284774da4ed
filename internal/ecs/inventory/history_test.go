package inventory

import (
	"fmt"
	"slices"
	"testing"
)

func TestHistory(t *testing.T) {
	var nothing History
	first := nothing.Next()
	second := first.Next("a", "b")
	third := second.Next("c")
	for _, tt := range []struct {
		name     string
		now, was History
		want     string // "" for unknown
	}{
		{"the same", third, third, "[]"},
		{"one step", third, second, "[c]"},
		{"two steps", third, first, "[c a b]"},
		{"a step without a change is none", third.Next(), second, "[c]"},
		{"backwards", second, third, ""},
		{"of another", nothing.Next().Next("a"), second, ""},
		{"a branch", second.Next("x"), third, ""},
		{"from nothing", third, nothing, ""},
		{"to nothing", nothing, first, ""},
		{"nothing to nothing", nothing, nothing, ""},
	} {
		keys, ok := tt.now.Since(tt.was)
		if got := fmt.Sprint(keys); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s: Since = %s, %v; want %q", tt.name, got, ok, tt.want)
		}
	}
	long := first
	for i := range maxSteps + 1 {
		if _, ok := long.Since(first); !ok {
			t.Fatalf("forgotten after %d steps", i)
		}
		long = long.Next(fmt.Sprint(i))
	}
	if _, ok := long.Since(first); ok || len(long.steps) > maxSteps {
		t.Errorf("%d steps are kept", len(long.steps))
	}
	if _, ok := first.Next(slices.Repeat([]string{"k"}, maxKeys+1)...).Since(first); ok {
		t.Error("a change in very many places is kept")
	}
}

package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func contents[K comparable, V any](t table[K, V]) map[K]V {
	m := make(map[K]V)
	t.all(func(k K, v V) bool { m[k] = v; return true })
	return m
}

// TestTableAgainstMap changes a table and a map alike, in batches, and looks at old versions again at the end.
func TestTableAgainstMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var tab table[int, int]
	model := make(map[int]int)
	type version struct {
		tab   table[int, int]
		model map[int]int
	}
	var versions []version
	for range 200 {
		e := new(edit)
		for range 1 + r.IntN(100) {
			k := r.IntN(500)
			if r.IntN(3) == 0 {
				tab.delete(e, k)
				delete(model, k)
				continue
			}
			v := r.Int()
			tab.set(e, k, v)
			model[k] = v
		}
		versions = append(versions, version{tab, maps.Clone(model)})
	}
	for k := range 500 {
		tab.delete(new(edit), k)
	}
	if tab.len != 0 || tab.root != nil {
		t.Errorf("emptied table has len %d, root %v", tab.len, tab.root)
	}
	for i, v := range versions {
		if v.tab.len != len(v.model) {
			t.Fatalf("version %d: len %d, want %d", i, v.tab.len, len(v.model))
		}
		if diff := cmp.Diff(v.model, contents(v.tab)); diff != "" {
			t.Fatalf("version %d (-want +got):\n%s", i, diff)
		}
		for k := range 500 {
			got, ok := v.tab.get(k)
			if want, there := v.model[k]; got != want || ok != there {
				t.Fatalf("version %d: get(%d) = %v, %v, want %v, %v", i, k, got, ok, want, there)
			}
		}
	}
}

// TestTableFullCollision puts keys with the same hash into the deepest nodes, by calling those directly.
func TestTableFullCollision(t *testing.T) {
	e := new(edit)
	n := &node[string, int]{owner: e}
	for i := range 5 {
		n, _ = n.set(e, 42, maxShift, fmt.Sprint(i), i)
	}
	old := n
	e = new(edit)
	n, added := n.set(e, 42, maxShift, "3", 33)
	if added || len(n.entries) != 5 || old.entries[3].value != 3 || n.entries[3].value != 33 {
		t.Errorf("replacing: added %v, %d entries, old %v, new %v", added, len(n.entries), old.entries[3], n.entries[3])
	}
	n, removed := n.delete(e, 42, maxShift, "0")
	if !removed || len(n.entries) != 4 || len(old.entries) != 5 {
		t.Errorf("delete: removed %v, %d entries, old has %d", removed, len(n.entries), len(old.entries))
	}
	if _, removed = n.delete(e, 42, maxShift, "none"); removed {
		t.Error("delete of a missing key removed something")
	}
}

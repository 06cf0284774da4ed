package state

import (
	"hash/maphash"
	"math/bits"
)

// table is a persistent hash map: a version of it never changes, and a changed version shares all but one path of
// nodes with the one before. Reading and changing cost the same, a few hops, whether there are ten entries or a
// million. It is a hash array mapped trie with a fan-out of 32, entries and children kept apart.
//
// A batch of changes carries an *edit. Nodes made under an edit may be changed in place as long as the edit lasts,
// because no published version holds them yet; so filling a large map does not copy the same node again and again.
//
// The zero table is empty and ready to use.
type table[K comparable, V any] struct {
	root *node[K, V]
	len  int
}

// edit is the token of one batch. It must not be used after the tables that it made were published.
type edit struct{ _ byte } // not empty: two edits need two addresses

type node[K comparable, V any] struct {
	owner    *edit  // the batch that may change this node in place
	entryMap uint32 // which of the 32 slots hold an entry
	childMap uint32 // which of the 32 slots hold a child; never both
	entries  []entry[K, V]
	children []*node[K, V]
}

type entry[K comparable, V any] struct {
	key   K
	value V
}

const (
	fanoutBits = 5
	slotMask   = 1<<fanoutBits - 1
	// maxShift is the depth at which the 64 bits of a hash are used up; below it a node is a plain list.
	maxShift = 65
)

// hashSeed is the same for all tables of a process, so that hashes need not be stored. It is set once, at random,
// before anything runs; keys from outside cannot be chosen to collide.
var hashSeed = maphash.MakeSeed()

func hashOf[K comparable](k K) uint64 { return maphash.Comparable(hashSeed, k) }

func slotOf(hash uint64, shift uint) uint32 { return uint32(hash>>shift) & slotMask }

// get returns the value of k.
func (t table[K, V]) get(k K) (v V, ok bool) {
	n := t.root
	if n == nil {
		return v, false
	}
	h := hashOf(k)
	for shift := uint(0); shift < maxShift; shift += fanoutBits {
		bit := uint32(1) << slotOf(h, shift)
		if n.entryMap&bit != 0 {
			e := &n.entries[below(n.entryMap, bit)]
			if e.key == k {
				return e.value, true
			}
			return v, false
		}
		if n.childMap&bit == 0 {
			return v, false
		}
		n = n.children[below(n.childMap, bit)]
	}
	for i := range n.entries {
		if n.entries[i].key == k {
			return n.entries[i].value, true
		}
	}
	return v, false
}

// at returns the value of k, or the zero value.
func (t table[K, V]) at(k K) V {
	v, _ := t.get(k)
	return v
}

// all calls yield for each entry, in an order of its own, until it returns false.
func (t table[K, V]) all(yield func(K, V) bool) {
	if t.root != nil {
		t.root.all(yield)
	}
}

func (n *node[K, V]) all(yield func(K, V) bool) bool {
	for i := range n.entries {
		if !yield(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	for _, c := range n.children {
		if !c.all(yield) {
			return false
		}
	}
	return true
}

// set makes k map to v.
func (t *table[K, V]) set(e *edit, k K, v V) {
	if t.root == nil {
		t.root = &node[K, V]{owner: e}
	}
	root, added := t.root.set(e, hashOf(k), 0, k, v)
	t.root = root
	if added {
		t.len++
	}
}

// delete removes k.
func (t *table[K, V]) delete(e *edit, k K) {
	if t.root == nil {
		return
	}
	root, removed := t.root.delete(e, hashOf(k), 0, k)
	if !removed {
		return
	}
	t.len--
	if t.root = root; t.len == 0 {
		t.root = nil
	}
}

// own returns n itself when the batch e made it, otherwise a copy that e may change.
func (n *node[K, V]) own(e *edit) *node[K, V] {
	if n.owner == e {
		return n
	}
	c := &node[K, V]{owner: e, entryMap: n.entryMap, childMap: n.childMap}
	c.entries = append(make([]entry[K, V], 0, len(n.entries)+1), n.entries...)
	c.children = append(make([]*node[K, V], 0, len(n.children)+1), n.children...)
	return c
}

func (n *node[K, V]) set(e *edit, h uint64, shift uint, k K, v V) (_ *node[K, V], added bool) {
	if shift >= maxShift {
		return n.setInList(e, k, v)
	}
	bit := uint32(1) << slotOf(h, shift)
	switch {
	case n.entryMap&bit != 0:
		i := below(n.entryMap, bit)
		old := &n.entries[i]
		if old.key == k {
			n = n.own(e)
			n.entries[i].value = v
			return n, false
		}
		// Two keys want the slot: both move one level down.
		child := &node[K, V]{owner: e}
		child, _ = child.set(e, hashOf(old.key), shift+fanoutBits, old.key, old.value)
		child, _ = child.set(e, h, shift+fanoutBits, k, v)
		n = n.own(e)
		n.entryMap &^= bit
		n.entries = remove(n.entries, i)
		n.children = insert(n.children, below(n.childMap, bit), child)
		n.childMap |= bit
		return n, true
	case n.childMap&bit != 0:
		i := below(n.childMap, bit)
		child, added := n.children[i].set(e, h, shift+fanoutBits, k, v)
		n = n.own(e)
		n.children[i] = child
		return n, added
	}
	n = n.own(e)
	n.entries = insert(n.entries, below(n.entryMap, bit), entry[K, V]{key: k, value: v})
	n.entryMap |= bit
	return n, true
}

func (n *node[K, V]) setInList(e *edit, k K, v V) (*node[K, V], bool) {
	n = n.own(e)
	for i := range n.entries {
		if n.entries[i].key == k {
			n.entries[i].value = v
			return n, false
		}
	}
	n.entries = append(n.entries, entry[K, V]{key: k, value: v})
	return n, true
}

func (n *node[K, V]) delete(e *edit, h uint64, shift uint, k K) (_ *node[K, V], removed bool) {
	if shift >= maxShift {
		for i := range n.entries {
			if n.entries[i].key == k {
				n = n.own(e)
				n.entries = remove(n.entries, i)
				return n, true
			}
		}
		return n, false
	}
	bit := uint32(1) << slotOf(h, shift)
	switch {
	case n.entryMap&bit != 0:
		i := below(n.entryMap, bit)
		if n.entries[i].key != k {
			return n, false
		}
		n = n.own(e)
		n.entries = remove(n.entries, i)
		n.entryMap &^= bit
		return n, true
	case n.childMap&bit != 0:
		i := below(n.childMap, bit)
		child, removed := n.children[i].delete(e, h, shift+fanoutBits, k)
		if !removed {
			return n, false
		}
		n = n.own(e)
		switch {
		case len(child.children) == 0 && len(child.entries) == 0:
			n.children = remove(n.children, i)
			n.childMap &^= bit
		case len(child.children) == 0 && len(child.entries) == 1:
			// A lone entry moves up again, so that a map that shrinks gives its nodes back.
			n.children = remove(n.children, i)
			n.childMap &^= bit
			n.entries = insert(n.entries, below(n.entryMap, bit), child.entries[0])
			n.entryMap |= bit
		default:
			n.children[i] = child
		}
		return n, true
	}
	return n, false
}

// below counts the occupied slots in front of bit, which is the index of bit's own.
func below(m, bit uint32) int { return bits.OnesCount32(m & (bit - 1)) }

// insert and remove change a slice that the caller owns.
func insert[T any](s []T, i int, v T) []T {
	var zero T
	s = append(s, zero)
	copy(s[i+1:], s[i:])
	s[i] = v
	return s
}

func remove[T any](s []T, i int) []T {
	var zero T
	copy(s[i:], s[i+1:])
	s[len(s)-1] = zero // let go of what it pointed to
	return s[:len(s)-1]
}

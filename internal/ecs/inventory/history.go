package inventory

// Bounds of a History: what changed longer ago, or in more places at once, is found by comparing.
const (
	maxSteps = 16
	maxKeys  = 256
)

// Revision stands for one content of something that changes; it is compared by its address. (A pointer to the content
// itself would keep every earlier content alive.)
type Revision struct{ _ byte }

// History says what distinguishes a view or snapshot from those shortly before it, so that a reader who knows one of them
// need not compare all that both hold. The zero value knows nothing: everything must be compared.
type History struct {
	revision *Revision
	steps    []step // oldest first
}

// step leads from one revision to the next.
type step struct {
	from *Revision
	keys []string
}

// Next returns the history of what differs from h's only at the given keys; without any it is h, unless h is of nothing.
func (h History) Next(keys ...string) History {
	if len(keys) == 0 && h.revision != nil {
		return h
	}
	next := History{revision: &Revision{}}
	if h.revision == nil || len(keys) > maxKeys {
		return next
	}
	next.steps = append(next.steps, h.steps[max(0, len(h.steps)+1-maxSteps):]...)
	next.steps = append(next.steps, step{h.revision, keys})
	return next
}

// Since returns the keys at which the holder of h may differ from the holder of an earlier history, some perhaps twice;
// ok is false when that is not known.
func (h History) Since(earlier History) (keys []string, ok bool) {
	if earlier.revision == nil || h.revision == nil {
		return nil, false
	}
	at := h.revision
	for i := len(h.steps); at != earlier.revision; {
		if i--; i < 0 {
			return nil, false
		}
		keys, at = append(keys, h.steps[i].keys...), h.steps[i].from
	}
	return keys, true
}

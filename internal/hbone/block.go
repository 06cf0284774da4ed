package hbone

import (
	"sync"
	"sync/atomic"
)

const (
	smallBlockLen = 4 << 10
	blockLen      = 4 * recordPlaintext

	// A payload shorter than copyBelow is copied rather than kept in place, and so is everything while a stream has more
	// than copyAbove waiting. Both keep a peer from pinning much memory with few bytes.
	copyBelow = 2 << 10
	copyAbove = 256 << 10
)

// The pools hold blocks that nothing refers to.
var (
	smallBlocks = sync.Pool{New: func() any { return &block{buf: make([]byte, smallBlockLen)} }}
	largeBlocks = sync.Pool{New: func() any { return &block{buf: make([]byte, blockLen)} }}
)

// block is memory that several queues may refer to; the last release returns it to its pool.
type block struct {
	refs atomic.Int32
	buf  []byte
	used int // by the one goroutine that fills it
}

func newBlock(small bool) *block {
	pool := &largeBlocks
	if small {
		pool = &smallBlocks
	}
	b := pool.Get().(*block) //nolint:errcheck // the pool holds nothing else
	b.refs.Store(1)
	b.used = 0
	return b
}

func (b *block) release() {
	if b.refs.Add(-1) > 0 {
		return
	}
	if len(b.buf) == smallBlockLen {
		smallBlocks.Put(b)
		return
	}
	largeBlocks.Put(b)
}

// segment is a run of received bytes within a block it holds one reference to.
type segment struct {
	block *block
	data  []byte
}

// queue is the received and unread bytes of a stream, in order. The connection's mutex guards it.
type queue struct {
	segs []segment
	head int
	size int
	tail *block // the last segment's block if it belongs to this queue alone and may be appended to
}

// push appends p, which lies in b.
func (q *queue) push(p []byte, b *block) {
	if len(p) >= copyBelow && q.size <= copyAbove {
		b.refs.Add(1)
		q.segs = append(q.segs, segment{b, p})
		q.size += len(p)
		q.tail = nil
		return
	}
	for len(p) > 0 {
		if q.tail == nil || q.tail.used == len(q.tail.buf) {
			q.tail = newBlock(q.size < 4*smallBlockLen)
			q.segs = append(q.segs, segment{q.tail, nil})
		}
		t := q.tail
		n := copy(t.buf[t.used:], p)
		last := &q.segs[len(q.segs)-1]
		last.data = t.buf[t.used-len(last.data) : t.used+n]
		t.used += n
		q.size += n
		p = p[n:]
	}
}

// take removes up to len(out) segments; the caller must release their blocks.
func (q *queue) take(out []segment) []segment {
	n := copy(out[:cap(out)][:min(cap(out), len(q.segs)-q.head)], q.segs[q.head:])
	out = out[:n]
	for i, s := range out {
		q.size -= len(s.data)
		q.segs[q.head+i] = segment{}
	}
	q.head += n
	if q.head == len(q.segs) {
		q.segs, q.head, q.tail = q.segs[:0], 0, nil
		if cap(q.segs) > 64 {
			q.segs = nil
		}
	}
	return out
}

// untake puts segments back that could not be used, ahead of everything else.
func (q *queue) untake(segs []segment) {
	if len(segs) == 0 {
		return
	}
	rest := q.segs[q.head:]
	q.segs = append(append(make([]segment, 0, len(segs)+len(rest)+4), segs...), rest...)
	q.head = 0
	for _, s := range segs {
		q.size += len(s.data)
	}
}

// read copies to p and releases what is used up.
func (q *queue) read(p []byte) int {
	total := 0
	for len(p) > 0 && q.head < len(q.segs) {
		s := &q.segs[q.head]
		n := copy(p, s.data)
		p = p[n:]
		total += n
		s.data = s.data[n:]
		if len(s.data) > 0 {
			break
		}
		if s.block == q.tail {
			q.tail = nil
		}
		s.block.release()
		*s = segment{}
		q.head++
	}
	q.size -= total
	if q.head == len(q.segs) {
		q.segs, q.head, q.tail = q.segs[:0], 0, nil
	}
	return total
}

// drop releases everything and returns how many bytes that was.
func (q *queue) drop() int {
	n := q.size
	for _, s := range q.segs[q.head:] {
		s.block.release()
	}
	*q = queue{}
	return n
}

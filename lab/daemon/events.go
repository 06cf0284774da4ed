package daemon

import (
	"sync"
	"time"
)

// Event is one step of starting the lab, as the control API streams it.
type Event struct {
	// Step names the step. It is empty in the last event, which says how the whole start went.
	Step string `json:"step,omitempty"`
	// State is one of the States below.
	State string `json:"state"`
	// Elapsed is how long the step, or in the last event the whole start, took.
	Elapsed time.Duration `json:"elapsed,omitempty"`
	// Failure is set when State is StateFailed.
	Failure *failure `json:"failure,omitempty"`
}

// The states of a step, and of the lab as a whole.
const (
	StateRunning = "running"
	StateDone    = "done"
	StateFailed  = "failed"
	// StateReady is the state of a lab that has started in full.
	StateReady = "ready"
	// StateStopping is the state of a lab that was asked to end.
	StateStopping = "stopping"
)

// Err returns why the step failed, or nil.
func (e Event) Err() error {
	if e.Failure == nil {
		return nil
	}
	return e.Failure.err()
}

// journal keeps the events of the start, in order, for any number of readers that may come late.
type journal struct {
	mu     sync.Mutex
	events []Event       // guarded by mu; bounded by the number of steps
	more   chan struct{} // guarded by mu; closed at the next event
	state  string        // guarded by mu
}

func newJournal() *journal {
	return &journal{more: make(chan struct{}), state: StateRunning}
}

func (j *journal) add(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
	if e.Step == "" {
		j.state = e.State
	}
	close(j.more)
	j.more = make(chan struct{})
}

// from returns the events from the given one on, whether the last of all is among them, and a channel that closes when
// there are more.
func (j *journal) from(i int) (events []Event, last bool, more <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	events = j.events[min(i, len(j.events)):]
	n := len(j.events)
	return events, n > 0 && j.events[n-1].Step == "", j.more
}

func (j *journal) current() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state
}

func (j *journal) setState(state string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state = state
}

package awsserver

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// FaultKind is a way in which the endpoint can misbehave.
type FaultKind string

// The faults. Reads are the operations whose names begin with List, Describe, Get or Filter.
const (
	FaultThrottle FaultKind = "throttle" // refused as too many requests
	FaultError    FaultKind = "error"    // answered with status 500
	FaultSlow     FaultKind = "slow"     // answered late, by By
	FaultEmpty    FaultKind = "empty"    // lists come back empty
	FaultPartial  FaultKind = "partial"  // lists come back without their second half, and without a token for it
	FaultStale    FaultKind = "stale"    // reads see nothing newer than the last answer they had before
	FaultEventual FaultKind = "eventual" // every other read may be as old as By
	FaultDenied   FaultKind = "denied"   // refused by policy
	FaultSkew     FaultKind = "skew"     // the endpoint's clock is ahead by By
	FaultDown     FaultKind = "down"     // the connection is closed without an answer
	FaultLimits   FaultKind = "limits"   // AWS's own request limits of ECS are in force
)

// FaultKinds returns all kinds with what they do, in the order in which people should read them.
func FaultKinds() []struct {
	Kind FaultKind
	Does string
} {
	return []struct {
		Kind FaultKind
		Does string
	}{
		{FaultThrottle, "calls are refused as too many, in the words of their service"},
		{FaultError, "calls fail with status 500"},
		{FaultSlow, "calls are answered late (--by, 5s unless said otherwise)"},
		{FaultEmpty, "lists come back empty"},
		{FaultPartial, "lists come back without their second half"},
		{FaultStale, "reads see what they saw before the fault"},
		{FaultEventual, "every other read may be old (--by, 3s unless said otherwise)"},
		{FaultDenied, "calls are refused with AccessDeniedException"},
		{FaultSkew, "AWS's clock is ahead (--by, 20m unless said otherwise)"},
		{FaultDown, "connections are closed without an answer"},
		{FaultLimits, "AWS's own request limits of ECS are in force"},
	}
}

// maxFaults bounds the faults that stand at the same time.
const maxFaults = 100

// Fault is one misbehaviour.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// Account limits it to the calls of an account; "" means all.
	Account string `json:"account,omitempty"`
	// Call limits it to calls, such as ECS.ListTasks, ECS.* or *.DescribeTasks; "" means all.
	Call string `json:"call,omitempty"`
	// Every lets it hit only every so many-th of the calls that match; 0 and 1 mean all of them.
	Every int `json:"every,omitempty"`
	// By is the measure of slow, eventual and skew.
	By time.Duration `json:"by,omitempty"`
	// Until is when it ends by itself; the zero time means not at all.
	Until time.Time `json:"until,omitzero"`
	// Hits is how many calls it has hit.
	Hits int `json:"hits"`
}

// validate checks a fault and fills in the measure of its kind.
func (f *Fault) validate() error {
	all := FaultKinds()
	if !slices.ContainsFunc(all, func(k struct {
		Kind FaultKind
		Does string
	}) bool {
		return k.Kind == f.Kind
	}) {
		names := make([]string, 0, len(all))
		for _, k := range all {
			names = append(names, string(k.Kind))
		}
		return fmt.Errorf("no fault %q: there are %s", f.Kind, strings.Join(names, ", "))
	}
	if service, op, ok := strings.Cut(f.Call, "."); f.Call != "" && (!ok || service == "" || op == "") {
		return fmt.Errorf("call %q: want SERVICE.OPERATION such as ECS.ListTasks, in which * stands for any", f.Call)
	}
	if f.Every < 0 || f.By < 0 {
		return errors.New("a fault's measures cannot be negative")
	}
	if f.By == 0 {
		f.By = map[FaultKind]time.Duration{FaultSlow: 5 * time.Second, FaultEventual: 3 * time.Second, FaultSkew: 20 * time.Minute}[f.Kind]
	}
	return nil
}

func (f *Fault) same(o Fault) bool {
	return f.Kind == o.Kind && f.Account == o.Account && strings.EqualFold(f.Call, o.Call)
}

func (f *Fault) matches(account, service, op string) bool {
	if f.Account != "" && f.Account != account {
		return false
	}
	if f.Call == "" {
		return true
	}
	return Wildcard(strings.ToLower(f.Call), strings.ToLower(service+"."+op))
}

// Faults are the misbehaviours that stand. It is safe for concurrent use; without any, it costs calls nothing but a look.
type Faults struct {
	now func() time.Time

	mu      sync.Mutex
	all     []*standing        // guarded by mu
	buckets map[string]*bucket // guarded by mu; of FaultLimits
	memory  memory             // guarded by mu; answers to reads
}

// standing is a fault that has been set.
type standing struct {
	Fault
	set  time.Time
	seen int // calls that matched
}

// NewFaults returns a set without faults. now may be nil.
func NewFaults(now func() time.Time) *Faults {
	if now == nil {
		now = time.Now
	}
	return &Faults{now: now, buckets: map[string]*bucket{}}
}

// Set lets a fault stand, in the place of one of the same kind, account and call.
func (f *Faults) Set(fault Fault) error {
	if err := fault.validate(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	fault.Hits = 0
	f.all = slices.DeleteFunc(f.all, func(s *standing) bool { return s.same(fault) })
	if len(f.all) >= maxFaults {
		return fmt.Errorf("%d faults stand already", len(f.all))
	}
	if fault.Kind == FaultLimits {
		clear(f.buckets)
	}
	f.all = append(f.all, &standing{Fault: fault, set: f.now()})
	return nil
}

// Clear ends the faults that have the kind, account and call of like, of which each may be empty to mean any. It returns
// how many there were.
func (f *Faults) Clear(like Fault) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.all)
	f.all = slices.DeleteFunc(f.all, func(s *standing) bool {
		return (like.Kind == "" || s.Kind == like.Kind) && (like.Account == "" || s.Account == like.Account) &&
			(like.Call == "" || strings.EqualFold(s.Call, like.Call))
	})
	return before - len(f.all)
}

// List returns the faults that stand.
func (f *Faults) List() []Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expire()
	out := make([]Fault, 0, len(f.all))
	for _, s := range f.all {
		out = append(out, s.Fault)
	}
	slices.SortStableFunc(out, func(a, b Fault) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Call, b.Call)) })
	return out
}

// expire removes the faults whose time is over. The caller holds mu.
func (f *Faults) expire() {
	now := f.now()
	f.all = slices.DeleteFunc(f.all, func(s *standing) bool { return !s.Until.IsZero() && !now.Before(s.Until) })
}

// hits returns the faults that hit a call, by kind.
func (f *Faults) hits(account, service, op string) map[FaultKind]*standing {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.all) == 0 {
		return nil
	}
	f.expire()
	var out map[FaultKind]*standing
	for _, s := range f.all {
		if !s.matches(account, service, op) {
			continue
		}
		s.seen++
		if s.Every > 1 && s.seen%s.Every != 0 {
			continue
		}
		s.Hits++
		if out == nil {
			out = map[FaultKind]*standing{}
		}
		out[s.Kind] = s
	}
	return out
}

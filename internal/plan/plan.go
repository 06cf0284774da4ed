// Package plan compares the objects that discovery wants with those that exist and says what to change, under the
// safety rules in rules.go. It is pure: no clock, no input or output; the same input gives the same changes.
package plan

import (
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Action is what a change does.
type Action uint8

// The actions, in the order in which a plan lists them.
const (
	Create Action = iota
	Update
	Delete
	Hold
	Keep
)

// String returns the action's name.
func (a Action) String() string {
	return [...]string{"create", "update", "delete", "hold", "keep", "keep", "keep", "keep"}[a&7]
}

// Symbol returns the mark of the action in a rendered plan.
func (a Action) Symbol() string {
	return [...]string{"+", "~", "-", "!", "=", "=", "=", "="}[a&7]
}

// Key names an object.
type Key struct {
	Kind      string
	Namespace string
	Name      string
}

// String returns "Kind namespace/name".
func (k Key) String() string { return k.Kind + " " + k.Namespace + "/" + k.Name }

// Change is one object and what to do with it.
type Change struct {
	Action Action
	Key    Key
	// Service or Workload is the wanted object of a Create, Update or Keep, and the current one of a Delete or Hold.
	Service  *discovery.ServiceEntry
	Workload *discovery.WorkloadEntry
	// Fields are the differences of an Update.
	Fields []FieldDiff
	// Rule is the safety rule that decided about a Delete or a Hold.
	Rule Rule
	// Reason says why, for people.
	Reason string
	// Account and Region say whose object it is.
	Account, Region string
}

// FieldDiff is one field that differs.
type FieldDiff struct {
	Field    string
	Old, New string
}

// Changes is the outcome of a comparison. Each list is in the order in which it should be applied: ServiceEntries
// before WorkloadEntries for Create and Update, the other way round for Delete.
type Changes struct {
	Create []Change
	Update []Change
	Delete []Change
	Held   []Change
	// Unchanged are the objects that are as they should be, and Kept is their number. An Engine only counts them.
	Unchanged []Change
	Kept      int
	// Foreign counts current objects that were left alone because they are not ours, or of an account and region that
	// is not swept here.
	Foreign int
}

// Empty reports whether there is nothing to apply. Held changes are not applied.
func (c Changes) Empty() bool { return len(c.Create)+len(c.Update)+len(c.Delete) == 0 }

// Current is what exists in Kubernetes.
type Current struct {
	ServiceEntries  []discovery.ServiceEntry
	WorkloadEntries []discovery.WorkloadEntry
}

// Input is everything that Compute looks at.
type Input struct {
	Desired discovery.Desired
	Current Current
	// Snapshots are those that Desired was made from: one per account and region.
	Snapshots []*inventory.Snapshot
	Limits    Limits
	// Memory is what the last Compute returned; the zero value at first.
	Memory Memory
}

// Limits bound what one plan may remove.
type Limits struct {
	// MaxDeleteShare is the share of an account's WorkloadEntries that may be deleted at once; 0 means 0.5.
	MaxDeleteShare float64
	// MinDeleteCount is the number of deletions below which the share does not matter; 0 means 10.
	MinDeleteCount int
	// ReleaseAfter is for how many complete sweeps a held deletion must have been wanted, with positive evidence all
	// along, before it is released without confirmation; 0 means 3.
	ReleaseAfter int
	// Confirmed names the accounts whose mass deletions an operator has confirmed.
	Confirmed map[string]bool
}

// Memory carries what a plan must remember until the next one.
type Memory struct {
	// Held says for each held object at which sweep of its account it was first held.
	Held map[Key]HeldSince
	// Absent says for each object whose source is merely absent at which sweep that was first noticed.
	Absent map[Key]HeldSince
}

// HeldSince is the age of a held deletion.
type HeldSince struct {
	Sweep uint64 // the cluster's CompleteSweeps when it was first held
}

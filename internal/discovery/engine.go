package discovery

import (
	"cmp"
	"maps"
	"reflect"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Engine keeps what discovery wants up to date while snapshots change, at the cost of what changed. It holds a node for
// each service, task, host name and address; an update finds the services and tasks that differ by comparing pointers
// (an inventory.Snapshot shares what did not change with the one before), looks at those again, then at what they share
// with others:
//
//	service, definition ──> service node ──> host name ──> ServiceEntry
//	                             │              │ (other services of the name, other namespaces that claim it,
//	                             │              │  other entries of the object's name)
//	                             v              v
//	task, definition ──────> task node ─────> address ───> WorkloadEntry
//
// It has no input or output, like the rest of the package. It is not safe for concurrent use.
type Engine struct {
	cfg      Config
	scopes   map[scopeID]*scopeState
	services map[string]*serviceNode // by ARN
	tasks    map[string]*taskNode    // by ARN
	hosts    map[hostKey]*hostNode
	addrs    map[addrKey][]*taskNode // nearly always one

	byDefinition map[string]set        // ARNs of services and tasks, by the ARN of their definition
	byService    map[string]set        // ARNs of tasks, by their cluster's ARN and the name of their service
	byHost       map[string]set        // namespaces, by the host name that is claimed there
	told         map[Name]*hostNode    // whose entry an object is
	byName       map[Name]set          // host names, by the name that their object would like to have
	clashing     map[hostKey]*hostNode // those with problems
	troubled     set                   // ARNs of services and tasks with problems

	dirty struct {
		services, tasks set
		hosts           map[hostKey]bool
		addrs           map[addrKey]bool
	}
	delta Delta
}

// Name names an object of one kind.
type Name struct{ Namespace, Name string }

// Delta is what an update changed: the objects that are wanted now in another form than before, and nil for those that
// are no longer wanted. The objects must not be changed.
type Delta struct {
	Services  map[Name]*ServiceEntry
	Workloads map[Name]*WorkloadEntry
}

type (
	set     map[string]struct{}
	scopeID struct{ account, region string }
)

// scopeState is one account and region as of the last update.
type scopeState struct{ in Input }

type serviceNode struct {
	scope    *scopeState
	cluster  string // ARN
	name     string
	def      string
	s        *service // nil when it belongs nowhere
	skip     Skip
	lost     Skip // its host name belongs to another
	problems []Problem
}

type taskNode struct {
	scope    *scopeState
	cluster  string // ARN
	service  string // key in byService
	def      string
	w        *workload // nil when it is not to be reached
	skip     Skip
	lost     Skip // its address belongs to another
	problems []Problem
	clash    *Problem
	out      *WorkloadEntry // what was last told
}

// NewEngine returns an Engine that wants nothing yet.
func NewEngine(cfg Config) *Engine {
	e := &Engine{
		cfg: cfg.withDefaults(), scopes: map[scopeID]*scopeState{}, services: map[string]*serviceNode{}, tasks: map[string]*taskNode{},
		hosts: map[hostKey]*hostNode{}, addrs: map[addrKey][]*taskNode{},
		byDefinition: map[string]set{}, byService: map[string]set{}, byHost: map[string]set{}, byName: map[Name]set{}, told: map[Name]*hostNode{}, clashing: map[hostKey]*hostNode{}, troubled: set{},
	}
	e.dirty.services, e.dirty.tasks, e.dirty.hosts, e.dirty.addrs = set{}, set{}, map[hostKey]bool{}, map[addrKey]bool{}
	return e
}

// Update takes over the inputs, of which there is one for each account and region, and returns what changed. An account
// and region that is missing is no longer wanted at all.
func (e *Engine) Update(inputs []Input) Delta {
	e.delta = Delta{Services: map[Name]*ServiceEntry{}, Workloads: map[Name]*WorkloadEntry{}}
	seen := map[scopeID]bool{}
	for _, in := range inputs {
		id := scopeID{in.Snapshot.Account, in.Snapshot.Region}
		seen[id] = true
		st := e.scopes[id]
		if st == nil {
			st = &scopeState{in: Input{Snapshot: &inventory.Snapshot{}}}
			e.scopes[id] = st
		}
		e.compare(st, in)
	}
	for id, st := range e.scopes {
		if !seen[id] {
			e.compare(st, Input{Snapshot: &inventory.Snapshot{Account: id.account, Region: id.region}})
			delete(e.scopes, id)
		}
	}
	e.lookAtServices()
	e.lookAtHosts()
	e.lookAtTasks()
	e.lookAtAddresses()
	return e.delta
}

// compare marks what differs between the last input of a scope and the new one.
func (e *Engine) compare(st *scopeState, in Input) {
	old := st.in
	everything := old.Domain != in.Domain || old.Network != in.Network || !maps.Equal(old.Namespaces, in.Namespaces) || !slices.Equal(old.AllowedNamespaces, in.AllowedNamespaces)
	st.in = in
	if old.Snapshot == in.Snapshot && !everything {
		return
	}
	if keys, known := in.Snapshot.History.Since(old.Snapshot.History); known && !everything {
		for _, arn := range keys {
			e.compareCluster(st, arn, old.Snapshot.Clusters[arn], in.Snapshot.Clusters[arn], false)
		}
	} else {
		for arn, c := range old.Snapshot.Clusters {
			if in.Snapshot.Clusters[arn] == nil {
				e.compareCluster(st, arn, c, nil, everything)
			}
		}
		for arn, c := range in.Snapshot.Clusters {
			e.compareCluster(st, arn, old.Snapshot.Clusters[arn], c, everything)
		}
	}
	if !same(old.Snapshot.Definitions, in.Snapshot.Definitions) {
		for arn, d := range in.Snapshot.Definitions {
			if old.Snapshot.Definitions[arn] != d {
				e.markUsers(arn)
			}
		}
		for arn := range old.Snapshot.Definitions {
			if in.Snapshot.Definitions[arn] == nil {
				e.markUsers(arn)
			}
		}
	}
}

// same reports whether two maps are one and the same; snapshots share maps that did not change.
func same[K comparable, V any](a, b map[K]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() && len(a) == len(b)
}

// compareCluster marks what differs between two views of a cluster, of which either may be missing, or everything.
func (e *Engine) compareCluster(st *scopeState, arn string, old, now *inventory.ClusterView, everything bool) {
	switch {
	case old == now && !everything:
	case now == nil:
		e.compareClusters(st, arn, old, &inventory.ClusterView{}, true)
	case old == nil:
		e.compareClusters(st, arn, &inventory.ClusterView{}, now, true)
	default:
		keys, known := now.History.Since(old.History)
		if !known || everything || old.Cluster != now.Cluster {
			e.compareClusters(st, arn, old, now, everything || old.Cluster != now.Cluster)
			return
		}
		for _, key := range keys {
			e.compareOne(st, arn, old, now, key)
		}
	}
}

// compareOne marks a task or service, given by its ARN, that may differ between two views of its cluster.
func (e *Engine) compareOne(st *scopeState, cluster string, old, now *inventory.ClusterView, arn string) {
	switch {
	case old.Tasks[arn] != nil && now.Tasks[arn] == nil:
		e.dirty.tasks[arn] = struct{}{}
	case now.Tasks[arn] != nil && (old.Tasks[arn] != now.Tasks[arn] || old.Members[arn] != now.Members[arn]):
		e.markTask(st, cluster, arn)
	}
	name := inventory.LastPart(arn)
	before, after := old.Services[name], now.Services[name]
	if after != nil && after != before {
		e.markService(st, cluster, after)
	}
	if before != nil && (after == nil || after.ARN != before.ARN) {
		e.dirty.services[before.ARN] = struct{}{}
	}
}

// compareClusters marks the services and tasks that differ between two views of a cluster, or all of them.
func (e *Engine) compareClusters(st *scopeState, cluster string, old, now *inventory.ClusterView, all bool) {
	if all || !same(old.Services, now.Services) {
		for name, svc := range now.Services {
			if all || old.Services[name] != svc {
				e.markService(st, cluster, svc)
			}
		}
		for name, svc := range old.Services {
			if other := now.Services[name]; other == nil || other.ARN != svc.ARN {
				e.dirty.services[svc.ARN] = struct{}{}
			}
		}
	}
	if all || !same(old.Tasks, now.Tasks) {
		for arn, t := range now.Tasks {
			if all || old.Tasks[arn] != t {
				e.markTask(st, cluster, arn)
			}
		}
		for arn := range old.Tasks {
			if now.Tasks[arn] == nil {
				e.dirty.tasks[arn] = struct{}{}
			}
		}
	}
	if !all && !same(old.Members, now.Members) {
		for arn, name := range now.Members {
			if old.Members[arn] != name && now.Tasks[arn] != nil {
				e.markTask(st, cluster, arn)
			}
		}
		for arn := range old.Members {
			if _, ok := now.Members[arn]; !ok && now.Tasks[arn] != nil {
				e.markTask(st, cluster, arn)
			}
		}
	}
}

func (e *Engine) markService(st *scopeState, cluster string, svc *inventory.Service) {
	n := e.services[svc.ARN]
	if n == nil {
		n = &serviceNode{}
		e.services[svc.ARN] = n
	}
	n.scope, n.cluster, n.name = st, cluster, svc.Name
	e.dirty.services[svc.ARN] = struct{}{}
}

func (e *Engine) markTask(st *scopeState, cluster, arn string) {
	n := e.tasks[arn]
	if n == nil {
		n = &taskNode{}
		e.tasks[arn] = n
	}
	n.scope, n.cluster = st, cluster
	e.dirty.tasks[arn] = struct{}{}
}

func (e *Engine) markUsers(definition string) {
	for arn := range e.byDefinition[definition] {
		if e.services[arn] != nil {
			e.dirty.services[arn] = struct{}{}
		} else {
			e.dirty.tasks[arn] = struct{}{}
		}
	}
}

// lookAtServices evaluates the services that changed, and marks their host names and tasks.
func (e *Engine) lookAtServices() {
	for arn := range e.dirty.services {
		n := e.services[arn]
		if n == nil {
			continue
		}
		e.leaveHost(n)
		maps.Copy(e.dirty.tasks, e.byService[n.cluster+"\x00"+n.name])
		var svc *inventory.Service
		c := n.scope.in.Snapshot.Clusters[n.cluster]
		if c != nil {
			svc = c.Services[n.name]
		}
		if svc == nil || svc.ARN != arn {
			move(e.byDefinition, arn, n.def, "")
			delete(e.services, arn)
			delete(e.troubled, arn)
			continue
		}
		move(e.byDefinition, arn, n.def, svc.TaskDefinition)
		n.def = svc.TaskDefinition
		w := eval{cfg: e.cfg}
		n.s, n.skip = w.service(n.scope.in, c.Cluster, svc)
		n.lost, n.problems = Skip{}, w.problems
		e.trouble(arn, len(n.problems) > 0)
		e.joinHost(n)
	}
	e.dirty.services = set{} // clearing a map costs what it once held
}

// lookAtTasks evaluates the tasks that changed or whose service did, and marks their addresses.
func (e *Engine) lookAtTasks() {
	for arn := range e.dirty.tasks {
		n := e.tasks[arn]
		if n == nil {
			continue
		}
		e.leaveAddress(n)
		var t *inventory.Task
		c := n.scope.in.Snapshot.Clusters[n.cluster]
		if c != nil {
			t = c.Tasks[arn]
		}
		if t == nil {
			e.tell(n, nil)
			move(e.byDefinition, arn, n.def, "")
			move(e.byService, arn, n.service, "")
			delete(e.tasks, arn)
			delete(e.troubled, arn)
			continue
		}
		member := ""
		if name := c.Members[arn]; name != "" {
			member = n.cluster + "\x00" + name
		}
		move(e.byDefinition, arn, n.def, t.TaskDefinitionARN)
		move(e.byService, arn, n.service, member)
		n.def, n.service = t.TaskDefinitionARN, member
		v := n.scope.in.Snapshot.View(c, t)
		var svc *service
		if v.Service != nil && e.services[v.Service.ARN] != nil {
			svc = e.services[v.Service.ARN].s
		}
		w := eval{cfg: e.cfg}
		n.w, n.skip = w.task(n.scope.in, v, svc)
		n.lost, n.clash, n.problems = Skip{}, nil, w.problems
		e.trouble(arn, len(n.problems) > 0)
		e.joinAddress(n)
	}
	e.dirty.tasks = set{}
}

// tell notes in the delta what a task's entry is now.
func (e *Engine) tell(n *taskNode, now *WorkloadEntry) {
	old := n.out
	if old == now {
		return
	}
	if old != nil && (now == nil || nameOf(&old.Metadata) != nameOf(&now.Metadata)) {
		e.delta.Workloads[nameOf(&old.Metadata)] = nil // no other task has that name
	}
	if now != nil {
		e.delta.Workloads[nameOf(&now.Metadata)] = now
	}
	n.out = now
}

func nameOf(m *ObjectMeta) Name { return Name{m.Namespace, m.Name} }

// trouble notes whether a node has problems.
func (e *Engine) trouble(key string, has bool) {
	if has {
		e.troubled[key] = struct{}{}
	} else {
		delete(e.troubled, key)
	}
}

// move takes an item from one set of an index to another; "" is no set.
func move(index map[string]set, item, from, to string) {
	if from != "" && from != to {
		delete(index[from], item)
		if len(index[from]) == 0 {
			delete(index, from)
		}
	}
	if to != "" {
		if index[to] == nil {
			index[to] = set{}
		}
		index[to][item] = struct{}{}
	}
}

// Skipped says why a service or task that exists has no object; ok is false when it has one, or does not exist.
func (e *Engine) Skipped(arn string) (s Skip, ok bool) {
	if n := e.services[arn]; n != nil {
		s = cmp.Or(n.skip, n.lost)
	} else if n := e.tasks[arn]; n != nil {
		s = cmp.Or(n.skip, n.lost)
	}
	return s, s.Reason != ""
}

// Problems returns what a person should put right, sorted.
func (e *Engine) Problems() []Problem {
	var out []Problem
	for key := range e.troubled {
		if n := e.services[key]; n != nil {
			out = append(out, n.problems...)
		} else if n := e.tasks[key]; n != nil {
			out = append(out, n.problems...)
			if n.clash != nil {
				out = append(out, *n.clash)
			}
		}
	}
	for _, h := range e.clashing {
		out = append(out, h.problems...)
	}
	slices.SortFunc(out, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Cause, b.Cause))
	})
	return slices.Compact(out)
}

// Desired returns everything that is wanted. Its cost is that of everything; Update tells what changed.
func (e *Engine) Desired() Desired {
	d := Desired{Problems: e.Problems(), Skipped: map[string]Skip{}}
	for _, h := range e.hosts {
		if h.out != nil {
			d.ServiceEntries = append(d.ServiceEntries, *h.out)
		}
	}
	for arn, n := range e.tasks {
		if n.out != nil {
			d.WorkloadEntries = append(d.WorkloadEntries, *n.out)
		}
		if s, ok := e.Skipped(arn); ok {
			d.Skipped[arn] = s
		}
	}
	for arn := range e.services {
		if s, ok := e.Skipped(arn); ok {
			d.Skipped[arn] = s
		}
	}
	slices.SortFunc(d.ServiceEntries, func(a, b ServiceEntry) int { return compareMeta(&a.Metadata, &b.Metadata) })
	slices.SortFunc(d.WorkloadEntries, func(a, b WorkloadEntry) int { return compareMeta(&a.Metadata, &b.Metadata) })
	return d
}

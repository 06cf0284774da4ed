package discovery

import (
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// reservedNamespaces are never chosen by a tag: whoever may tag a task must not put it among the control plane's.
var reservedNamespaces = []string{"istio-system", "kube-system", "kube-public", "kube-node-lease"}

// Placement says who a task is in the mesh.
type Placement struct {
	Namespace          string
	ServiceAccount     string // "" when nothing says
	ServiceAccountFrom string // "task", "service", "task definition", "configuration" or ""
	WorkloadName       string // name of its WorkloadEntry
	Service            string // ECS service, "" for a standalone task
}

// Place says who a task is. The broker and discovery both ask it, so that a task's certificate and its WorkloadEntry
// always agree. An error names the tag that is wrong: a task with a wrong tag is nobody rather than somebody else.
func (c Config) Place(in Input, v inventory.TaskView) (Placement, error) {
	c = c.withDefaults()
	p := Placement{WorkloadName: objectName("ecs-task", v.Account, v.Region, v.Cluster.Name, v.Task.ID())}
	if v.Service != nil {
		p.Service = v.Service.Name
	}
	tag, from, _ := v.Tag(c.TagPrefix + "namespace")
	ns, err := c.namespace(in, v.Cluster, tag, from)
	if err != nil {
		return Placement{}, err
	}
	p.Namespace = ns
	sa, from, ok := v.Tag(c.TagPrefix + "service-account")
	switch {
	case ok && !isSubdomain(sa):
		return Placement{}, fmt.Errorf("tag %sservice-account of the %s is %q, which cannot be the name of a service account", c.TagPrefix, from, sa)
	case ok:
		p.ServiceAccount, p.ServiceAccountFrom = sa, from
	case c.DefaultServiceAccount != "":
		p.ServiceAccount, p.ServiceAccountFrom = c.DefaultServiceAccount, "configuration"
	}
	return p, nil
}

// namespace returns the namespace that a tag chooses, else that of the cluster.
func (c Config) namespace(in Input, cluster *inventory.Cluster, tag, from string) (string, error) {
	if tag == "" {
		if ns := in.Namespaces[cluster.Name]; ns != "" {
			return ns, nil
		}
		return dnsLabel(cluster.Name), nil
	}
	switch {
	case !isLabel(tag):
		return "", fmt.Errorf("tag %snamespace of the %s is %q, which cannot be the name of a namespace", c.TagPrefix, from, tag)
	case slices.Contains(reservedNamespaces, tag):
		return "", fmt.Errorf("tag %snamespace of the %s names the reserved namespace %q", c.TagPrefix, from, tag)
	case !allowed(in.AllowedNamespaces, tag):
		return "", fmt.Errorf("tag %snamespace of the %s names %q, which this account may not use", c.TagPrefix, from, tag)
	}
	return tag, nil
}

func allowed(patterns []string, ns string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
		prefix, wild := strings.CutSuffix(p, "*")
		return p == ns || wild && strings.HasPrefix(ns, prefix)
	})
}

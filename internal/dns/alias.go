package dns

import "strings"

// alias is one reading of a name.
type alias struct {
	name     string
	stripped string // the name without the search domain that led here; "" when there was none
}

// aliases returns the readings of a name, likeliest first, without duplicates. name is lower case without final dot.
func (r *Resolver) aliases(namespace, name string) []alias {
	if name == "" {
		return nil
	}
	out := make([]alias, 0, 8)
	add := func(a alias) {
		for _, have := range out {
			if have.name == a.name {
				return
			}
		}
		out = append(out, a)
	}
	add(alias{name: name})
	for _, e := range r.expand(namespace, name) {
		add(alias{name: e})
	}
	for _, d := range r.searchDomains(namespace) {
		stripped, ok := strings.CutSuffix(name, "."+d)
		if !ok || stripped == "" {
			continue
		}
		add(alias{name: stripped, stripped: stripped})
		for _, e := range r.expand(namespace, stripped) {
			add(alias{name: e, stripped: stripped})
		}
	}
	return out
}

func (r *Resolver) searchDomains(namespace string) []string {
	if r.cfg.Search != nil {
		return r.cfg.Search
	}
	d := r.cfg.Domain
	return []string{namespace + ".svc." + d, "svc." + d, d}
}

// expand returns the Kubernetes names that a short name may stand for, by its number of labels.
func (r *Resolver) expand(namespace, name string) []string {
	d := r.cfg.Domain
	svc := strings.HasSuffix(name, ".svc")
	switch strings.Count(name, ".") + 1 {
	case 1:
		return []string{name + "." + namespace + ".svc." + d}
	case 2:
		return []string{name + ".svc." + d, name + "." + namespace + ".svc." + d}
	case 3:
		if svc {
			return []string{name + "." + d, name + ".svc." + d}
		}
		return []string{name + ".svc." + d}
	case 4:
		if svc {
			return []string{name + "." + d}
		}
	}
	return nil
}

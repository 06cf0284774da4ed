package plan

import (
	"fmt"
	"io"
	"strings"
)

// Render writes the plan for people: one line per object with a mark (+ create, ~ update, - delete, ! held), the reason,
// and under an update the fields that differ. Unchanged objects are listed only if all is set.
func (c Changes) Render(w io.Writer, all bool) error {
	var b strings.Builder
	for _, list := range [][]Change{c.Create, c.Update, c.Delete, c.Held} {
		for _, ch := range list {
			ch.render(&b)
		}
	}
	if all {
		for _, ch := range c.Unchanged {
			ch.render(&b)
		}
	}
	fmt.Fprintf(&b, "plan: %d to create, %d to update, %d to delete, %d held, %d unchanged", len(c.Create), len(c.Update), len(c.Delete), len(c.Held), c.Kept)
	if c.Foreign > 0 {
		fmt.Fprintf(&b, ", %d of others left alone", c.Foreign)
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// String returns the plan as Render writes it.
func (c Changes) String() string {
	var b strings.Builder
	_ = c.Render(&b, false) // a strings.Builder never fails
	return b.String()
}

func (ch Change) render(b *strings.Builder) {
	fmt.Fprintf(b, "%s %s %s/%s", ch.Action.Symbol(), ch.Key.Kind, ch.Key.Namespace, ch.Key.Name)
	if what := ch.summary(); what != "" && ch.Action != Delete {
		b.WriteString("  " + what)
	}
	b.WriteString("\n")
	switch {
	case ch.Action == Update:
		for _, f := range ch.Fields {
			fmt.Fprintf(b, "    %s: %s -> %s\n", f.Field, orNone(f.Old), orNone(f.New))
		}
	case ch.Rule != "":
		fmt.Fprintf(b, "    %s: %s\n", ch.Rule, ch.Reason)
	}
}

// summary says in a few words what an object is.
func (ch Change) summary() string {
	switch {
	case ch.Service != nil:
		var ports []string
		for _, p := range ch.Service.Spec.Ports {
			ports = append(ports, fmt.Sprint(p.Number))
		}
		return strings.Join(ch.Service.Spec.Hosts, ",") + ":" + strings.Join(ports, ",")
	case ch.Workload != nil:
		s := ch.Workload.Spec.Address
		if sa := ch.Workload.Spec.ServiceAccount; sa != "" {
			s += " sa=" + sa
		}
		if ch.Workload.Metadata.Annotations["ambient.istio.io/redirection"] == "enabled" {
			s += " HBONE"
		}
		return s
	}
	return ""
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

package awsserver

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxListItems bounds the length of a list in a form, so that a hostile index costs nothing.
const maxListItems = 1000

// Form is the parameters of a Query request; lists are flattened as "Tags.member.1.Key".
type Form url.Values

// Get returns the first value of a parameter, or "".
func (f Form) Get(name string) string { return url.Values(f).Get(name) }

// Has reports whether the parameter was sent at all.
func (f Form) Has(name string) bool { return url.Values(f).Has(name) }

// Strings returns the plain list under a prefix: "GroupId" reads GroupId.1, GroupId.2, in order of their numbers.
func (f Form) Strings(prefix string) []string {
	var out []string
	for _, item := range f.Items(prefix) {
		out = append(out, item.Get(""))
	}
	return out
}

// Items returns the list of structures under a prefix. A structure's members are read with their own names, a plain
// value with the empty name.
func (f Form) Items(prefix string) []Form {
	byIndex := map[int]Form{}
	for k, v := range f {
		rest, ok := strings.CutPrefix(k, prefix+".")
		if !ok {
			continue
		}
		num, name, _ := strings.Cut(rest, ".")
		n, err := strconv.Atoi(num)
		if err != nil || n < 1 || n > maxListItems {
			continue
		}
		if byIndex[n] == nil {
			byIndex[n] = Form{}
		}
		byIndex[n][name] = v
	}
	indexes := make([]int, 0, len(byIndex))
	for n := range byIndex {
		indexes = append(indexes, n)
	}
	slices.Sort(indexes)
	out := make([]Form, 0, len(indexes))
	for _, n := range indexes {
		out = append(out, byIndex[n])
	}
	return out
}

package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keys returns the names of a struct's fields in the file, nested ones with a dot.
func keys(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if ft := f.Type; ft.Kind() == reflect.Pointer {
			out = append(out, keys(ft.Elem(), prefix+name+".")...)
			continue
		}
		out = append(out, prefix+name)
	}
	return out
}

// The reference has a row for each field of the file, and each variable that wins over one.
func TestReferenceIsUpToDate(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "\n## isthmus.yaml\n")
	if !ok {
		t.Fatal("configuration.md has no section isthmus.yaml")
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	var fields, variables []string
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(line, " | ")
		for _, m := range quoted.FindAllStringSubmatch(cells[0], -1) {
			fields = append(fields, m[1])
		}
		for _, m := range regexp.MustCompile("`([A-Z_]{5,})`").FindAllStringSubmatch(line, -1) {
			variables = append(variables, m[1])
		}
	}
	want := keys(reflect.TypeFor[Config](), "")
	slices.Sort(want)
	slices.Sort(fields)
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("fields (-code +page):\n%s", diff)
	}
	code, err := os.ReadFile("config.go")
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for _, m := range regexp.MustCompile(`"([A-Z][A-Z_]{4,})"`).FindAllStringSubmatch(string(code), -1) {
		known = append(known, m[1])
	}
	slices.Sort(known)
	slices.Sort(variables)
	if diff := cmp.Diff(slices.Compact(known), slices.Compact(variables)); diff != "" {
		t.Errorf("variables (-code +page):\n%s", diff)
	}
}

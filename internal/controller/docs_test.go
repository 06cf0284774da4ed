package controller

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/install"
)

// fields returns the JSON names of a struct's fields, nested ones with a dot.
func fields(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		ft := f.Type
		for ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if ft.Kind() != reflect.Struct {
			out = append(out, name)
			continue
		}
		for _, n := range fields(ft) {
			out = append(out, name+"."+n)
		}
	}
	slices.Sort(out)
	return out
}

func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("docs/reference/configuration.md has no section %q", heading)
	}
	if i := strings.Index(rest, "\n#"); i >= 0 {
		rest = rest[:i]
	}
	return rest
}

// first returns what the first column of a section's table names.
func first(text string) []string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			out = append(out, m[1])
		}
	}
	slices.Sort(out)
	return out
}

// The reference names exactly the fields and flags that there are.
func TestConfigurationReferenceIsUpToDate(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for heading, want := range map[string][]string{
		"## The file":    fields(reflect.TypeFor[settings.File]()),
		"### An account": fields(reflect.TypeFor[settings.Account]()),
	} {
		if diff := cmp.Diff(want, first(section(t, page, heading))); diff != "" {
			t.Errorf("%s (-code +page):\n%s", heading, diff)
		}
	}
	var status []string
	for i := range reflect.TypeFor[ECSAccountStatus]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[ECSAccountStatus]().Field(i).Tag.Get("json"), ",")
		status = append(status, name)
	}
	slices.Sort(status)
	if diff := cmp.Diff(status, first(section(t, page, "### Status"))); diff != "" {
		t.Errorf("### Status (-code +page):\n%s", diff)
	}
	var usage bytes.Buffer
	_, _ = ParseOptions([]string{"-h"}, nil, &usage)
	var flags []string
	for _, m := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(usage.String(), -1) {
		flags = append(flags, "--"+m[1])
	}
	slices.Sort(flags)
	if diff := cmp.Diff(flags, first(section(t, page, "## Flags"))); diff != "" {
		t.Errorf("## Flags (-code +page):\n%s", diff)
	}
}

// The definition of ECSAccount has exactly the fields that the controller reads and writes: others would be pruned by the
// API server, or ignored by us.
func TestDefinitionOfECSAccountMatchesTheCode(t *testing.T) {
	text, err := install.CRDs()
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Properties map[string]schema
		Items      *schema
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Name   string
				Schema struct{ OpenAPIV3Schema schema }
			}
		}
	}
	if err := yaml.Unmarshal(bytes.TrimSuffix(text, []byte("---\n")), &crd); err != nil {
		t.Fatal(err)
	}
	root := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	if got := "isthmus.dev/" + crd.Spec.Versions[0].Name; got != ecsAccountVersion {
		t.Errorf("version %s, want %s", got, ecsAccountVersion)
	}
	var names func(s schema) []string
	names = func(s schema) []string {
		var out []string
		for name, p := range s.Properties {
			if p.Items != nil && p.Items.Properties != nil {
				p = *p.Items
			}
			if len(p.Properties) == 0 {
				out = append(out, name)
			}
			for _, n := range names(p) {
				out = append(out, name+"."+n)
			}
		}
		slices.Sort(out)
		return out
	}
	if diff := cmp.Diff(fields(reflect.TypeFor[settings.Account]()), names(root.Properties["spec"])); diff != "" {
		t.Errorf("spec (-code +definition):\n%s", diff)
	}
	if diff := cmp.Diff(statusFields(reflect.TypeFor[ECSAccountStatus]()), names(root.Properties["status"])); diff != "" {
		t.Errorf("status (-code +definition):\n%s", diff)
	}
}

// statusFields is fields for a type in which slices of structs count as structs.
func statusFields(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		ft := t.Field(i).Type
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct {
			ft = ft.Elem()
		}
		if ft.Kind() != reflect.Struct {
			out = append(out, name)
			continue
		}
		for _, n := range statusFields(ft) {
			out = append(out, name+"."+n)
		}
	}
	slices.Sort(out)
	return out
}

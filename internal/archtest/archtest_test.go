package archtest

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/isthmus-mesh/isthmus"

type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
	Module     *struct{ Path string }
}

func list(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps,Module", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	pkgs := map[string]pkg{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[p.ImportPath] = p
	}
}

func match(pattern, path string) bool {
	pattern = strings.Replace(pattern, "./", module+"/", 1)
	if prefix, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	return path == pattern
}

func TestImports(t *testing.T) {
	pkgs := list(t)
	for _, r := range Rules() {
		for _, p := range pkgs {
			if p.Module == nil || p.Module.Path != module || !match(r.From, p.ImportPath) || exempt(r, p.ImportPath) {
				continue
			}
			reach := p.Deps
			if r.Direct {
				reach = p.Imports
			}
			for _, d := range reach {
				if forbidden(r, pkgs[d], d) {
					t.Errorf("%s must not import %s: %s", p.ImportPath, d, r.Why)
				}
			}
		}
	}
}

func exempt(r Rule, path string) bool {
	return slices.ContainsFunc(r.Except, func(e string) bool {
		from, ok := strings.CutPrefix(e, "from:")
		return ok && match(from, path)
	})
}

func forbidden(r Rule, p pkg, path string) bool {
	if slices.ContainsFunc(r.Except, func(e string) bool { return match(e, path) }) {
		return false
	}
	return slices.ContainsFunc(r.MustNot, func(m string) bool {
		if m == "external" {
			return !p.Standard
		}
		return match(m, path)
	})
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"./internal/...", module + "/internal/mesh", true},
		{"./internal/mesh", module + "/internal/meshtest", false},
		{"k8s.io/...", "k8s.io/api/core/v1", true},
		{"k8s.io/...", "sigs.k8s.io/yaml", false},
		{"os", "os/exec", false},
	} {
		if got := match(c.pattern, c.path); got != c.want {
			t.Errorf("match(%q, %q) = %v, want %v", c.pattern, c.path, got, c.want)
		}
	}
}

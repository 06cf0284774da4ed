package isthmus

import (
	"bufio"
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const maxFileLines = 500

// sourceFiles returns the repository's own files with one of the endings, relative to its root.
func sourceFiles(t *testing.T, endings ...string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (path == "bin" || path == ".git" || path == "dist" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if !d.IsDir() && slices.Contains(endings, filepath.Ext(path)) {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func generated(b []byte) bool {
	head, _, _ := bytes.Cut(b, []byte("package "))
	return bytes.Contains(head, []byte("Code generated"))
}

func TestFileSize(t *testing.T) {
	for _, f := range sourceFiles(t, ".go") {
		b := read(t, f)
		if n := bytes.Count(b, []byte("\n")); n > maxFileLines && !generated(b) {
			t.Errorf("%s has %d lines, want at most %d: split it by subject", f, n, maxFileLines)
		}
	}
}

// Every package has exactly one package comment, so that `go doc` and a newcomer find what it is for.
func TestPackageComments(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range sourceFiles(t, ".go") {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		b := read(t, f)
		if generated(b) {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f, b, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(f)
		if _, ok := docs[dir]; !ok {
			docs[dir] = nil
		}
		if parsed.Doc != nil {
			docs[dir] = append(docs[dir], f)
		}
	}
	for dir, files := range docs {
		if len(files) != 1 {
			t.Errorf("package in %s has %d package comments (%v), want 1", dir, len(files), files)
		}
	}
}

func TestNoDrawerPackages(t *testing.T) {
	for _, f := range sourceFiles(t, ".go") {
		switch name := filepath.Base(filepath.Dir(f)); name {
		case "util", "utils", "common", "helpers", "types", "base", "misc":
			t.Errorf("%s: a package called %q says nothing about what it is for", f, name)
		}
	}
}

func TestRootModuleHasNoReplace(t *testing.T) {
	for sc := bufio.NewScanner(bytes.NewReader(read(t, "go.mod"))); sc.Scan(); {
		if strings.HasPrefix(strings.TrimSpace(sc.Text()), "replace") {
			t.Errorf("go.mod: %q: a module that others install must not replace", sc.Text())
		}
	}
}

// Paths of one machine in a committed file break on every other.
func TestNoMachinePaths(t *testing.T) {
	machine := regexp.MustCompile(`(^|[^\w.])/(` + `work|farm|root)/`)
	for _, f := range sourceFiles(t, ".go", ".md", ".yaml", ".sh", ".txtar", ".proto", ".json") {
		if m := machine.Find(read(t, f)); m != nil {
			t.Errorf("%s has a path of one machine: %q", f, m)
		}
	}
}

// A test inside a synctest bubble may sleep: its clock is virtual and sleeping is how it advances.
func TestNoBareSleep(t *testing.T) {
	sleep := regexp.MustCompile(`\btime\.Sleep\(`)
	for _, f := range sourceFiles(t, ".go") {
		b := read(t, f)
		virtual := strings.HasSuffix(f, "_test.go") && bytes.Contains(b, []byte(`"testing/synctest"`))
		if f != "repo_test.go" && !virtual && sleep.Match(b) {
			t.Errorf("%s: time.Sleep decides nothing: wait for a condition", f)
		}
	}
}

var mdLink = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)

func TestMarkdownLinks(t *testing.T) {
	for _, f := range sourceFiles(t, ".md") {
		for _, m := range mdLink.FindAllSubmatch(read(t, f), -1) {
			target := string(m[1])
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(f), target)); err != nil {
				t.Errorf("%s links to %s, which does not exist", f, target)
			}
		}
	}
}

func TestChangelogHasUnreleased(t *testing.T) {
	if !bytes.Contains(read(t, "CHANGELOG.md"), []byte("## [Unreleased]")) {
		t.Error("CHANGELOG.md has no [Unreleased] section")
	}
}

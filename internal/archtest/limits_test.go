package archtest

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const limitsPage = "../../docs/reference/limits.md"

// notLimits are constants that are called a maximum and do not limit anything that is queued, kept or read.
func notLimits() map[string]string {
	return map[string]string{
		"hbone.maxWindow":           "of the protocol",
		"hbone.maxStreamID":         "of the protocol",
		"hbone.defaultMaxFrame":     "of the protocol",
		"hbone.maxSegments":         "how much one system call writes",
		"gateway.maxRecordPayload":  "of the protocol",
		"policy.maxInlinePrincipal": "longer ones are allocated",
		"state.maxShift":            "of the hash",
		"ztunnel.maxPercent":        "of how often garbage is collected",
		"telemetry.maxPooledLine":   "longer ones are not reused",
	}
}

// TestLimits checks docs/reference/limits.md: every limit of the data plane is in it, with its value, every setting of one
// too, and every test that it names exists.
func TestLimits(t *testing.T) {
	rows := limitRows(t)
	used := map[string]bool{}
	for _, dir := range limitPackages(t) {
		for name, value := range constants(t, dir) {
			full := filepath.ToSlash(strings.TrimPrefix(dir, "../")) + "." + name
			row, there := rows[full]
			_, exempt := notLimits()[full]
			used[full] = true
			switch {
			case !there && isLimit(name) && !exempt:
				t.Errorf("%s = %s is not in %s", full, value, limitsPage)
			case there && exempt:
				t.Errorf("%s is in %s and in notLimits", full, limitsPage)
			case there && quantity(t, row.value) != value.ExactString():
				t.Errorf("%s is %s in %s, and %s in the code", full, row.value, limitsPage, value)
			}
		}
	}
	for full := range rows {
		if !used[full] {
			t.Errorf("%s is in %s, and not in the code", full, limitsPage)
		}
	}
	for full := range notLimits() {
		if !used[full] {
			t.Errorf("%s is in notLimits, and not in the code", full)
		}
	}
	page, err := os.ReadFile(limitsPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range limitPackages(t) {
		for _, name := range sharedMaps(t, dir) {
			if full := filepath.ToSlash(strings.TrimPrefix(dir, "../")) + "." + name; !strings.Contains(string(page), "`"+full+"`") {
				t.Errorf("the map %s is not in %s", full, limitsPage)
			}
		}
	}
	for _, setting := range limitSettings(t) {
		if !strings.Contains(string(page), "`"+setting+"`") {
			t.Errorf("%s sets a limit and is not in %s", setting, limitsPage)
		}
	}
}

func isLimit(name string) bool {
	return regexp.MustCompile(`^(max|Max|defaultMax|DefaultMax)[A-Z]`).MatchString(name)
}

// limitSettings are the settings of the environment that look like limits.
func limitSettings(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("../ztunnel/*.go")
	if err != nil {
		t.Fatal(err)
	}
	read := regexp.MustCompile(`e\.integer\("([A-Z0-9_]*(?:MAX|CACHE|WINDOW|FRAME|LIMIT)[A-Z0-9_]*)"`)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range read.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
	}
	if len(names) < 5 {
		t.Errorf("only %q look like limits: has the way settings are read changed?", names)
	}
	return names
}

type limitRow struct{ value string }

// limitRows reads the page: the value of each limit by its name.
func limitRows(t *testing.T) map[string]limitRow {
	t.Helper()
	text, err := os.ReadFile(limitsPage)
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("`([^`]+)`")
	rows := map[string]limitRow{}
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) == 2 {
			continue // of the table of maps
		}
		if len(cells) != 6 {
			t.Errorf("line %d has %d cells, want 6", i+1, len(cells))
			continue
		}
		name := code.FindStringSubmatch(cells[0])[1]
		if _, twice := rows[name]; twice {
			t.Errorf("line %d: %s is there twice", i+1, name)
		}
		rows[name] = limitRow{strings.TrimSpace(cells[1])}
		tests := code.FindAllStringSubmatch(cells[5], -1)
		if len(tests) == 0 || strings.TrimSpace(cells[3]) == "" {
			t.Errorf("line %d: %s has no test, or does not say what happens", i+1, name)
		}
		for _, m := range tests {
			if !testExists(t, m[1]) {
				t.Errorf("line %d: there is no test %s", i+1, m[1])
			}
		}
	}
	return rows
}

// limitPackages are the directories of the data plane, generated code apart.
func limitPackages(t *testing.T) (dirs []string) {
	t.Helper()
	for _, p := range append([]string{"./internal/proxy/..."}, dataPlane...) {
		root, below := strings.CutSuffix(strings.TrimPrefix(p, "./internal/"), "/...")
		root = filepath.Join("..", root)
		if strings.HasPrefix(p, "./cmd/") {
			continue
		}
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil || !d.IsDir():
				return err
			case d.Name() == "testdata" || strings.HasSuffix(d.Name(), "pb") || path != root && !below && filepath.Base(root) != "xds":
				return fs.SkipDir
			}
			dirs = append(dirs, path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return dirs
}

// sharedMaps returns the maps in structs that have a lock, and those that need none, as Type.field.
func sharedMaps(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, f := range parsedFiles(t, token.NewFileSet(), dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			st, ok := spec.Type.(*ast.StructType)
			if !ok {
				return true
			}
			locked := false
			var maps []string
			for _, field := range st.Fields.List {
				kind := types.ExprString(field.Type)
				locked = locked || kind == "sync.Mutex" || kind == "sync.RWMutex"
				if strings.HasPrefix(kind, "map[") || kind == "sync.Map" {
					for _, name := range field.Names {
						maps = append(maps, spec.Name.Name+"."+name.Name)
					}
				}
			}
			if locked {
				names = append(names, maps...)
			}
			return true
		})
	}
	return names
}

// parsedFiles parses the files of a package, tests apart.
func parsedFiles(t *testing.T, fset *token.FileSet, dir string) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// constants returns the integer constants of a package whose value does not depend on others; durations are none.
func constants(t *testing.T, dir string) map[string]constant.Value {
	t.Helper()
	out := map[string]constant.Value{}
	fset := token.NewFileSet()
	for _, parsed := range parsedFiles(t, fset, dir) {
		for _, d := range parsed.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					if i >= len(v.Values) {
						continue
					}
					value, err := types.Eval(fset, nil, token.NoPos, types.ExprString(v.Values[i]))
					if err == nil && value.Value != nil && value.Value.Kind() == constant.Int {
						out[name.Name] = value.Value
					}
				}
			}
		}
	}
	return out
}

// quantity turns "64 KiB" and "65,536" into digits.
func quantity(t *testing.T, s string) string {
	t.Helper()
	number, unit, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(strings.ReplaceAll(number, ",", ""), 10, 64)
	factor, known := map[string]int64{"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
	if err != nil || !known {
		t.Errorf("%q is not a quantity", s)
		return ""
	}
	return fmt.Sprint(n * factor)
}

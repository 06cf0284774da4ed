package diag

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPrint(t *testing.T) {
	coded := New(RoleNotAnnotated, "service account shop/web has no annotation")
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"nil", nil, ""},
		{"plain", errors.New("boom"), "isthmus: error: boom\n"},
		{
			"coded", coded,
			"isthmus: error: the service account is not open to any role [IST2208]\n" +
				"isthmus:   cause: service account shop/web has no annotation\n" +
				"isthmus:   fix:   kubectl annotate serviceaccount NAME -n NAMESPACE ecs.solo.io/role-arn=ROLE_ARN\n" +
				"isthmus:   see:   " + DocBase + "#ist2208\n",
		},
		{
			"wrapped keeps what was attempted", fmt.Errorf("enrol web: %w", coded.WithFix("do this\nthen that")),
			"isthmus: error: enrol web: the service account is not open to any role [IST2208]\n" +
				"isthmus:   cause: service account shop/web has no annotation\n" +
				"isthmus:   fix:   do this\n" +
				"isthmus:          then that\n" +
				"isthmus:   see:   " + DocBase + "#ist2208\n",
		},
		{"joined", errors.Join(errors.New("one"), errors.New("two")), "isthmus: error: one\nisthmus: error: two\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			Print(&b, "isthmus", tt.err)
			if diff := cmp.Diff(tt.want, b.String()); diff != "" {
				t.Errorf("Print (-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorChain(t *testing.T) {
	under := errors.New("connection refused")
	err := fmt.Errorf("list pods: %w", Wrap(KubeUnreachable, under))
	if !errors.Is(err, under) {
		t.Error("errors.Is does not reach the underlying error")
	}
	if !errors.Is(err, New(KubeUnreachable, "")) || errors.Is(err, New(KubeForbidden, "")) {
		t.Error("errors.Is does not compare codes")
	}
	if got := CodeOf(err); got != KubeUnreachable {
		t.Errorf("CodeOf = %q, want %q", got, KubeUnreachable)
	}
	if got := CodeOf(under); got != "" {
		t.Errorf("CodeOf(plain) = %q, want none", got)
	}
	if got := New("IST9999", "odd").Error(); got != "unlisted problem: odd [IST9999]" {
		t.Errorf("unlisted code prints %q", got)
	}
}

func TestCatalogue(t *testing.T) {
	form := regexp.MustCompile(`^IST[1-4][0-9]{3}$`)
	var codes []string
	for _, e := range Catalogue() {
		codes = append(codes, string(e.Code))
		if !form.MatchString(string(e.Code)) {
			t.Errorf("code %q has not the form ISTnnnn", e.Code)
		}
		if e.Summary == "" || e.Cause == "" || e.Fix == "" {
			t.Errorf("%s: summary, cause and fix are all required", e.Code)
		}
		if strings.HasSuffix(e.Summary, ".") {
			t.Errorf("%s: summary ends with a full stop", e.Code)
		}
		if !strings.Contains(string(Markdown()), "### "+string(e.Code)+"\n") {
			t.Errorf("%s: not on the reference page", e.Code)
		}
	}
	if !slices.IsSorted(codes) {
		t.Errorf("codes are not in order: %v", codes)
	}
	if len(slices.Compact(slices.Clone(codes))) != len(codes) {
		t.Errorf("a code is listed twice: %v", codes)
	}
}

// TestConstantsAreListed reads the source, because Go cannot enumerate constants: a code without an entry would print
// as an unlisted problem.
func TestConstantsAreListed(t *testing.T) {
	src, err := os.ReadFile("catalogue.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`Code = "(IST[0-9]+)"`).FindAllStringSubmatch(string(src), -1) {
		if _, ok := Lookup(Code(m[1])); !ok {
			t.Errorf("constant %s has no entry in the catalogue", m[1])
		}
	}
}

func TestReferencePageIsFresh(t *testing.T) {
	page := filepath.Join("..", "..", "docs", "reference", "errors.md")
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatalf("%v (run: go generate ./internal/diag)", err)
	}
	if diff := cmp.Diff(string(Markdown()), string(got)); diff != "" {
		t.Errorf("docs/reference/errors.md is stale; run: go generate ./internal/diag\n(-want +got):\n%s", diff)
	}
}

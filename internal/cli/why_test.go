package cli

import (
	"errors"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/proxy/why"
)

// What proxies answer to the question why: ours, Istio's own, and what is neither.
func TestReadWhy(t *testing.T) {
	const usage = "\nusage: GET /why?source=SOURCE\n"
	for name, c := range map[string]struct {
		code    int
		body    string
		verdict string
		err     diag.Code
		usage   bool
	}{
		"an answer":              {code: 200, body: `{"verdict": "denied", "workloads": []}`, verdict: why.Denied},
		"an answer of a page":    {code: 200, body: `<html>`, err: diag.ProxyDumpUnreadable},
		"an answer of nothing":   {code: 200, body: `{}`, err: diag.ProxyDumpUnreadable},
		"unknown to ours":        {code: 404, body: "destination: no service" + usage, err: diag.WhyUnanswered},
		"malformed to ours":      {code: 400, body: "destination: not a port" + usage, usage: true},
		"Istio's own":            {code: 404, body: "Not Found"}, // its dump is judged instead
		"a proxy that is broken": {code: 500, body: "oops", err: diag.ProxyDumpUnreadable},
	} {
		a, err := readWhy(c.code, []byte(c.body))
		var wrong usageError
		switch {
		case c.verdict != "":
			if err != nil || a.Verdict != c.verdict {
				t.Errorf("%s = %+v, %v", name, a, err)
			}
		case a != nil || c.usage != errors.As(err, &wrong) || diag.CodeOf(err) != c.err:
			t.Errorf("%s = %+v, %v; want code %q", name, a, err, c.err)
		}
	}
}

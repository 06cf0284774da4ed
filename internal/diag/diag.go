// Package diag holds the errors that Isthmus shows to people: each has a code, a cause, a fix and a page to read.
//
// The codes are listed in catalogue.go and nowhere else; docs/reference/errors.md is made from that list. Code IST1xxx
// is discovery, IST2xxx identity and the broker, IST3xxx enrolment and the command line, IST4xxx the lab. A code keeps
// its meaning for ever: scripts and runbooks name it.
package diag

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// DocBase is where the generated page of error codes is published; the anchor is the code in lower case.
const DocBase = "https://github.com/isthmus-mesh/isthmus/blob/main/docs/reference/errors.md"

// Code is a stable error code, for example "IST2103".
type Code string

// Doc returns the address of the code's entry.
func (c Code) Doc() string { return DocBase + "#" + strings.ToLower(string(c)) }

// Error is an error that a person can act on.
type Error struct {
	// Code names the kind of problem.
	Code Code
	// Summary says in one line what did not work.
	Summary string
	// Cause says why, with the names and values at hand.
	Cause string
	// Fix says what to do about it.
	Fix string
	// Doc is the address of a page that says more.
	Doc string
	// Err is the underlying error, if there is one; it is for logs and errors.Is and is not printed by Print.
	Err error
}

// New returns an Error with the catalogue's summary and fix and the given cause. A code that the catalogue lacks still
// makes a usable Error, so that a mistake here never hides a problem there.
func New(code Code, cause string) *Error {
	e := &Error{Code: code, Cause: cause, Doc: code.Doc()}
	if entry, ok := Lookup(code); ok {
		e.Summary, e.Fix = entry.Summary, entry.Fix
		if cause == "" {
			e.Cause = entry.Cause
		}
	} else {
		e.Summary = "unlisted problem"
	}
	return e
}

// Newf is New with a formatted cause.
func Newf(code Code, format string, args ...any) *Error {
	return New(code, fmt.Sprintf(format, args...))
}

// Wrap is New with an underlying error, whose text becomes the cause.
func Wrap(code Code, err error) *Error {
	e := New(code, err.Error())
	e.Err = err
	return e
}

// WithFix returns a copy of e with another fix, for places that know the exact command to type.
func (e *Error) WithFix(format string, args ...any) *Error {
	c := *e
	c.Fix = fmt.Sprintf(format, args...)
	return &c
}

// Error returns the summary, cause and code in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Summary)
	if e.Cause != "" {
		b.WriteString(": ")
		b.WriteString(e.Cause)
	}
	if e.Code != "" {
		b.WriteString(" [" + string(e.Code) + "]")
	}
	return b.String()
}

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, diag.New(code, "")) true for every error with that code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// CodeOf returns the code of the first Error in err's chain, or "".
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Print writes err for a person. An Error gets its cause, fix and page on lines of their own; any other error gets one
// line. A joined error is printed part by part.
func Print(w io.Writer, program string, err error) {
	if err == nil {
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, part := range joined.Unwrap() {
			Print(w, program, part)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) {
		fmt.Fprintf(w, "%s: error: %v\n", program, err)
		return
	}
	head := e.Summary
	if prefix, ok := strings.CutSuffix(err.Error(), e.Error()); ok {
		head = prefix + head // what wrapping errors said was attempted
	}
	fmt.Fprintf(w, "%s: error: %s [%s]\n", program, head, e.Code)
	detail(w, program, "cause", e.Cause)
	detail(w, program, "fix", e.Fix)
	detail(w, program, "see", e.Doc)
}

// detail prints one labelled line; the lines of a longer text are aligned under the first.
func detail(w io.Writer, program, label, text string) {
	if text == "" {
		return
	}
	pad := strings.Repeat(" ", len("cause:")-len(label)-1)
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i == 0 {
			fmt.Fprintf(w, "%s:   %s:%s %s\n", program, label, pad, line)
			continue
		}
		fmt.Fprintf(w, "%s:          %s\n", program, line)
	}
}

// Markdown returns the reference page of every code.
func Markdown() []byte {
	var b strings.Builder
	b.WriteString("# Error codes\n\n")
	b.WriteString("Made from the catalogue in `internal/diag/catalogue.go` by `go generate ./internal/diag`; do not edit by hand.\n")
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n", s.title)
		for _, e := range catalogue {
			if !strings.HasPrefix(string(e.Code), s.prefix) {
				continue
			}
			fmt.Fprintf(&b, "\n### %s\n\n**%s**\n\nCause: %s\n\nFix: %s\n", e.Code, e.Summary, e.Cause, e.Fix)
		}
	}
	return []byte(b.String())
}

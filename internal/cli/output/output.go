// Package output is how the command line talks to a person or a pipe: data to standard output, everything else to
// standard error; tables for people, JSON and YAML for programs; colour and progress only on a terminal that wants it.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"
)

// Streams are the three standard streams with what the terminal can do.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Color    bool // colour on Out and Err
	TTY      bool // Err is a terminal: progress may be redrawn
	UTF8     bool // symbols beyond ASCII may be used
}

// New returns the streams of a process. Colour follows NO_COLOR, CLICOLOR_FORCE and TERM=dumb.
func New(in io.Reader, out, errw io.Writer, environ []string) *Streams {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	s := &Streams{In: in, Out: out, Err: errw, TTY: isTerminal(errw)}
	s.Color = isTerminal(out) && env["NO_COLOR"] == "" && env["TERM"] != "dumb"
	if v := env["CLICOLOR_FORCE"]; v != "" && v != "0" && env["NO_COLOR"] == "" {
		s.Color = true
	}
	for _, k := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := env[k]; v != "" {
			up := strings.ToUpper(v)
			s.UTF8 = strings.Contains(up, "UTF-8") || strings.Contains(up, "UTF8")
			break
		}
	}
	return s
}

// SetColor turns colour on ("always") or off ("never"); anything else leaves it as New found it.
func (s *Streams) SetColor(when string) {
	switch when {
	case "always":
		s.Color = true
	case "never":
		s.Color = false
	}
}

// Choice is the value of a flag that takes one of a few words.
type Choice struct {
	value string
	words []string
}

// NewChoice returns a Choice with a value to begin with and the words it may become.
func NewChoice(value string, words ...string) Choice { return Choice{value: value, words: words} }

// String returns the word chosen.
func (c *Choice) String() string { return c.value }

// Words returns the words that may be chosen.
func (c *Choice) Words() []string { return c.words }

// Set chooses a word; one that is not listed is an error.
func (c *Choice) Set(word string) error {
	if !slices.Contains(c.words, word) {
		if near := Nearest(word, c.words); near != "" {
			return fmt.Errorf("want one of %s: did you mean %s?", strings.Join(c.words, ", "), near)
		}
		return fmt.Errorf("want one of %s", strings.Join(c.words, ", "))
	}
	c.value = word
	return nil
}

// Type names the kind of value in help texts.
func (c *Choice) Type() string { return "word" }

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Colour codes of Paint.
const (
	Green  = "32"
	Red    = "31"
	Yellow = "33"
	Bold   = "1"
	Dim    = "2"
)

// Paint returns text in a colour, or as it is when colour is off.
func (s *Streams) Paint(code, text string) string {
	if !s.Color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// symbol picks the ASCII form where the locale is not UTF-8.
func (s *Streams) symbol(fancy, plain string) string {
	if s.UTF8 {
		return fancy
	}
	return plain
}

// Notef writes a remark for a person to standard error.
func (s *Streams) Notef(format string, args ...any) { fmt.Fprintf(s.Err, format+"\n", args...) }

// Printf writes data to standard output.
func (s *Streams) Printf(format string, args ...any) { fmt.Fprintf(s.Out, format, args...) }

// Seconds renders a duration with one decimal, as in "1.2s".
func Seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// Table writes rows under upper-case headers, columns two spaces apart, without trailing blanks.
func Table(w io.Writer, header []string, rows [][]string) {
	width := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			if i < len(width) {
				width[i] = max(width[i], utf8.RuneCountInString(cell))
			}
		}
	}
	for _, row := range append([][]string{header}, rows...) {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 && i < len(width) {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// Encode writes v in a format: "json" or "yaml".
func Encode(w io.Writer, format string, v any) error {
	switch format {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	return fmt.Errorf("output format %q: want json or yaml", format)
}

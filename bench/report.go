package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report gathers samples and prints them.
type report struct {
	o       options
	start   time.Time
	load    string // at the start
	metrics []metric
	samples map[string]map[string]map[int]float64 // metric, contestant, round
	facts   []fact
	remarks []string
}

// fact is a figure that stands for itself. Limit is what it may be; 0 means that nothing is demanded.
type fact struct {
	name, unit   string
	value, limit float64
}

func newReport(o options) *report {
	return &report{o: o, start: time.Now(), load: loadAverage(), samples: map[string]map[string]map[int]float64{}}
}

func (r *report) declare(m metric) {
	r.metrics = append(r.metrics, m)
	r.samples[m.name] = map[string]map[int]float64{}
}

func (r *report) sample(metric, contestant string, round int, v float64) {
	by := r.samples[metric]
	if by[contestant] == nil {
		by[contestant] = map[int]float64{}
	}
	by[contestant][round] = v
}

func (r *report) fact(name, unit string, value, limit float64) {
	r.facts = append(r.facts, fact{name, unit, value, limit})
}

func (r *report) remark(format string, args ...any) {
	first, _, _ := strings.Cut(fmt.Sprintf(format, args...), "\n") // each of a thousand connections may have its error
	r.remarks = append(r.remarks, first)
}

// ratios are those of a to b, round by round, sorted.
func (r *report) ratios(metric, a, b string) []float64 {
	var out []float64
	for round, v := range r.samples[metric][a] {
		if w, ok := r.samples[metric][b][round]; ok && w != 0 {
			out = append(out, v/w)
		}
	}
	slices.Sort(out)
	return out
}

func median(sorted []float64) float64 {
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

func (r *report) medianOf(metric, contestant string) float64 {
	return median(slices.Sorted(maps.Values(r.samples[metric][contestant])))
}

// contestants are those with samples, in the order in which they are compared.
func (r *report) contestants() []string {
	seen := map[string]bool{}
	for _, by := range r.samples {
		for c := range by {
			seen[c] = true
		}
	}
	order := []string{"direct", "tcp", "tls", "haproxy", "stunnel", "istio", "socks", "isthmus"}
	return slices.SortedFunc(maps.Keys(seen), func(a, b string) int { return cmp.Compare(slices.Index(order, a), slices.Index(order, b)) })
}

func (r *report) write(w io.Writer) error {
	var b bytes.Buffer
	r.head(&b)
	names := r.contestants()
	if len(r.metrics) > 0 {
		fmt.Fprintln(&b, "\nThe bars: median of the rounds, and ratios to others in the same round as median (and the middle half of them)")
		r.table(&b, names, false)
		fmt.Fprintln(&b, "\nProcessor time of everybody on the path, load and application included (depends less on what else the machine does)")
		r.table(&b, names, true)
	}
	if len(r.facts) > 0 {
		fmt.Fprintln(&b, "\nFigures of their own")
		r.factTable(&b)
	}
	for _, remark := range r.remarks {
		fmt.Fprintln(&b, "remark: "+remark)
	}
	r.benchstat(&b, names)
	_, err := w.Write(b.Bytes())
	return err
}

func (r *report) head(w io.Writer) {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Fprintf(w, "isthmus bench, %s\n", r.start.UTC().Format(time.RFC3339))
	fmt.Fprintf(w, "machine: %d x %s, %s\n", runtime.NumCPU(), procField("/proc/cpuinfo", "model name"), procField("/proc/meminfo", "MemTotal"))
	fmt.Fprintf(w, "kernel:  %s\n", unix.ByteSliceToString(uts.Release[:]))
	fmt.Fprintf(w, "go:      %s\n", runtime.Version())
	fmt.Fprintf(w, "commit:  %s\n", cmp.Or(os.Getenv("ISTHMUS_BENCH_COMMIT"), "unknown"))
	fmt.Fprintf(w, "load:    %s before, %s after (the benchmark itself makes some); took %s\n", r.load, loadAverage(), time.Since(r.start).Round(time.Second))
	fmt.Fprintf(w, "rounds:  %d of %s each, contestants in turn\n", r.o.rounds, r.o.duration)
	if r.o.note != "" {
		fmt.Fprintf(w, "note:    %s\n", r.o.note)
	}
}

func procField(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(text))
	if len(f) == 0 {
		return "unknown"
	}
	return f[0]
}

// table has a line per metric: the medians of all, then ours against each.
func (r *report) table(w io.Writer, names []string, detail bool) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "figure\tunit")
	for _, c := range names {
		fmt.Fprintf(tw, "\t%s", c)
	}
	for _, c := range names {
		if c != "isthmus" {
			fmt.Fprintf(tw, "\tours/%s", c)
		}
	}
	fmt.Fprintln(tw, "\treach\t")
	for _, m := range r.metrics {
		if m.detail != detail {
			continue
		}
		fmt.Fprintf(tw, "%s\t%s", m.name, m.unit)
		for _, c := range names {
			fmt.Fprintf(tw, "\t%s", number(r.medianOf(m.name, c)))
		}
		for _, c := range names {
			if c == "isthmus" {
				continue
			}
			rs := r.ratios(m.name, "isthmus", c)
			if len(rs) == 0 {
				fmt.Fprint(tw, "\t-")
				continue
			}
			fmt.Fprintf(tw, "\t%.2f (%.2f..%.2f)", median(rs), rs[len(rs)/4], rs[len(rs)-1-len(rs)/4])
		}
		fmt.Fprintf(tw, "\t%s\t\n", r.verdict(m))
	}
	tw.Flush()
}

func (r *report) verdict(m metric) string {
	if m.of == "" {
		return ""
	}
	sign, met := "<=", func(v float64) bool { return v <= m.reach }
	if m.more {
		sign, met = ">=", func(v float64) bool { return v >= m.reach }
	}
	text := fmt.Sprintf("%s %.2f x %s", sign, m.reach, m.of)
	rs := r.ratios(m.name, "isthmus", m.of)
	switch {
	case len(rs) == 0:
		return text + ": not measured"
	case met(median(rs)):
		return text + ": met"
	}
	return text + ": MISSED"
}

func (r *report) factTable(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "figure\tunit\tvalue\treach\t")
	for _, f := range r.facts {
		text := ""
		switch {
		case f.limit == 0:
		case f.value <= f.limit:
			text = fmt.Sprintf("<= %s: met", number(f.limit))
		default:
			text = fmt.Sprintf("<= %s: MISSED", number(f.limit))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t\n", f.name, f.unit, number(f.value), text)
	}
	tw.Flush()
}

// benchstat prints every sample in the format of Go's benchmarks, so that two results can be compared with benchstat.
func (r *report) benchstat(w io.Writer, names []string) {
	fmt.Fprintf(w, "\ngoos: %s\ngoarch: %s\npkg: github.com/isthmus-mesh/isthmus/bench\ncpu: %s\n", runtime.GOOS, runtime.GOARCH, procField("/proc/cpuinfo", "model name"))
	for _, m := range r.metrics {
		for _, c := range names {
			by := r.samples[m.name][c]
			for _, round := range slices.Sorted(maps.Keys(by)) {
				fmt.Fprintf(w, "Benchmark/%s/via=%s 1 %s %s\n", m.name, c, number(by[round]), m.unit)
			}
		}
	}
	for _, f := range r.facts {
		fmt.Fprintf(w, "Benchmark/%s 1 %s %s\n", f.name, number(f.value), f.unit)
	}
}

// number prints about four digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case v == math.Trunc(v) && a < 1e9:
		return fmt.Sprintf("%.0f", v)
	case a >= 1000:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

package soak_test

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a soak has shown.
type report struct {
	length                  time.Duration
	start                   time.Time
	load                    string
	counts                  map[string]int
	problems                []string
	heap                    []int64 // at each sample
	kept                    int64   // of the heap, what is left when the proxies are gone
	goroutines, descriptors int     // left over
	failed                  bool
}

func newReport(length time.Duration) *report {
	return &report{length: length, start: time.Now(), load: loadAverage()}
}

// growth returns the least live heap around a third of the time, and at the end.
func (r *report) growth() (early, late int64) {
	return slices.Min(r.heap[samples/3-2 : samples/3+3]), slices.Min(r.heap[samples-5:])
}

// write prints the report, and writes it to the file that ISTHMUS_SOAK_REPORT names.
func (r *report) write(t *testing.T) {
	t.Helper()
	text := r.text()
	t.Log("\n" + text)
	path := os.Getenv("ISTHMUS_SOAK_REPORT")
	if path == "" {
		return
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}

func (r *report) text() string {
	var b bytes.Buffer
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Fprintf(&b, "isthmus soak, %s\n", r.start.UTC().Format(time.RFC3339))
	fmt.Fprintf(&b, "machine: %d x %s, %s\n", runtime.NumCPU(), procField("/proc/cpuinfo", "model name"), procField("/proc/meminfo", "MemTotal"))
	fmt.Fprintf(&b, "kernel:  %s\n", unix.ByteSliceToString(uts.Release[:]))
	fmt.Fprintf(&b, "go:      %s\n", runtime.Version())
	fmt.Fprintf(&b, "commit:  %s\n", cmp.Or(os.Getenv("ISTHMUS_SOAK_COMMIT"), "unknown"))
	fmt.Fprintf(&b, "load:    %s before, %s after (the soak itself makes some)\n", r.load, loadAverage())
	fmt.Fprintf(&b, "length:  %v, certificates renewed every %v\n", r.length, certifyFor/2)
	if note := os.Getenv("ISTHMUS_SOAK_NOTE"); note != "" {
		fmt.Fprintf(&b, "note:    %s\n", note)
	}
	early, late := r.growth()
	fmt.Fprintf(&b, "\nwrong decisions, wrong bytes, connections lost: %d\n", r.counts["FAULTS"])
	fmt.Fprintf(&b, "goroutines left over: %d\ndescriptors left over: %d\n", r.goroutines, r.descriptors)
	fmt.Fprintf(&b, "live heap: %d KiB after a third, %d KiB at the end; %d KiB when the proxies are gone\n", early>>10, late>>10, r.kept>>10)
	fmt.Fprintf(&b, "verdict: %s\n", map[bool]string{true: "failed", false: "passed"}[r.failed])
	for _, p := range r.problems {
		fmt.Fprintf(&b, "  %s\n", p)
	}
	fmt.Fprintf(&b, "\nWhat happened, and how often in a second\n")
	for _, k := range slices.Sorted(maps.Keys(r.counts)) {
		fmt.Fprintf(&b, "  %-18s %9d %10.1f\n", k, r.counts[k], float64(r.counts[k])/r.length.Seconds())
	}
	fmt.Fprintf(&b, "\nLive heap of the process in KiB, every %v\n ", r.length/samples)
	for i, h := range r.heap {
		if i == samples/2 {
			fmt.Fprint(&b, "\n ")
		}
		fmt.Fprintf(&b, " %d", h>>10)
	}
	fmt.Fprintln(&b)
	return b.String()
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(text))
	if len(f) == 0 {
		return "unknown"
	}
	return f[0]
}

// procField returns the value of the first line "name: value" of a file in /proc.
func procField(file, name string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

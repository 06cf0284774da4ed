package logattr

import (
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Addr is an address a component listens on or talks to.
func Addr(a netip.AddrPort) slog.Attr { return addr("addr", a) }

// Address is an address as it was configured, for example a URL.
func Address(s string) slog.Attr { return text("address", s) }

// Listener names a listener, for example "hbone" or "socks5".
func Listener(name string) slog.Attr { return text("listener", name) }

// Task names a readiness task.
func Task(name string) slog.Attr { return text("task", name) }

// Mode is the role a proxy plays.
func Mode(s string) slog.Attr { return text("mode", s) }

// Version is the version of this program.
func Version(s string) slog.Attr { return text("version", s) }

// WorkloadName is the workload a line is about, "namespace/name".
func WorkloadName(namespace, name string) slog.Attr {
	return slog.Any("wl", Bare(namespace+"/"+name))
}

// WorkloadUID is the key of the workload a line is about.
func WorkloadUID(uid string) slog.Attr { return text("uid", uid) }

// Identity is the identity a line is about.
func Identity(id mesh.Identity) slog.Attr { return text("identity", id.String()) }

// Host is a name that was looked up or routed by.
func Host(s string) slog.Attr { return text("host", s) }

// Query is a DNS question's name.
func Query(s string) slog.Attr { return text("query", s) }

// Outcome says how something ended, in one word.
func Outcome(s string) slog.Attr { return text("outcome", s) }

// Signal is the signal that was received.
func Signal(s string) slog.Attr { return text("signal", s) }

// Level is a log level or a filter of levels.
func Level(s string) slog.Attr { return text("level_filter", s) }

// Count is how many things a line is about.
func Count(n int) slog.Attr { return slog.Int("count", n) }

// Connections is how many connections a line is about.
func Connections(n int) slog.Attr { return slog.Int("connections", n) }

// Limit is the limit that was reached.
func Limit(n int) slog.Attr { return slog.Int("limit", n) }

// Elapsed is how long something took.
func Elapsed(d time.Duration) slog.Attr { return slog.String("elapsed", millis(d)) }

// Deadline is how long something may still take.
func Deadline(d time.Duration) slog.Attr { return slog.String("deadline", d.String()) }

// DryRun says what a policy that is not enforced would have done.
func DryRun(s string) slog.Attr { return text("dry_run", s) }

func text(key, s string) slog.Attr {
	if s == "" {
		return slog.Attr{}
	}
	return slog.String(key, s)
}

func addr(key string, a netip.AddrPort) slog.Attr {
	if !a.IsValid() {
		return slog.Attr{}
	}
	return slog.Any(key, a)
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }

// Component names the component a logger belongs to. It is its Scope: the target column, by which levels are set.
func Component(name string) slog.Attr { return Scope(name) }

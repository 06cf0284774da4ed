// Package version tells which build of Isthmus this is.
package version

import "runtime/debug"

// version is set by the linker (-X); a plain `go build` leaves it empty.
var version string

// String returns the version, for example "0.1.0", or "devel" with the commit when the linker set none.
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}

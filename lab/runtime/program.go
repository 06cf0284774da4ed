package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mergeEnv returns base with the variables of over replaced or appended. Both are NAME=value; a later one wins.
func mergeEnv(base, over []string) []string {
	out := make([]string, 0, len(base)+len(over))
	at := make(map[string]int, len(base)+len(over))
	for _, list := range [][]string{base, over} {
		for _, kv := range list {
			name, _, _ := strings.Cut(kv, "=")
			if i, ok := at[name]; ok {
				out[i] = kv
				continue
			}
			at[name] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

// lookPath finds a program in the PATH of env, as the kernel and a shell would inside the container.
func lookPath(name string, env []string) (path string, code int, err error) {
	if strings.Contains(name, "/") {
		if st, err := os.Stat(name); err != nil || st.IsDir() {
			return "", exitNotFound, fmt.Errorf("exec: %q: no such file in the container", name)
		}
		return name, 0, nil
	}
	dirs := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			dirs = v
		}
	}
	for _, dir := range filepath.SplitList(dirs) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, 0, nil
		}
	}
	return "", exitNotFound, fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// command returns the argument vector of a container from its image and its specification.
func command(image Image, spec ContainerSpec) []string {
	entrypoint, args := image.Entrypoint, image.Cmd
	if len(spec.Entrypoint) > 0 {
		entrypoint, args = spec.Entrypoint, nil
	}
	if len(spec.Command) > 0 {
		args = spec.Command
	}
	return append(append([]string{}, entrypoint...), args...)
}

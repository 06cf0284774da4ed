package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// Variable is an environment variable.
type Variable struct{ Name, Value string }

// Env returns the environment with which a person's own tools use the lab.
func (d Dir) Env() ([]Variable, error) {
	state, ok, err := d.ReadState()
	if err != nil {
		return nil, err
	}
	if !ok || !processIsLab(state.PID, d) {
		return nil, diag.Newf(diag.LabNotRunning, "no lab runs in %s", d)
	}
	return []Variable{
		{DirVariable, string(d)},
		{"KUBECONFIG", d.Kubeconfig()},
		{"AWS_ENDPOINT_URL", "http://" + state.AWSAddr},
		{"AWS_REGION", Region},
		{"AWS_DEFAULT_REGION", Region},
		{"AWS_CONFIG_FILE", d.AWSConfig()},
		{"AWS_SHARED_CREDENTIALS_FILE", d.AWSCredentials()},
		{"AWS_EC2_METADATA_DISABLED", "true"},
		{"AWS_PAGER", ""},
		{"LOCAL_ACCOUNT", Account},
		{"EXTERNAL_ACCOUNT", ExternalAccount},
		{"EXTERNAL_ACCOUNT_PROFILE", ExternalProfile},
		{"CLUSTER_NAME", ClusterName},
	}, nil
}

// Unset are the variables that must not be set beside those of Env: access keys in the environment win over profiles, and
// would be those of a real account.
func Unset() []string {
	return []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"}
}

// Environ returns base with the lab's environment in it.
func (d Dir) Environ(base []string) ([]string, error) {
	variables, err := d.Env()
	if err != nil {
		return nil, err
	}
	unset := Unset()
	for _, v := range variables {
		unset = append(unset, v.Name)
	}
	env := slices.DeleteFunc(slices.Clone(base), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(unset, name)
	})
	for _, v := range variables {
		env = append(env, v.Name+"="+v.Value)
	}
	return env, nil
}

// writeAWSProfiles writes the files of AWS's own tools: the first account is the default profile, the
// second one is ExternalProfile.
func (d Dir) writeAWSProfiles(endpoint string) error {
	if err := os.MkdirAll(filepath.Dir(d.AWSConfig()), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	var config, credentials strings.Builder
	for _, p := range []struct{ heading, name, key, secret string }{
		{"default", "default", AdminAccessKeyID, AdminSecretAccessKey},
		{"profile " + ExternalProfile, ExternalProfile, ExternalAccessKeyID, ExternalSecretAccessKey},
	} {
		fmt.Fprintf(&config, "[%s]\nregion = %s\nendpoint_url = %s\ncli_pager =\n\n", p.heading, Region, endpoint)
		fmt.Fprintf(&credentials, "[%s]\naws_access_key_id = %s\naws_secret_access_key = %s\n\n", p.name, p.key, p.secret)
	}
	for path, text := range map[string]string{d.AWSConfig(): config.String(), d.AWSCredentials(): credentials.String()} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the AWS profiles: %w", err)
		}
	}
	return nil
}

// Exec replaces this process by a program of the lab's, with the lab's environment. It returns only on failure.
func (d Dir) Exec(name string, args []string) error {
	env, err := d.Environ(os.Environ())
	if err != nil {
		return err
	}
	path := filepath.Join(d.Bin(), name)
	if err := syscall.Exec(path, append([]string{name}, args...), env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// PodApps are the components that are pods; their logs are read with kubectl.
func PodApps() []string { return []string{"istiod", "ztunnel", "isthmus-controller"} }

// LogNames returns the names of the logs on the host.
func (d Dir) LogNames() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(d.Logs(), "*.log"))
	if err != nil {
		return nil, fmt.Errorf("list the logs: %w", err)
	}
	names := make([]string, 0, len(files))
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".log"))
	}
	return names, nil
}

// followEvery is how often a log that is followed is looked at.
const followEvery = 100 * time.Millisecond

// PrintLog prints the log of a component: its last lines, or all with tail -1, and with follow what is added until ctx
// ends.
func (d Dir) PrintLog(ctx context.Context, w io.Writer, component string, tail int, follow bool) error {
	if component != filepath.Base(component) {
		return fmt.Errorf("no log of %q", component)
	}
	f, err := os.Open(d.Log(component))
	if errors.Is(err, fs.ErrNotExist) {
		names, _ := d.LogNames() // the message is complete enough without
		return fmt.Errorf("no log of %q: there are %s", component, strings.Join(append(names, PodApps()...), ", "))
	}
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", component, err)
	}
	defer f.Close()
	if tail >= 0 {
		if err := seekTail(f, tail); err != nil {
			return fmt.Errorf("read the log of %s: %w", component, err)
		}
	}
	t := time.NewTicker(followEvery)
	defer t.Stop()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return fmt.Errorf("print the log of %s: %w", component, err)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// seekTail moves f to the start of its last n lines.
func seekTail(f *os.File, n int) error {
	const block = 64 << 10
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	lines, buffer := 0, make([]byte, block)
	for at := end; at > 0; {
		size := min(block, at)
		at -= size
		if _, err := f.ReadAt(buffer[:size], at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if buffer[i] != '\n' || at+i == end-1 { // the end of the last line is no start of another
				continue
			}
			if lines++; lines == n {
				_, err := f.Seek(at+i+1, io.SeekStart)
				return err
			}
		}
	}
	if n == 0 {
		return nil
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// HostPIDs replaces the process numbers in s, which are those of the lab's own process namespace, by the host's.
// Numbers that cannot be found become 0.
func (d Dir) HostPIDs(s *Status) {
	state, ok, err := d.ReadState()
	if err != nil || !ok {
		return
	}
	hosts := hostPIDs("/proc", state.PID)
	for i := range s.Components {
		s.Components[i].PID = hosts[s.Components[i].PID]
	}
}

// hostPIDs maps the process numbers in the namespace of the given process to those of the host. A process in a
// namespace below, as those of containers are, has a number in each.
func hostPIDs(proc string, init int) map[int]int {
	depth := len(namespacePIDs(proc, init))
	entries, err := os.ReadDir(proc)
	if depth == 0 || err != nil {
		return nil
	}
	all := map[int]int{}
	for _, e := range entries {
		host, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		numbers := namespacePIDs(proc, host)
		if len(numbers) >= depth && descends(proc, host, init) {
			all[numbers[depth-1]] = host
		}
	}
	return all
}

// namespacePIDs returns the numbers of a process, from the host's namespace to its own.
func namespacePIDs(proc string, pid int) []int {
	return statusField(proc, pid, "NSpid:")
}

// descends reports whether pid is the process ancestor, or a descendant of it.
func descends(proc string, pid, ancestor int) bool {
	for range 64 { // deeper than any tree of the lab; processes may come and go while this looks at them
		if pid == ancestor {
			return true
		}
		parents := statusField(proc, pid, "PPid:")
		if len(parents) != 1 || parents[0] <= 1 {
			return false
		}
		pid = parents[0]
	}
	return false
}

// statusField returns the numbers in a line of /proc/<pid>/status.
func statusField(proc string, pid int, name string) []int {
	b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "status"))
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte(name))
		if !ok {
			continue
		}
		var numbers []int
		for _, field := range bytes.Fields(rest) {
			n, err := strconv.Atoi(string(field))
			if err != nil {
				return nil
			}
			numbers = append(numbers, n)
		}
		return numbers
	}
	return nil
}

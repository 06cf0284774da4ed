package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// readPID returns the lab's process 1 as the host numbers it.
func (w *world) readPID(t *testing.T) int {
	t.Helper()
	var state struct {
		PID int `json:"pid"`
	}
	text, err := os.ReadFile(filepath.Join(w.dir, "lab.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &state); err != nil || state.PID == 0 {
		t.Fatalf("lab.json is %s: %v", text, err)
	}
	return state.PID
}

// testDown ends the lab and looks for what is left of it.
func (w *world) testDown(t *testing.T) {
	mine := descendants(t, w.pid)
	if len(mine) < 10 {
		t.Errorf("the lab has %d processes, want at least 10: is %d its first?", len(mine), w.pid)
	}
	w.must(t, "isthmus", "lab", "down")
	for pid, what := range mine {
		if alive(pid, what) {
			t.Errorf("process %d is left: %s", pid, what.command)
		}
	}
	checkNothingLeft(t, w.dir)
	if o := w.run(t.Context(), "isthmus", "lab", "status"); o.code != 4 || !strings.Contains(o.stderr, "IST4001") {
		t.Errorf("isthmus lab status after down = exit code %d, want 4:\n%s", o.code, o)
	}
	if o := w.run(t.Context(), "isthmus", "lab", "down"); o.code != 0 {
		t.Errorf("isthmus lab down again = exit code %d, want 0:\n%s", o.code, o)
	}
}

// process tells one process from a later one with its number.
type process struct{ command, started string }

// readProcess returns a process's command line, start time and parent. It is not ok when there is none or it is dead.
func readProcess(pid int) (p process, parent int, ok bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, 0, false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return process{}, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	if err != nil {
		return process{}, 0, false
	}
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may have ended just now
	return process{string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '})), fields[19]}, parent, true
}

func alive(pid int, was process) bool {
	is, _, ok := readProcess(pid)
	return ok && is.started == was.started
}

// descendants returns a process and all that come from it.
func descendants(t *testing.T, root int) map[int]process {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	parents, all := map[int]int{}, map[int]process{}
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(name))
		if err != nil {
			continue
		}
		if p, parent, ok := readProcess(pid); ok {
			parents[pid], all[pid] = parent, p
		}
	}
	mine := map[int]process{}
	for pid, p := range all {
		for up := pid; up > 1; up = parents[up] {
			if up == root {
				mine[pid] = p
				break
			}
		}
	}
	return mine
}

// checkNothingLeft expects no process, mount, interface or file of the lab in dir, its logs excepted. The empty lock file
// stays, because removing it would let two labs hold it.
func checkNothingLeft(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil && bytes.Contains(text, []byte(dir)) {
			t.Errorf("%s is left: %q", name, text)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			t.Errorf("a mount is left: %s", line)
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		if i.Name == "vpc0" || strings.HasPrefix(i.Name, "veth0a") {
			t.Errorf("the interface %s is left", i.Name)
		}
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if first, _, _ := strings.Cut(name, string(filepath.Separator)); first == "." || first == "lock" || first == "logs" {
			return nil
		}
		t.Errorf("the file %s is left in the state directory", name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

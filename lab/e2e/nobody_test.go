package e2e

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// nobody is a user without any rights.
const nobody = 65534

// TestNobody starts and ends a lab as a user without rights. It comes after TestGuide, whose lab is gone by then.
func TestNobody(t *testing.T) {
	bin := programs(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can become nobody; TestGuide has run without rights")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // nobody must get in
			t.Fatal(err)
		}
	}
	own, home := filepath.Join(dir, "bin"), filepath.Join(dir, "home")
	for _, d := range []string{own, home} {
		if err := os.Mkdir(d, 0o755); err != nil { //nolint:gosec // the same
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"isthmus", "isthmus-controller", "ztunnel", "isthmus-lab", "isthmus-lab-kube"} {
		copyProgram(t, filepath.Join(bin, name), filepath.Join(own, name))
	}
	command := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*long)
		defer cancel()
		cmd := exec.CommandContext(ctx, filepath.Join(own, "isthmus"), args...)
		cmd.Dir, cmd.Env = home, []string{"HOME=" + home, "PATH=/usr/bin:/bin:/usr/sbin:/sbin", "USER=nobody", "KUBECACHEDIR=" + filepath.Join(dir, "cache")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	w := &world{dir: filepath.Join(home, ".local", "state", "isthmus", "lab")}
	t.Cleanup(func() { _, _ = command("lab", "down") })
	begin := time.Now()
	if out, err := command("lab", "up"); err != nil {
		t.Fatalf("isthmus lab up as nobody = %v:\n%s", err, out)
	}
	t.Logf("ready after %s", time.Since(begin).Round(time.Second/10))
	w.pid = w.readPID(t)
	if out, err := command("lab", "kubectl", "get", "pods", "-n", "istio-system"); err != nil || !hasLine(out, []string{"istiod-", "1/1", "Running"}) {
		t.Errorf("kubectl get pods as nobody = %v:\n%s", err, out)
	}
	mine := descendants(t, w.pid)
	for pid := range mine {
		if info, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err == nil && info.Sys().(*syscall.Stat_t).Uid == 0 {
			t.Errorf("process %d of nobody's lab is root's: %s", pid, mine[pid].command)
		}
	}
	begin = time.Now()
	if out, err := command("lab", "down"); err != nil {
		t.Errorf("isthmus lab down as nobody = %v:\n%s", err, out)
	}
	t.Logf("gone after %s", time.Since(begin).Round(time.Second/10))
	for pid, what := range mine {
		if alive(pid, what) {
			t.Errorf("process %d is left: %s", pid, what.command)
		}
	}
	checkNothingLeft(t, w.dir)
	err := filepath.WalkDir(home, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Base(path) != "lock" && !strings.HasPrefix(path, filepath.Join(w.dir, "logs")) {
			t.Errorf("%s is left in the home directory", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// copyProgram makes a program available under another path, without a copy where that is possible.
func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	if os.Link(from, to) == nil {
		return
	}
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755) //nolint:gosec // a program
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dst, src); err != nil {
		t.Fatal(err)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
}

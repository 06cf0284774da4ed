package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// The programs of the lab beside isthmus-lab itself.
const (
	programKube       = "isthmus-lab-kube"
	programController = "isthmus-controller"
	programZtunnel    = "ztunnel"
	programCLI        = "isthmus"
)

// Programs are the paths of the lab's other programs.
type Programs struct {
	Self, Kube, Controller, Ztunnel string
	// CLI is empty when the command-line tool is not built: the lab runs without it.
	CLI string
}

// FindPrograms looks for the programs beside the running executable, then in PATH.
func FindPrograms() (Programs, error) {
	self, err := os.Executable()
	if err != nil {
		return Programs{}, fmt.Errorf("find the running executable: %w", err)
	}
	if resolved, err := filepath.EvalSymlinks(self); err == nil {
		self = resolved
	}
	p := Programs{Self: self}
	for name, to := range map[string]*string{programKube: &p.Kube, programController: &p.Controller, programZtunnel: &p.Ztunnel} {
		if *to, err = findProgram(filepath.Dir(self), name); err != nil {
			return Programs{}, err
		}
	}
	p.CLI, _ = findProgram(filepath.Dir(self), programCLI) // a convenience
	return p, nil
}

func findProgram(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
		return path, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	return "", diag.Newf(diag.LabProgramMissing, "%s is neither in %s, beside isthmus-lab, nor in PATH", name, dir).
		WithFix("build all programs: make build")
}

// link makes the programs available under their usual names in the directory that `env` puts into PATH.
func (d Dir) link(p Programs) error {
	if err := os.MkdirAll(d.Bin(), 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	links := map[string]string{"kubectl": p.Kube, "istioctl": p.Kube, "isthmus-lab": p.Self}
	if p.CLI != "" {
		links[programCLI] = p.CLI
	}
	for name, target := range links {
		path := filepath.Join(d.Bin(), name)
		_ = os.Remove(path) // a link of an earlier lab
		if err := os.Symlink(target, path); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

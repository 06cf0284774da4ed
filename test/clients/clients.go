// Package clients finds the programs of others with which this project is tested: the AWS CLI and AWS's
// session-manager-plugin. A test that lacks one skips and says so; where CI=true it fails, so that no promise goes untested
// there. `make clients` installs what a Debian machine lacks.
package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Missing ends a test for which something is not there.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	reason := fmt.Sprintf(format, args...)
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s, and CI must not skip this test", reason)
	}
	t.Skipf("SKIPPED: %s", reason)
}

// AWSCLI returns the path of a version 2 of the AWS CLI. It asks every aws of PATH and of the usual folders for its version:
// version 1 lacks what people's scripts use, and an aws may be a shim with nothing behind it.
func AWSCLI(t testing.TB) string {
	t.Helper()
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + ":/usr/local/bin:/usr/bin") {
		path := filepath.Join(dir, "aws")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, path, "--version").Output() //nolint:gosec // a program of PATH
		cancel()
		if err == nil && strings.HasPrefix(string(out), "aws-cli/2.") {
			return path
		}
		t.Logf("%s is no AWS CLI version 2: it says %.60q", path, strings.TrimSpace(string(out)))
	}
	Missing(t, "there is no AWS CLI version 2 (apt-get install awscli, or make clients), so this is NOT tested with it")
	return ""
}

// Tools ends a test when one of some programs is not in PATH.
func Tools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			Missing(t, "%v", err)
		}
	}
}

// pluginModule is the folder, in the repository, of the module that names the version of the plugin.
const pluginModule = "test/clients/plugin"

// SessionManagerPlugin builds AWS's session-manager-plugin from its Go module, and returns a folder with nothing else in
// it, for PATH. The first time takes half a minute and the module proxy; after that the build cache has it.
func SessionManagerPlugin(t testing.TB) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, pluginModule, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatalf("no folder above the test has %s", pluginModule)
		}
		root = filepath.Dir(root)
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "session-manager-plugin"), "github.com/aws/session-manager-plugin/src/sessionmanagerplugin-main") //nolint:gosec // our own module
	build.Dir = filepath.Join(root, pluginModule)
	if out, err := build.CombinedOutput(); err != nil {
		Missing(t, "AWS's session-manager-plugin was not built from its module: %v\n%s", err, out)
	}
	return dir
}

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// helperVariable makes the test binary one of its helpers, which run inside the lab's network namespace.
const helperVariable = "ISTHMUS_E2E_HELPER"

// TestMain runs the tests, or a helper. Whatever becomes of the tests, no lab of theirs is left.
func TestMain(m *testing.M) {
	if name := os.Getenv(helperVariable); name != "" {
		if err := runHelper(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "helper", name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runHelper(name string, args []string) error {
	switch name {
	case helperSniff:
		return sniff(args)
	case helperBlock:
		return block(args)
	}
	return fmt.Errorf("no such helper")
}

// programs returns the directory of the programs under test, or skips the test.
func programs(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED: no lab is brought up with -short, so NOTHING is tested end to end")
	}
	dir := os.Getenv("ISTHMUS_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"isthmus", "isthmus-controller", "ztunnel", "isthmus-lab", "isthmus-lab-kube"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("the program %s is missing (make build): %v", name, err)
			}
			t.Skipf("SKIPPED: NOTHING is tested end to end, because a program is not built (make build): %v", err)
		}
	}
	return dir
}

// TestGuide sets the guide's scenario up to its step 5 and tests what it leads to. The parts build on each other: the
// clean-up comes last, and the end of the lab after it.
func TestGuide(t *testing.T) {
	w := newWorld(t)
	w.up(t)
	w.setUp(t)
	failed := false
	for _, part := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"Wire", testWire}, // first: it needs two tasks that have no connection yet
		{"Istioctl", testIstioctl},
		{"Identity", testIdentity},
		{"Broker", testBroker},
		{"PolicyLatency", testPolicyLatency},
		{"BadInput", testBadInput},
		{"SharedHost", testSharedHost},
		{"Events", testEvents},
		{"Instances", testInstances},
		{"Life", testLife},
		{"Outage", testOutage},
		{"WebIdentity", testWebIdentity},
		{"Cleanup", testCleanup},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, w) }) && !failed {
			failed = true // the logs soon show other things than the first failure
			w.printLogs(t)
		}
	}
	if !w.keep {
		t.Run("Down", w.testDown)
	}
}

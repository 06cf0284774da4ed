package runtime

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRepositoryOf(t *testing.T) {
	for ref, want := range map[string]string{
		"busybox": "busybox", "busybox:1.36": "busybox", "library/busybox": "busybox", "docker.io/library/busybox:1": "busybox",
		"curlimages/curl@sha256:0123": "curlimages/curl", "public.ecr.aws/istio/pilot:1.31.0-distroless": "istio/pilot",
		"123456789012.dkr.ecr.us-east-2.amazonaws.com/isthmus/ztunnel:dev": "isthmus/ztunnel", "localhost:5000/isthmus/echo": "isthmus/echo",
		"gcr.io/istio-release/ztunnel:1.31": "istio-release/ztunnel", "": "",
	} {
		if got := repositoryOf(ref); got != want {
			t.Errorf("repositoryOf(%q) = %q, want %q", ref, got, want)
		}
	}
}

func TestCatalogue(t *testing.T) {
	dir := t.TempDir()
	c, err := NewCatalogue(CatalogueConfig{BinDirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve("nginx"); !errors.Is(err, ErrImageNotFound) || !strings.Contains(err.Error(), "busybox") {
		t.Errorf("unknown image: %v, want ErrImageNotFound and the images that there are", err)
	}
	if _, err := c.Resolve("isthmus/ztunnel:dev"); !errors.Is(err, ErrImageNotFound) || !strings.Contains(err.Error(), "not built") {
		t.Errorf("image without its program: %v, want ErrImageNotFound and the reason", err)
	}
	// A program may be built after the catalogue was made.
	if err := os.WriteFile(filepath.Join(dir, "ztunnel"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	image, err := c.Resolve("registry.example.org/mirror/istio/ztunnel:1.31")
	want := map[string]string{"/usr/local/bin/ztunnel": filepath.Join(dir, "ztunnel")}
	if diff := cmp.Diff(want, image.Files); err != nil || diff != "" {
		t.Errorf("Resolve = %v, files (-want +got):\n%s", err, diff)
	}
	image.Files["x"] = "y"
	if again, _ := c.Resolve("istio/ztunnel"); len(again.Files) != 1 {
		t.Error("what Resolve returned is shared")
	}
	c.Add("team/tool", Image{Cmd: []string{"true"}})
	if _, err := c.Resolve("team/tool:v1"); err != nil {
		t.Error(err)
	}
}

func TestCommand(t *testing.T) {
	image := Image{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}
	for _, test := range []struct {
		entrypoint, command []string
		want                string
	}{
		{nil, nil, "entry cmd"}, {nil, []string{"a", "b"}, "entry a b"}, {[]string{"e"}, nil, "e"}, {[]string{"e"}, []string{"a"}, "e a"},
	} {
		if got := strings.Join(command(image, ContainerSpec{Entrypoint: test.entrypoint, Command: test.command}), " "); got != test.want {
			t.Errorf("command with entry point %q and arguments %q = %q, want %q", test.entrypoint, test.command, got, test.want)
		}
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2", "A=3"}, []string{"B=4", "C=5=6"})
	if diff := cmp.Diff([]string{"A=3", "B=4", "C=5=6"}, got); diff != "" {
		t.Errorf("mergeEnv (-want +got):\n%s", diff)
	}
}

func TestMountTargets(t *testing.T) {
	for target, want := range map[string]string{
		"/var/run/secrets/x": "/run/secrets/x", "/data": "/data", "/data/../etc//x/": "/etc/x", "/var/run": "/var/run", "/etc/new/dir": "/etc/new/dir",
	} {
		if got, err := resolveTarget(target); err != nil || got != want {
			t.Errorf("resolveTarget(%q) = %q, %v, want %q", target, got, err, want)
		}
	}
	for _, target := range []string{"/", "relative", "", "/.."} {
		r := &root{opened: map[string]bool{}}
		if err := r.plan([]Mount{{Source: t.TempDir(), Target: target}}); err == nil {
			t.Errorf("mount target %q was accepted", target)
		}
	}
}

// TestRemountReadOnly covers kernels that cannot make a tree of mounts read-only in one step.
func TestRemountReadOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func(at string) {
		t.Helper()
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	mount(dir)
	mount(filepath.Join(dir, "sub"))
	if err := remountReadOnly(dir); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "x"), filepath.Join(dir, "sub", "x")} {
		if err := touch(path); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to %s = %v, want a read-only file system", path, err)
		}
	}
	if err := setWritable(dir); err != nil {
		t.Fatal(err)
	}
	if err := touch(filepath.Join(dir, "x")); err != nil {
		t.Errorf("write after setWritable: %v", err)
	}
}

func wirePair(t *testing.T) (*wire, *wire) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*wire
	for i, fd := range fds {
		if ends[i], err = newWire(os.NewFile(uintptr(fd), "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ends[i].close)
	}
	return ends[0], ends[1]
}

func TestWireCarriesMessagesAndDescriptors(t *testing.T) {
	a, b := wirePair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	large := message{Kind: execMessage, Process: 7, Program: &programSpec{Args: []string{strings.Repeat("x", 300_000)}}}
	sent := make(chan error, 1)
	go func() {
		sent <- errors.Join(a.send(message{Kind: signalMessage, Signal: 15}), a.send(large, int(w.Fd())), a.send(message{Kind: exitedMessage, Code: 3}))
	}()
	var got []message
	for range 3 {
		m, files, err := b.receive()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m)
		for _, f := range files {
			if _, err := f.WriteString("through"); err != nil {
				t.Error(err)
			}
		}
		closeAll(files)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if diff := cmp.Diff([]message{{Kind: signalMessage, Signal: 15}, large, {Kind: exitedMessage, Code: 3}}, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
	if text, err := io.ReadAll(r); err != nil || string(text) != "through" {
		t.Errorf("through the descriptor came %q, %v", text, err)
	}
	a.close()
	if _, _, err := b.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("receive after close = %v, want EOF", err)
	}
}

func TestWireRefusesTooMuch(t *testing.T) {
	a, b := wirePair(t)
	if err := a.send(message{Kind: execMessage, Error: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("a message over the limit was sent")
	}
	if _, err := a.conn.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.receive(); err == nil {
		t.Error("a message over the limit was received")
	}
}

func TestLogEntriesSurviveAnyBytes(t *testing.T) {
	l, err := openLog(filepath.Join(t.TempDir(), "log"), maxLogSize)
	if err != nil {
		t.Fatal(err)
	}
	input := "a\n\n \x00\xff binary\n" + strings.Repeat("y", 3*maxLogLine+5) + "\nlast"
	l.copyFrom(strings.NewReader(input), "stdout")
	var out bytes.Buffer
	if err := l.read(t.Context(), LogOptions{Tail: -1}, &out); err != nil {
		t.Fatal(err)
	}
	if out.String() != input+"\n" {
		t.Errorf("%d bytes came out of a log of %d", out.Len(), len(input))
	}
	if err := l.close(true); err != nil {
		t.Fatal(err)
	}
}

func FuzzRepositoryOf(f *testing.F) {
	for _, s := range []string{"a/b:c@d", "localhost/x", "::::", "a.b/c/d/e:1", "library/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		if got := repositoryOf(ref); len(got) > len(ref) {
			t.Errorf("repositoryOf(%q) = %q", ref, got)
		}
	})
}

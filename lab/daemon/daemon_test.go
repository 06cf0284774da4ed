package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/lab/cloud/eks"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func TestDefaultDir(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env  map[string]string
		want Dir
	}{
		{map[string]string{"ISTHMUS_LAB_DIR": "/a", "HOME": "/h"}, "/a"},
		{map[string]string{"XDG_STATE_HOME": "/s", "HOME": "/h"}, "/s/isthmus/lab"},
		{map[string]string{"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/isthmus/lab"},
		{map[string]string{}, ""},
	} {
		got, err := DefaultDir(env(tt.env))
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("DefaultDir(%v) = %q, %v, want %q", tt.env, got, err, tt.want)
		}
	}
}

// TestWaitLock holds the lock past the first look, as the threads of a process that is ending do.
func TestWaitLock(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	held, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(3*pollEvery, func() { held.Close() })
	f, err := d.waitLock(t.Context())
	if err != nil {
		t.Fatalf("waitLock of a lock that becomes free = %v, want it", err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*pollEvery)
	defer cancel()
	if _, err := d.waitLock(ctx); !errors.Is(err, errLocked) {
		t.Errorf("waitLock of a lock that stays held = %v, want errLocked", err)
	}
}

func TestLockAndClean(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	held, err := d.lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.lock(); !errors.Is(err, errLocked) {
		t.Errorf("second lock = %v, want errLocked", err)
	}
	held.Close()
	if again, err := d.lock(); err != nil {
		t.Errorf("lock after close = %v, want it free", err)
	} else {
		again.Close()
	}
	if d.stale() {
		t.Error("an empty directory is stale, want it clean")
	}
	if err := d.writeState(State{PID: 1, KubeAddr: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	if !d.stale() {
		t.Error("a state without a lab is not stale, want it stale")
	}
	for _, name := range []string{"logs/daemon.log", "mine"} {
		if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.clean(true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Log("daemon")); err != nil {
		t.Errorf("the log after clean(keepLogs) = %v, want it kept", err)
	}
	if err := d.clean(false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Logs()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the logs after clean = %v, want them gone", err)
	}
	if _, err := os.Stat(d.path("mine")); err != nil {
		t.Errorf("a file that is not the lab's after clean = %v, want it untouched", err)
	}
}

func TestStateRoundTrip(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	if _, ok, err := d.ReadState(); ok || err != nil {
		t.Errorf("ReadState of nothing = %v, %v, want neither", ok, err)
	}
	want := State{PID: 42, Started: time.Unix(1000, 0).UTC(), KubeAddr: "127.0.0.1:1", AWSAddr: "127.0.0.1:2"}
	if err := d.writeState(want); err != nil {
		t.Fatal(err)
	}
	got, ok, err := d.ReadState()
	if diff := cmp.Diff(want, got); !ok || err != nil || diff != "" {
		t.Errorf("ReadState = %v, %v (-want +got):\n%s", ok, err, diff)
	}
	if err := os.WriteFile(d.stateFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.ReadState(); err == nil {
		t.Error("ReadState of half a file = nil, want an error")
	}
}

// TestControlSocketOfLongPath checks that the limit of socket addresses does not limit the directory.
func TestControlSocketOfLongPath(t *testing.T) {
	t.Parallel()
	d := Dir(filepath.Join(t.TempDir(), strings.Repeat("long/", 40)))
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := d.listenControl()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := d.dialControl()
	if err != nil {
		t.Fatalf("dial = %v, want a connection", err)
	}
	conn.Close()
}

func TestNamespacesRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		err      error
		settings map[string]string
		fix      string
	}{
		{"none allowed", unix.ENOSPC, map[string]string{"/proc/sys/user/max_user_namespaces": "0\n"}, "user.max_user_namespaces=15000"},
		{"root only", unix.EPERM, map[string]string{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, "unprivileged_userns_clone=1"},
		{"AppArmor", unix.EACCES, map[string]string{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "apparmor_restrict_unprivileged_userns=0"},
		{"too many", unix.ENOSPC, map[string]string{"/proc/sys/user/max_user_namespaces": "100\n"}, "user.max_"},
		{"kernel", unix.EINVAL, nil, "CONFIG_USER_NS"},
		{"container", unix.EPERM, nil, "seccomp=unconfined"},
	} {
		err := namespacesRefused(fmt.Errorf("start: %w", tt.err), env(tt.settings))
		var e *diag.Error
		if !errors.As(err, &e) || e.Code != diag.LabNamespacesRefused || !strings.Contains(e.Fix, tt.fix) {
			t.Errorf("%s: error = %+v, want code %s and a fix with %q", tt.name, err, diag.LabNamespacesRefused, tt.fix)
		}
	}
}

func TestFailureKeepsTheError(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	want := diag.New(diag.LabProgramMissing, "no ztunnel").WithFix("make build")
	writeReport(&b, fmt.Errorf("start: %w", want))
	var got *diag.Error
	if err := readReport(&b); !errors.As(err, &got) || got.Code != want.Code || got.Cause != want.Cause || got.Fix != want.Fix || got.Summary != want.Summary {
		t.Errorf("report = %+v, want %+v", got, want)
	}
	writeReport(&b, errors.New("plain"))
	if err := readReport(&b); err == nil || err.Error() != "plain" {
		t.Errorf("report = %v, want plain", err)
	}
	if err := readReport(&b); err != nil {
		t.Errorf("report of nothing = %v, want nil", err)
	}
}

func TestProgressWithoutTerminal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		utf8 bool
		want string
	}{
		{true, "✓ etcd (0.4s)\n✗ node (1.0s)\n"},
		{false, "ok etcd (0.4s)\nfailed node (1.0s)\n"},
	} {
		var b bytes.Buffer
		p := NewProgress(&b, false, tt.utf8)
		for _, e := range []Event{
			{Step: "etcd", State: StateRunning}, {Step: "node", State: StateRunning}, {Step: "etcd", State: StateDone, Elapsed: 400 * time.Millisecond},
			{Step: "node", State: StateFailed, Elapsed: time.Second}, {State: StateFailed},
		} {
			p.Event(e)
		}
		p.Close()
		if diff := cmp.Diff(tt.want, b.String()); diff != "" {
			t.Errorf("progress (-want +got):\n%s", diff)
		}
	}
}

func TestIsUTF8(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env  map[string]string
		want bool
	}{
		{map[string]string{"LANG": "en_US.UTF-8"}, true}, {map[string]string{"LANG": "C"}, false}, {nil, false},
		{map[string]string{"LC_ALL": "C", "LANG": "en_US.UTF-8"}, false}, {map[string]string{"LC_CTYPE": "C.utf8"}, true},
	} {
		if got := IsUTF8(env(tt.env)); got != tt.want {
			t.Errorf("IsUTF8(%v) = %v, want %v", tt.env, got, tt.want)
		}
	}
}

func TestPrintLog(t *testing.T) {
	t.Parallel()
	d := Dir(t.TempDir())
	if err := os.MkdirAll(d.Logs(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.Log("etcd"), []byte("one\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for tail, want := range map[int]string{-1: "one\ntwo\nthree\n", 0: "", 1: "three\n", 2: "two\nthree\n", 3: "one\ntwo\nthree\n", 9: "one\ntwo\nthree\n"} {
		var b bytes.Buffer
		if err := d.PrintLog(t.Context(), &b, "etcd", tail, false); err != nil || b.String() != want {
			t.Errorf("PrintLog of %d lines = %q, %v, want %q", tail, b.String(), err, want)
		}
	}
	if err := d.PrintLog(t.Context(), io.Discard, "nothing", -1, false); err == nil || !strings.Contains(err.Error(), "etcd") {
		t.Errorf("PrintLog of an unknown component = %v, want an error that lists etcd", err)
	}
	if err := d.PrintLog(t.Context(), io.Discard, "../lab", -1, false); err == nil {
		t.Error("PrintLog of ../lab = nil, want it refused")
	}
}

// TestForwardHalfClose checks that the end of one direction is passed on while the other goes on.
func TestForwardHalfClose(t *testing.T) {
	t.Parallel()
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	go func() {
		conn, err := far.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn) // until the client has closed its half
		_, _ = conn.Write(bytes.ToUpper(b))
	}()
	near, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- forward(ctx, near, far.Addr().String(), slog.New(slog.DiscardHandler)) }()
	conn, err := net.Dial("tcp", near.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "HELLO" || err != nil {
		t.Errorf("answer = %q, %v, want HELLO", got, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("forward after cancel = %v, want nil", err)
	}
}

func TestJournalForLateReaders(t *testing.T) {
	t.Parallel()
	j := newJournal()
	events, last, more := j.from(0)
	if len(events) != 0 || last {
		t.Errorf("from(0) of nothing = %v, %v, want nothing", events, last)
	}
	j.add(Event{Step: "a", State: StateRunning})
	select {
	case <-more:
	default:
		t.Error("an event did not wake the reader")
	}
	j.add(Event{State: StateReady})
	if events, last, _ = j.from(0); len(events) != 2 || !last || j.current() != StateReady {
		t.Errorf("from(0) = %v, %v in state %s, want both events and ready", events, last, j.current())
	}
	if events, last, _ = j.from(2); len(events) != 0 || !last {
		t.Errorf("from(2) = %v, %v, want no event, all seen", events, last)
	}
}

func TestSubjectOf(t *testing.T) {
	t.Parallel()
	valid := authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:istio-system:isthmus-controller",
		Extra:    map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {"p"}, "authentication.kubernetes.io/pod-uid": {"u"}},
	}}
	got, err := subjectOf(valid)
	want := eks.Subject{Namespace: "istio-system", ServiceAccount: "isthmus-controller", PodName: "p", PodUID: "u"}
	if got != want || err != nil {
		t.Errorf("subjectOf = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []authenticationv1.TokenReviewStatus{
		{User: valid.User}, {Authenticated: true, User: authenticationv1.UserInfo{Username: "system:node:lab-node"}},
		{Authenticated: true, User: authenticationv1.UserInfo{Username: "system:serviceaccount:only"}},
	} {
		if got, err := subjectOf(bad); err == nil {
			t.Errorf("subjectOf(%+v) = %+v, want it refused", bad, got)
		}
	}
}

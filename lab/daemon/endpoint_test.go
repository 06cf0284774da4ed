package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
)

// TestEndpointStopAndRestart stops and restarts a server and sees what its clients see.
func TestEndpointStopAndRestart(t *testing.T) {
	probe, err := net.Listen("tcp4", "127.0.0.1:0") // a port that is free, for the endpoint has a fixed one
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(probe.Addr().String())
	probe.Close()
	e := newEndpoint(addr, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }), slog.New(slog.DiscardHandler))
	l, err := e.listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.run(ctx, l) }()
	answers := func() bool {
		r, err := http.Get("http://" + addr.String()) //nolint:noctx // a server of this test
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusTeapot
	}
	for _, step := range []struct {
		action string
		want   bool
	}{{"", true}, {ActionStop, false}, {ActionStop, false}, {ActionRestart, true}, {ActionKill, true}, {ActionStop, false}, {ActionRestart, true}} {
		if step.action != "" {
			if err := e.act(t.Context(), step.action); err != nil {
				t.Fatalf("%s: %v", step.action, err)
			}
		}
		if got := answers(); got != step.want || e.isDown() == step.want {
			t.Errorf("after %q: answers %v, down %v, want answers %v", step.action, got, e.isDown(), step.want)
		}
	}
	if err := e.act(t.Context(), "paint"); err == nil {
		t.Error("an unknown action succeeded")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("run() = %v", err)
	}
}

// TestEnvironProfiles: without a lab there is no environment, and the profiles can be written before there is one.
func TestEnvironProfiles(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.Environ([]string{"AWS_ACCESS_KEY_ID=real"}); err == nil {
		t.Error("Environ without a lab succeeded")
	}
	if err := d.writeAWSProfiles("http://127.0.0.1:4566"); err != nil {
		t.Fatal(err)
	}
}

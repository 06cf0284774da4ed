package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

// kubelet is how the API server reaches the node agent.
func kubelet(n *testNode, token string) *rest.Config {
	return &rest.Config{Host: "https://" + n.Address(), BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// get asks the kubelet API.
func fetch(t *testing.T, n *testNode, token, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // its certificate is self-signed
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+n.Address()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func TestOnlyTheAPIServerGetsIn(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	eventually(t, "listening", func() bool { return n.Address() != "" }, func() string { return "no address" })
	for _, test := range []struct {
		token, path string
		want        int
	}{
		{"", "/healthz", 200}, {"", "/pods", 401}, {"wrong", "/pods", 401}, {testToken, "/pods", 200}, {"", "/exec/default/a/b?command=id", 401},
		{"", "/containerLogs/default/a/b", 401}, {"", "/portForward/default/a", 401}, {testToken, "/containerLogs/default/a/b", 404}, {testToken, "/other", 404},
	} {
		if got, body := fetch(t, n, test.token, test.path); got != test.want {
			t.Errorf("GET %s with token %q = %d %s, want %d", test.path, test.token, got, body, test.want)
		}
	}
	if _, err := New(Config{Kube: n.kube, Runtime: n.cfg.Runtime, Dir: t.TempDir(), Log: n.log}); err == nil {
		t.Error("a node agent without authentication was accepted")
	}
}

func TestLogsAPI(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	pod := n.create(t, podSpec("talk", "echo one; echo two; echo three; sleep 1000"))
	n.until(t, pod, "ready", ready)
	eventually(t, "printed", func() bool { return strings.Contains(n.output(t, pod, "main"), "three") }, func() string { return "" })
	for query, want := range map[string]string{
		"": "one\ntwo\nthree\n", "?tailLines=1": "three\n", "?limitBytes=5": "one\nt", "?sinceTime=2100-01-01T00:00:00Z": "", "?sinceSeconds=3600&tailLines=2": "two\nthree\n",
	} {
		if status, got := fetch(t, n, testToken, "/containerLogs/default/talk/main"+query); status != 200 || got != want {
			t.Errorf("logs%s = %d %q, want %q", query, status, got, want)
		}
	}
	for query, want := range map[string]int{"?tailLines=x": 400, "?previous=true": 400} {
		if status, got := fetch(t, n, testToken, "/containerLogs/default/talk/main"+query); status != want {
			t.Errorf("logs%s = %d %q, want status %d", query, status, got, want)
		}
	}
	if status, _ := fetch(t, n, testToken, "/containerLogs/default/talk/other"); status != 404 {
		t.Errorf("logs of an unknown container: status %d", status)
	}
}

func TestExecAPI(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	pod := n.create(t, podSpec("exec", "sleep 1000"))
	n.until(t, pod, "ready", ready)
	query := url.Values{"command": {"sh", "-c", "head -c 2; echo err >&2; exit 56"}, "input": {"1"}, "output": {"1"}, "error": {"1"}}
	target := &url.URL{Scheme: "https", Host: n.Address(), Path: "/exec/default/exec/main", RawQuery: query.Encode()}
	config := kubelet(n, testToken)
	overSPDY, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, target)
	if err != nil {
		t.Fatal(err)
	}
	overWebSocket, err := remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, target.String(), "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	for name, executor := range map[string]remotecommand.Executor{"SPDY": overSPDY, "WebSocket": overWebSocket} {
		var out, errOut bytes.Buffer
		err := executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errOut})
		exit, ok := errors.AsType[utilexec.CodeExitError](err)
		if !ok || exit.Code != 56 || out.String() != "in" || errOut.String() != "err\n" {
			t.Errorf("%s: %v, output %q and %q", name, err, out.String(), errOut.String())
		}
	}
	query = url.Values{"command": {"sh", "-c", "stty size; exit 3"}, "tty": {"1"}, "output": {"1"}, "input": {"1"}}
	target.RawQuery = query.Encode()
	terminal, err := remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, target.String(), "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = terminal.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: &out, Tty: true})
	if exit, ok := errors.AsType[utilexec.CodeExitError](err); !ok || exit.Code != 3 || !strings.HasSuffix(out.String(), "\r\n") {
		t.Errorf("terminal: %v, output %q", err, out.String())
	}
}

func TestPortForwardAPI(t *testing.T) {
	n := startNode(t, fakeKube(), nil)
	spec := podSpec("forward", "")
	c := &spec.Spec.Containers[0]
	c.Image, c.Command, c.Env = "isthmus/echo", nil, []corev1.EnvVar{{Name: "PORT", Value: "8080"}}
	pod := n.create(t, spec)
	n.until(t, pod, "ready", ready)
	eventually(t, "listening", func() bool { return strings.Contains(n.output(t, pod, "main"), "listening") }, func() string { return "" })
	transport, upgrader, err := spdy.RoundTripperFor(kubelet(n, testToken))
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, &url.URL{Scheme: "https", Host: n.Address(), Path: "/portForward/default/forward"})
	stop, up := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, up, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-up:
	case err := <-ended:
		t.Fatal(err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if got := httpGet(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/%d", ports[0].Local, i)); !strings.Contains(got, `"originalUrl":"/`+fmt.Sprint(i)) {
			t.Errorf("request %d = %q", i, got)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// httpGet returns the body of an answer, or the error.
func httpGet(ctx context.Context, url string) string {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return fmt.Sprint(string(body), err)
}

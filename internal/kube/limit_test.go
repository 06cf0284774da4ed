package kube_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// counting is an API server that writes down when each request came, and how many it had at once.
type counting struct {
	mu        sync.Mutex
	writes    []time.Time
	others    []string
	now, most int
	full      chan struct{} // closed when as many are on their way as may be
}

// parallel is how many writes may be on their way at once.
const parallel = 8

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		c.mu.Lock()
		c.others = append(c.others, r.URL.Path)
		c.mu.Unlock()
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"networking.istio.io/v1","resources":[
			{"name":"serviceentries","kind":"ServiceEntry","namespaced":true,"verbs":["patch","delete"]}]}`)
		return
	}
	c.mu.Lock()
	c.writes = append(c.writes, time.Now())
	c.now++
	if c.most = max(c.most, c.now); c.now == parallel && len(c.writes) == parallel {
		time.AfterFunc(50*time.Millisecond, func() { close(c.full) }) // one more would come meanwhile
	}
	c.mu.Unlock()
	select {
	case <-c.full:
	case <-time.After(10 * time.Second):
	}
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	if r.Method == http.MethodDelete {
		body = []byte(`{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	}
	_, _ = w.Write(body)
}

// However much there is to write, each object is one request and nothing is read in between; few are on their way at
// once, and none comes sooner than the rate allows. What the rate is made of counts for all calls of the client together.
func TestWritesAreBatchedAndLimited(t *testing.T) {
	const qps, burst, creates, deletes = 200, 20, 200, 100
	api := &counting{full: make(chan struct{})}
	srv := httptest.NewTLSServer(api)
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: c, cluster: {insecure-skip-tls-verify: true, server: '" + srv.URL + "'}}]\nusers: [{name: u, user: {token: secret}}]\ncontexts: [{name: a, context: {cluster: c, user: u}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.New(kube.Config{Kubeconfig: file, QPS: qps, Burst: burst, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var writes []kube.Write
	for i := range creates + deletes {
		o := parse(t, serviceEntry)
		o.SetName(fmt.Sprint("echo-", i))
		w := kube.Write{Kind: kube.ServiceEntries, Want: o}
		if i >= creates {
			w = kube.Write{Kind: kube.ServiceEntries, Have: o}
		}
		writes = append(writes, w)
	}
	for _, res := range client.WriteAll(t.Context(), writes) {
		if res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	if len(api.writes) != len(writes) || len(api.others) > parallel { // each of the first may ask what the kinds are
		t.Errorf("%d writes and %d others, want %d and a few: %v", len(api.writes), len(api.others), len(writes), api.others)
	}
	if api.most != parallel {
		t.Errorf("%d writes at once, want %d", api.most, parallel)
	}
	const slack = 100 * time.Millisecond // the first of them may have been slow
	for i, at := range api.writes {
		if soonest := time.Duration(i-burst) * time.Second / qps; at.Sub(api.writes[0]) < soonest-slack {
			t.Fatalf("request %d came %v after the first, %v too soon", i, at.Sub(api.writes[0]), soonest-at.Sub(api.writes[0]))
		}
	}
	took := api.writes[len(api.writes)-1].Sub(api.writes[0])
	t.Logf("%d writes in %v, at most %d at once", len(api.writes), took, api.most)
}

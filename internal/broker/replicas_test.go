package broker

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
)

// TestReplayAcrossReplicas copies a proof that has bought a token to another replica, and to the same one after a
// restart: both share the Kubernetes API and AWS and nothing else. They do not know the proof, so they answer; the answer
// is of no use to whoever does not have the key that the proof is bound to.
func TestReplayAcrossReplicas(t *testing.T) {
	w := newWorld(t, nil)
	p := w.sign(w.sts.session(sessionARN(task1)))
	first, refused, status := w.ask(p)
	if status != http.StatusOK {
		t.Fatalf("%d %+v", status, refused)
	}
	other, err := New(w.broker.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.broker = other
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := iamproof.ParseProof(text) // what a thief has: all that travelled
	if err != nil {
		t.Fatal(err)
	}
	rec := w.post(text)
	if rec.Code != http.StatusOK {
		t.Fatalf("the second replica answered %d: %s", rec.Code, rec.Body)
	}
	if strings.Contains(rec.Body.String(), first.Token) || strings.Contains(rec.Body.String(), "ecs-demo") {
		t.Errorf("the answer can be read by anybody: %s", rec.Body)
	}
	if got, err := stolen.Open(rec.Body.Bytes()); err == nil {
		t.Errorf("a copied proof opened the answer: %+v", got)
	}
	if got, err := w.sign(w.sts.session(sessionARN(task2))).Open(rec.Body.Bytes()); err == nil {
		t.Errorf("another task opened the answer: %+v", got)
	}
	if got, err := p.Open(rec.Body.Bytes()); err != nil || got.Namespace != "ecs-demo-1" {
		t.Errorf("the task itself cannot open it: %+v, %v", got, err)
	}
	// Once known to this replica, it is known.
	if _, refused, _ := w.ask(p); diag.Code(refused.Code) != diag.ProofReplayed {
		t.Errorf("a third time: %+v, want %s", refused, diag.ProofReplayed)
	}
	// With a key of the thief's own it is another proof, which nobody signed.
	if w.broker, err = New(other.cfg); err != nil {
		t.Fatal(err)
	}
	thief := w.sign(w.sts.session(sessionARN(task2)))
	thief.Region, thief.AccessKeyID, thief.SessionToken, thief.AMZDate, thief.Signature = p.Region, p.AccessKeyID, p.SessionToken, p.AMZDate, p.Signature
	if _, refused, _ := w.ask(thief); diag.Code(refused.Code) != diag.ProofRefused {
		t.Errorf("with another key: %+v, want %s", refused, diag.ProofRefused)
	}
}

// TestRestartLosesNothing: a token of before the restart is still good, the task gets another from the new process, and
// the end of the task ends both.
func TestRestartLosesNothing(t *testing.T) {
	w := newWorld(t, nil)
	before, _, status := w.ask(w.sign(w.sts.session(sessionARN(task1))))
	if status != http.StatusOK {
		t.Fatal(status)
	}
	b, err := New(w.broker.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.broker = b
	after, refused, status := w.ask(w.sign(w.sts.session(sessionARN(task1))))
	if status != http.StatusOK || after.ServiceAccount != before.ServiceAccount {
		t.Fatalf("after the restart: %d %+v", status, refused)
	}
	review := func(want bool) {
		t.Helper()
		for _, token := range []string{before.Token, after.Token} {
			if _, ok, err := w.kube.Client.ReviewToken(t.Context(), token); err != nil || ok != want {
				t.Errorf("token valid %t, %v, want %t", ok, err, want)
			}
		}
	}
	review(true)
	r, err := NewRevoker(RevokerConfig{Lives: livesMap{before.TaskARN: Ended}, Secrets: w.kube.Client, Log: w.broker.log})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	review(false)
}

package broker

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
)

// attack is one way to try to become somebody, and the refusal it must meet.
type attack struct {
	name   string
	code   diag.Code
	status int
	// session is the ARN of the attacker's credentials; "" means task 1's.
	session string
	// world changes the world before the proof is made, proof changes the proof.
	world func(*world)
	proof func(*world, *iamproof.Proof)
	// noSTS means that AWS must not even be asked.
	noSTS bool
}

func attacks() []attack {
	task := func(f func(*Task)) func(*world) { return func(w *world) { w.dir.change(task1, f) } }
	sts := func(status int, contentType, body string) func(*world) {
		return func(w *world) {
			w.sts.answerWith(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", contentType)
				rw.WriteHeader(status)
				_, _ = io.WriteString(rw, body)
			})
		}
	}
	at := func(d time.Duration) func(*world, *iamproof.Proof) {
		return func(w *world, p *iamproof.Proof) { w.now = w.now.Add(d) }
	}
	sa := func(name string) func(*world) { return task(func(t *Task) { t.ServiceAccount = name }) }
	resign := func(audience, region string) func(*world, *iamproof.Proof) {
		return func(w *world, p *iamproof.Proof) {
			q, err := iamproof.Sign(w.t.Context(), w.sts.session(sessionARN(task1)), region, audience)
			if err != nil {
				w.t.Fatal(err)
			}
			*p = q
		}
	}
	const json = "application/json"
	return []attack{
		// The proof itself.
		{name: "another audience", code: diag.ProofRefused, status: 403, proof: resign("other.mesh", region)},
		{name: "another key than was signed", code: diag.ProofRefused, status: 403, proof: func(_ *world, p *iamproof.Proof) {
			p.Key = "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		}},
		{name: "another region than was signed", code: diag.ProofRefused, status: 403, proof: func(_ *world, p *iamproof.Proof) { p.Region = "eu-west-1" }},
		{name: "another date than was signed", code: diag.ProofRefused, status: 403, proof: func(w *world, p *iamproof.Proof) {
			p.AMZDate = w.now.Add(-time.Minute).UTC().Format("20060102T150405Z")
		}},
		{name: "a forged signature", code: diag.ProofRefused, status: 403, proof: func(_ *world, p *iamproof.Proof) { p.Signature = strings.Repeat("0", 64) }},
		{name: "somebody else's session token", code: diag.ProofRefused, status: 403, proof: func(w *world, p *iamproof.Proof) {
			p.SessionToken = w.sts.session(sessionARN(task2)).SessionToken
		}},
		{name: "somebody else's key id", code: diag.ProofRefused, status: 403, proof: func(w *world, p *iamproof.Proof) {
			p.AccessKeyID = w.sts.session(sessionARN(task2)).AccessKeyID
		}},
		{name: "six minutes old", code: diag.ProofExpired, status: 403, proof: at(6 * time.Minute), noSTS: true},
		{name: "six minutes in the future", code: diag.ProofExpired, status: 403, proof: at(-6 * time.Minute), noSTS: true},
		{name: "a user's long-lived key", code: diag.KeyNotTemporary, status: 403, proof: func(_ *world, p *iamproof.Proof) { p.AccessKeyID = "AKIA" + p.AccessKeyID[4:] }, noSTS: true},
		{name: "a key id with a header in it", code: diag.KeyNotTemporary, status: 403, proof: func(_ *world, p *iamproof.Proof) { p.AccessKeyID += "\r\nHost: evil" }, noSTS: true},
		{name: "a session token with a header in it", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.SessionToken += "\r\nHost: evil" }, noSTS: true},
		{name: "an empty session token", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.SessionToken = "" }, noSTS: true},
		{name: "a session token of 17 KiB", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.SessionToken = strings.Repeat("a", 17<<10) }, noSTS: true},
		{name: "a host as region", code: diag.RegionUnknown, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.Region = "evil.example.com/us-east-2" }, noSTS: true},
		{name: "a region of no partition we know", code: diag.RegionUnknown, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.Region = "us-iso-east-1" }, noSTS: true},
		{name: "no region", code: diag.RegionUnknown, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.Region = "" }, noSTS: true},
		{name: "a short key", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.Key = "AAAA" }, noSTS: true},
		{name: "a key of low order", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.Key = strings.Repeat("A", 43) + "=" }, noSTS: true},
		{name: "a signature in capitals", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.Signature = strings.ToUpper(p.Signature[:63]) + "F" }, noSTS: true},
		{name: "no date", code: diag.RequestMalformed, status: 400, proof: func(_ *world, p *iamproof.Proof) { p.AMZDate = "" }, noSTS: true},

		// Who signed.
		{name: "a user", code: diag.CallerNotTaskRole, status: 403, session: "arn:aws:iam::123456789012:user/eve"},
		{name: "root", code: diag.STSAnswerInvalid, status: 503, session: "arn:aws:iam::123456789012:root/x", world: sts(200, json, `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":"123456789012","Arn":"arn:aws:iam::123456789012:root","UserId":7}}}`)},
		{name: "a federated user", code: diag.CallerNotTaskRole, status: 403, session: "arn:aws:sts::123456789012:federated-user/eve"},
		{name: "an EC2 instance role", code: diag.CallerNotTaskRole, status: 403, session: sessionARN("i-0123456789abcdef0")},
		{name: "a person who assumed the role", code: diag.CallerNotTaskRole, status: 403, session: sessionARN("eve@example.com")},
		{name: "a session name that is almost a task id", code: diag.CallerNotTaskRole, status: 403, session: sessionARN(strings.ToUpper("A" + task1[1:]))},
		{name: "an account that is not configured", code: diag.AccountNotConfigured, status: 403, session: "arn:aws:sts::999999999999:assumed-role/eks-ecs-task-role/" + task1},
		{name: "a task id that does not exist", code: diag.TaskUnknown, status: 403, session: sessionARN(strings.Repeat("3", 32))},
		{name: "another role with a forged session name", code: diag.TaskRoleMismatch, status: 403, session: "arn:aws:sts::123456789012:assumed-role/eve/" + task1},
		{name: "the same role name in another partition", code: diag.STSAnswerInvalid, status: 403, session: "arn:aws-cn:sts::123456789012:assumed-role/eks-ecs-task-role/" + task1},

		// The task.
		{name: "the role was overridden", code: diag.TaskRoleMismatch, status: 403, world: task(func(t *Task) { t.RoleARN = "arn:aws:iam::123456789012:role/override" })},
		{name: "a task without a role", code: diag.TaskRoleMismatch, status: 403, world: task(func(t *Task) { t.RoleARN = "" })},
		{name: "a role of the same name in another account", code: diag.TaskRoleMismatch, status: 403, world: task(func(t *Task) { t.RoleARN = "arn:aws:iam::999999999999:role/eks-ecs-task-role" })},
		{name: "a stopped task", code: diag.TaskNotServing, status: 403, world: task(func(t *Task) { t.LastStatus, t.DesiredStatus = "STOPPED", "STOPPED" })},
		{name: "a task that is to stop", code: diag.TaskNotServing, status: 403, world: task(func(t *Task) { t.DesiredStatus = "STOPPED" })},
		{name: "a task that is deactivating", code: diag.TaskNotServing, status: 403, world: task(func(t *Task) { t.LastStatus = "DEACTIVATING" })},
		{name: "a task that is provisioning", code: diag.TaskNotServing, status: 403, world: task(func(t *Task) { t.LastStatus = "PROVISIONING" })},
		{name: "a directory that answers with another task", code: diag.TaskUnknown, status: 403, world: func(w *world) { w.dir.change(task1, func(t *Task) { *t = demoTask(task2, "ecs-demo-2") }) }},
		{name: "tags that cannot be read", code: diag.NoServiceAccountTag, status: 403, world: func(w *world) { w.dir.err = fmt.Errorf("tag ecs.solo.io/namespace is wrong: %w", ErrPlacement) }},
		{name: "ECS is down", code: diag.DiscoveryUnavailable, status: 503, world: func(w *world) { w.dir.err = ErrUnavailable }},
		{name: "too many unknown tasks", code: diag.BrokerBusy, status: 429, world: func(w *world) { w.dir.err = ErrLimited }},

		// The service account.
		{name: "no service account tag", code: diag.NoServiceAccountTag, status: 403, world: sa("")},
		{name: "a service account that does not exist", code: diag.ServiceAccountMissing, status: 403, world: sa("nobody")},
		{name: "a service account open to no role", code: diag.RoleNotAnnotated, status: 403, world: sa("plain")},
		{name: "a service account of another role", code: diag.RoleAnnotationForeign, status: 403, world: sa("foreign-role")},
		{name: "a service account of another account's role", code: diag.RoleAnnotationForeign, status: 403, world: sa("foreign-account")},
		{name: "Kubernetes is down", code: diag.TokenNotIssued, status: 503, world: func(w *world) {
			w.kube.Fail(func(call string) error {
				if strings.HasPrefix(call, "get serviceaccounts") {
					return errors.New("dial tcp: connection refused")
				}
				return nil
			})
		}},
		{name: "Kubernetes refuses the token", code: diag.TokenNotIssued, status: 503, world: func(w *world) {
			w.kube.Fail(func(call string) error {
				if strings.HasPrefix(call, "create serviceaccounts/token") {
					return errors.New("forbidden")
				}
				return nil
			})
		}},

		// What stands in AWS's place.
		{name: "a redirect", code: diag.STSAnswerInvalid, status: 503, world: func(w *world) {
			w.sts.answerWith(func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "/elsewhere", http.StatusTemporaryRedirect)
			})
		}},
		{name: "a page instead of an answer", code: diag.STSAnswerInvalid, status: 503, world: sts(200, "text/html", "<html>"+identity(sessionARN(task1)))},
		{name: "an answer that is too long", code: diag.STSAnswerInvalid, status: 503, world: sts(200, json, identity(sessionARN(task1))+strings.Repeat(" ", 65<<10))},
		{name: "an answer with two identities", code: diag.STSAnswerInvalid, status: 503, world: sts(200, json, strings.Replace(identity(sessionARN(task1)), `"Arn"`, `"Arn":"arn:aws:sts::123456789012:assumed-role/eks-ecs-task-role/`+task2+`","Arn"`, 1))},
		{name: "an answer of another action that reflects text", code: diag.STSAnswerInvalid, status: 503, world: sts(200, json, `{"Reflected":`+identity(sessionARN(task1))+`}`)},
		{name: "AWS is failing", code: diag.STSUnreachable, status: 503, world: sts(503, json, "{}")},
		{name: "AWS throttles", code: diag.STSUnreachable, status: 503, world: sts(429, json, "{}")},
		{name: "AWS does not answer", code: diag.STSUnreachable, status: 503, world: func(w *world) { w.sts.Close() }},
	}
}

func TestAttacks(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			w := newWorld(t, nil)
			if a.world != nil {
				a.world(w)
			}
			arn := a.session
			if arn == "" {
				arn = sessionARN(task1)
			}
			creds := w.sts.session(arn)
			p := w.sign(creds)
			if a.proof != nil {
				a.proof(w, &p)
			}
			got, refused, status := w.ask(p)
			if status == http.StatusOK {
				t.Fatalf("a token was issued: %+v", got)
			}
			if diag.Code(refused.Code) != a.code || status != a.status {
				t.Errorf("refused with %d %s (%s), want %d %s", status, refused.Code, refused.Message, a.status, a.code)
			}
			if _, ok := diag.Lookup(diag.Code(refused.Code)); !ok {
				t.Errorf("code %s is not in the catalogue", refused.Code)
			}
			if diff := cmp.Diff([]diag.Code{a.code}, w.outcomes); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
			if n := w.sts.callCount(); a.noSTS && n != 0 {
				t.Errorf("AWS was asked %d times", n)
			}
			for _, call := range w.kube.Writes() {
				if strings.HasPrefix(call, "create serviceaccounts/token") && a.code != diag.TokenNotIssued {
					t.Errorf("a token was requested: %s", call)
				}
			}
			for _, secret := range []string{creds.SessionToken, creds.SecretAccessKey, p.Signature, p.SessionToken} {
				if secret != "" && (strings.Contains(w.log.String(), secret) || strings.Contains(refused.Message, secret)) {
					t.Errorf("a secret is in the log or the answer:\n%s%s", w.log, refused.Message)
				}
			}
			if !strings.Contains(w.log.String(), "code="+string(a.code)) {
				t.Errorf("the refusal is not in the log: %s", w.log)
			}
		})
	}
}

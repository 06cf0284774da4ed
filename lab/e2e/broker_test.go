package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

const (
	audience     = "cluster.local"
	brokerName   = "isthmus-broker.istio-system.svc"
	brokerPort   = 8443
	attackerRole = "e2e-attacker"
)

// testBroker tries to become somebody else with what a task, or an administrator of the account, has.
func testBroker(t *testing.T, w *world) {
	victim := w.task(t, cluster1, echo)
	creds := w.taskCredentials(t, w.task(t, cluster2, shell))

	t.Run("OwnIdentity", func(t *testing.T) {
		got, err := w.tokenOf(t, creds)
		if err != nil || got.Namespace != cluster2 || got.ServiceAccount != serviceAccount {
			t.Fatalf("a task of cluster 2 got a token of %s/%s, %v, want %s/%s", got.Namespace, got.ServiceAccount, err, cluster2, serviceAccount)
		}
		user, ok, err := w.kube.ReviewToken(t.Context(), got.Token)
		if want := "system:serviceaccount:" + cluster2 + ":" + serviceAccount; user != want || !ok || err != nil {
			t.Errorf("Kubernetes says that the token is of %q, %v, %v, want %q", user, ok, err, want)
		}
	})

	refused := func(name string, proof iamproof.Proof, want diag.Code) {
		t.Run(name, func(t *testing.T) {
			answer, refusal := w.ask(t, proof)
			if refusal == nil || refusal.Code != string(want) || refusal.Message == "" {
				t.Errorf("the broker answered %v with a token of %q, want %s", refusal, answer.Namespace, want)
			}
		})
	}
	proof := sign(t, creds, audience)
	if answer, refusal := w.ask(t, proof); refusal != nil || answer.Namespace != cluster2 {
		t.Fatalf("the first use of a proof: a token of %q, %v, want one of %s", answer.Namespace, refusal, cluster2)
	}
	refused("Replay", proof, diag.ProofReplayed)
	refused("OtherAudience", sign(t, creds, "another.mesh"), diag.ProofRefused)

	changed := sign(t, creds, audience)
	changed.Key = sign(t, creds, audience).Key
	refused("OtherKey", changed, diag.ProofRefused)

	admin := sign(t, creds, audience)
	admin.AccessKeyID = w.vars["AWS_ACCESS_KEY_ID"]
	refused("LongLivedKey", admin, diag.KeyNotTemporary)
	if _, err := iamproof.Sign(t.Context(), aws.Credentials{AccessKeyID: admin.AccessKeyID, SecretAccessKey: w.vars["AWS_SECRET_ACCESS_KEY"]}, w.aws.Region, audience); !errors.Is(err, iamproof.ErrNotTemporary) {
		t.Errorf("Sign with a long-lived key = %v, want %v", err, iamproof.ErrNotTemporary)
	}
	// Credentials of the task, signed with the administrator's secret.
	mixed := creds
	mixed.SecretAccessKey = w.vars["AWS_SECRET_ACCESS_KEY"]
	refused("ForeignSecret", sign(t, mixed, audience), diag.ProofRefused)

	w.makeAttacker(t)
	// An administrator may name the session of a role of his own as he likes: like a task of cluster 1.
	refused("ForgedSession", sign(t, w.attacker(t, taskID(victim)), audience), diag.TaskRoleMismatch)
	refused("NoTaskID", sign(t, w.attacker(t, "somebody"), audience), diag.CallerNotTaskRole)

	t.Run("StoppedTask", func(t *testing.T) { testStoppedTask(t, w) })
}

// testStoppedTask expects that a task's token and credentials end with the task.
func testStoppedTask(t *testing.T, w *world) {
	task := w.task(t, cluster2, echo)
	creds := w.taskCredentials(t, task)
	got, err := w.tokenOf(t, creds)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := w.kube.ReviewToken(t.Context(), got.Token); !ok || err != nil {
		t.Fatalf("ReviewToken of a running task = %v, %v, want true", ok, err)
	}
	if _, err := w.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String(cluster2), Task: task.TaskArn, Reason: aws.String("end-to-end test")}); err != nil {
		t.Fatal(err)
	}
	// The API server remembers for 10 s that a token was good.
	took := await(t, short, "the token of a stopped task is refused", func() (bool, string) {
		user, ok, err := w.kube.ReviewToken(t.Context(), got.Token)
		return !ok && err == nil, fmt.Sprintf("it is that of %s, %v", user, err)
	})
	t.Logf("refused %s after StopTask", took.Round(time.Millisecond))
	await(t, short, "the stopped task gets no other token", func() (bool, string) {
		_, refusal := w.ask(t, sign(t, creds, audience))
		if refusal == nil {
			return false, "it gets one"
		}
		switch diag.Code(refusal.Code) {
		case diag.TaskNotServing, diag.TaskUnknown, diag.ProofRefused: // stopping, gone from ECS, or its credentials ended
			return true, ""
		}
		return false, refusal.Error()
	})
	w.awaitEntries(t, cluster2, echo, 1)
}

// taskCredentials reads a task's credentials inside the task.
func (w *world) taskCredentials(t *testing.T, task types.Task) aws.Credentials {
	t.Helper()
	out := w.mustExec(t, task, `curl -sS --noproxy '*' --max-time 10 "http://169.254.170.2$AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"`)
	var c struct{ AccessKeyID, SecretAccessKey, Token string }
	if err := json.Unmarshal([]byte(out), &c); err != nil || c.Token == "" {
		t.Fatalf("the credentials of task %s are %d bytes: %v", taskID(task), len(out), err)
	}
	return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.Token}
}

func sign(t *testing.T, creds aws.Credentials, audience string) iamproof.Proof {
	t.Helper()
	proof, err := iamproof.Sign(t.Context(), creds, "us-east-2", audience)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

// makeAttacker makes a role that has nothing to do with the mesh and that everybody in the account may assume.
func (w *world) makeAttacker(t *testing.T) {
	t.Helper()
	_, err := w.iam.CreateRole(t.Context(), &iam.CreateRoleInput{
		RoleName: aws.String(attackerRole), AssumeRolePolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow",` +
			`"Principal":{"AWS":"arn:aws:iam::` + w.vars["LOCAL_ACCOUNT"] + `:root"},"Action":"sts:AssumeRole"}]}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := w.iam.DeleteRole(context.WithoutCancel(t.Context()), &iam.DeleteRoleInput{RoleName: aws.String(attackerRole)}); err != nil {
			t.Error(err)
		}
	})
}

// attacker returns credentials of that role, in a session of the given name.
func (w *world) attacker(t *testing.T, session string) aws.Credentials {
	t.Helper()
	out, err := sts.NewFromConfig(w.aws).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: aws.String("arn:aws:iam::" + w.vars["LOCAL_ACCOUNT"] + ":role/" + attackerRole), RoleSessionName: aws.String(session),
	})
	if err != nil {
		t.Fatal(err)
	}
	return aws.Credentials{
		AccessKeyID: *out.Credentials.AccessKeyId, SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken,
	}
}

// dialBroker connects to the broker through the API server, as `kubectl port-forward` does.
func (w *world) dialBroker(ctx context.Context, _, _ string) (net.Conn, error) {
	pods, err := w.kube.ListPods(ctx, "istio-system", "app=isthmus-controller")
	if err != nil {
		return nil, err
	}
	for _, pod := range pods {
		if pod.Ready {
			return w.kube.Dial(ctx, pod.Namespace, pod.Name, brokerPort)
		}
	}
	return nil, fmt.Errorf("none of %d controller pods is ready", len(pods))
}

// tokenOf gets a token as ztunnel does, the broker's identity verified.
func (w *world) tokenOf(t *testing.T, creds aws.Credentials) (iamproof.TokenResponse, error) {
	t.Helper()
	client, err := iamproof.NewBrokerClient(iamproof.BrokerConfig{
		Address: "https://" + brokerName + ":443", ServerName: brokerName, Region: w.aws.Region, Audience: audience,
		Identity: mesh.Identity{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "isthmus-controller"},
		Roots: func() (*x509.CertPool, error) {
			pem, err := w.kube.RootCertificates(t.Context(), "istio-system")
			if err != nil {
				return nil, err
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(pem)
			return pool, nil
		},
		Credentials: credentials.StaticCredentialsProvider{Value: creds}, Dial: w.dialBroker, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return client.Token(t.Context())
}

// ask sends the broker a proof as it is. Whether the broker is the right one, tokenOf verifies.
func (w *world) ask(t *testing.T, proof iamproof.Proof) (iamproof.TokenResponse, *iamproof.TokenError) {
	t.Helper()
	body, err := json.Marshal(proof)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: short, Transport: &http.Transport{
		DialContext: w.dialBroker, DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: brokerName, InsecureSkipVerify: true},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+brokerName+iamproof.TokenPath, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("ask the broker: %v", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode == http.StatusOK {
		answer, err := proof.Open(text)
		if err != nil {
			t.Fatalf("the broker answered %q: %v", text, err)
		}
		return answer, nil
	}
	refusal := &iamproof.TokenError{Status: response.StatusCode}
	if err := json.Unmarshal(text, refusal); err != nil {
		t.Fatalf("the broker answered %s with %q: %v", response.Status, text, err)
	}
	return iamproof.TokenResponse{}, refusal
}

package e2e

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// The service that proves its role by web identity tokens; its role and its service account have the same name.
const (
	web     = "e2e-web"
	webHost = web + ".ecs-demo-1.ecs.local:8080"
)

// testWebIdentity takes the steps of the configuration reference to web identity tokens, and expects that a service with a
// role of its own gets its identity by them, and that the guide's tasks, which share a role, do not.
func testWebIdentity(t *testing.T, w *world) {
	shared := w.task(t, cluster2, shell)
	creds := w.taskCredentials(t, shared)
	w.must(t, "isthmus", "ecs", "infra", "apply", "--web-identity")
	refused := func(name string, want diag.Code) {
		t.Helper()
		_, err := w.webTokenOf(t, creds, taskID(shared))
		var refusal *iamproof.TokenError
		if !errors.As(err, &refusal) || refusal.Code != string(want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	if _, err := w.webTokenOf(t, creds, taskID(shared)); err == nil || !strings.Contains(err.Error(), "aws iam enable-outbound-web-identity-federation") {
		t.Errorf("before the account has web identity tokens: %v", err)
	}
	enabled, err := w.iam.EnableOutboundWebIdentityFederation(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused("before the account accepts them", diag.WebIdentityOff)
	w.acceptWebIdentity(t, aws.ToString(enabled.IssuerIdentifier))
	refused("a role of two service accounts", diag.RoleAmbiguous)

	w.createWebService(t)
	task := w.awaitEntries(t, cluster1, web, 1)[0]
	w.awaitCall(t, cluster2, webHost)
	log := w.must(t, "isthmus", "lab", "logs", "isthmus-controller")
	issued := func(line string) bool {
		return strings.Contains(line, "token issued") && strings.Contains(line, taskID(task)) && strings.Contains(line, "proof=web-identity") && strings.Contains(line, "token.serviceAccount="+web)
	}
	if !slices.ContainsFunc(strings.Split(log, "\n"), issued) {
		t.Errorf("the controller does not log that task %s got a token by a web identity", taskID(task))
	}
	own := w.taskCredentials(t, task)
	got, err := w.webTokenOf(t, own, taskID(task))
	if err != nil || got.Namespace != cluster1 || got.ServiceAccount != web || got.TaskARN != aws.ToString(task.TaskArn) {
		t.Fatalf("a token of %s/%s for %s, %v, want %s/%s", got.Namespace, got.ServiceAccount, got.TaskARN, err, cluster1, web)
	}
	if user, ok, err := w.kube.ReviewToken(t.Context(), got.Token); user != "system:serviceaccount:"+cluster1+":"+web || !ok || err != nil {
		t.Errorf("Kubernetes says that the token is of %q, %v, %v", user, ok, err)
	}
	var refusal *iamproof.TokenError
	if _, err := w.webTokenOf(t, own, taskID(shared)); !errors.As(err, &refusal) || refusal.Code != string(diag.TaskRoleMismatch) {
		t.Errorf("in the name of another role's task: %v, want %s", err, diag.TaskRoleMismatch)
	}
	// The end of the task ends its token, as with the other proof.
	if _, err := w.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String(cluster1), Task: task.TaskArn}); err != nil {
		t.Fatal(err)
	}
	await(t, short, "the token of a stopped task is refused", func() (bool, string) {
		user, ok, err := w.kube.ReviewToken(t.Context(), got.Token)
		return !ok && err == nil, user
	})
}

// acceptWebIdentity changes the controller's file as an operator does, and restarts it.
func (w *world) acceptWebIdentity(t *testing.T, issuer string) {
	t.Helper()
	file, err := settings.Parse([]byte(w.must(t, "kubectl", "get", "configmap", "-n", "istio-system", "isthmus-controller", "-o", `jsonpath={.data.config\.yaml}`)))
	if err != nil {
		t.Fatal(err)
	}
	file.Platforms.ECS.Accounts[0].WebIdentity = &settings.WebIdentity{Enabled: true, Issuer: issuer}
	text, err := file.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]string{"config.yaml": string(text)}})
	if err != nil {
		t.Fatal(err)
	}
	w.must(t, "kubectl", "patch", "configmap", "-n", "istio-system", "isthmus-controller", "--type=merge", "-p", string(patch))
	w.must(t, "kubectl", "rollout", "restart", "-n", "istio-system", "deployment/isthmus-controller")
	w.must(t, "kubectl", "rollout", "status", "-n", "istio-system", "deployment/isthmus-controller", "--timeout=120s")
}

// createWebService makes a role with the rights of the guide's, a service account that is open to it, and a service of
// one task that proves itself by web identity tokens. All of it goes with the test.
func (w *world) createWebService(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	check := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	model, err := w.iam.GetRole(ctx, &iam.GetRoleInput{RoleName: aws.String("eks-ecs-task-role")})
	if err != nil {
		t.Fatal(err)
	}
	trust, _ := url.QueryUnescape(aws.ToString(model.Role.AssumeRolePolicyDocument))
	rights, err := w.iam.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: model.Role.RoleName, PolicyName: aws.String("Task")})
	if err != nil {
		t.Fatal(err)
	}
	policy, _ := url.QueryUnescape(aws.ToString(rights.PolicyDocument))
	role, err := w.iam.CreateRole(ctx, &iam.CreateRoleInput{RoleName: aws.String(web), Path: aws.String("/ecs/"), AssumeRolePolicyDocument: &trust})
	if err != nil {
		t.Fatal(err)
	}
	check(w.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: aws.String(web), PolicyName: aws.String("Task"), PolicyDocument: &policy}))
	w.apply(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: "+web+", namespace: "+cluster1+", annotations: {ecs.solo.io/role-arn: '"+aws.ToString(role.Role.Arn)+"'}}}")

	endpoint := strings.TrimSpace(w.mustExec(t, w.task(t, cluster1, echo), `echo "$AWS_ENDPOINT_URL"`))
	d, tags := w.definition(t)
	d.Family, d.TaskRoleArn = aws.String(web), role.Role.Arn
	for i := range d.ContainerDefinitions {
		if c := &d.ContainerDefinitions[i]; aws.ToString(c.Name) == proxyContainer {
			c.Environment = append(c.Environment, types.KeyValuePair{Name: aws.String("ISTHMUS_PROOF"), Value: aws.String("web-identity")},
				types.KeyValuePair{Name: aws.String("ISTHMUS_STS_ENDPOINT"), Value: &endpoint})
		}
	}
	tags = slices.DeleteFunc(tags, func(tag types.Tag) bool { return aws.ToString(tag.Key) == "ecs.solo.io/service-account" })
	definition := w.register(t, d, append(tags, types.Tag{Key: aws.String("ecs.solo.io/service-account"), Value: aws.String(web)}))
	described, err := w.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: aws.String(cluster1), Services: []string{echo}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ecs.CreateService(ctx, &ecs.CreateServiceInput{
		Cluster: aws.String(cluster1), ServiceName: aws.String(web), TaskDefinition: &definition, DesiredCount: aws.Int32(1), LaunchType: types.LaunchTypeFargate,
		EnableExecuteCommand: true, NetworkConfiguration: described.Services[0].NetworkConfiguration,
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		check(w.ecs.DeleteService(ctx, &ecs.DeleteServiceInput{Cluster: aws.String(cluster1), Service: aws.String(web), Force: aws.Bool(true)}))
		check(nil, ecs.NewServicesInactiveWaiter(w.ecs, func(o *ecs.ServicesInactiveWaiterOptions) { o.MinDelay, o.MaxDelay = time.Second/5, time.Second }).
			Wait(ctx, &ecs.DescribeServicesInput{Cluster: aws.String(cluster1), Services: []string{web}}, short))
		check(w.ecs.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: &definition}))
		check(w.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: aws.String(web), PolicyName: aws.String("Task")}))
		check(w.iam.DeleteRole(ctx, &iam.DeleteRoleInput{RoleName: aws.String(web)}))
		w.run(ctx, "kubectl", "delete", "serviceaccount", "-n", cluster1, web)
	})
}

// webTokenOf gets a token as ztunnel does with ISTHMUS_PROOF=web-identity.
func (w *world) webTokenOf(t *testing.T, creds aws.Credentials, task string) (iamproof.TokenResponse, error) {
	t.Helper()
	prover, err := webidentity.NewClient(webidentity.ClientConfig{
		Credentials: func(context.Context) (aws.Credentials, error) { return creds, nil }, Region: w.aws.Region, Audience: audience, TaskID: task,
		Endpoint: w.vars["AWS_ENDPOINT_URL"],
	})
	if err != nil {
		t.Fatal(err)
	}
	client, err := iamproof.NewBrokerClient(iamproof.BrokerConfig{
		Address: "https://" + brokerName + ":443", ServerName: brokerName, Region: w.aws.Region, Audience: audience, Prove: prover.Prove,
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
		Dial: w.dialBroker, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return client.Token(t.Context())
}

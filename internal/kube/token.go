package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// ServiceAccount is what the broker needs to know of a Kubernetes service account.
type ServiceAccount struct {
	Namespace string
	Name      string
	// RoleARN is the annotation ecs.solo.io/role-arn: the one AWS role that may become this service account.
	RoleARN string
}

// ServiceAccount reads a service account from the API server, not from a cache: an annotation that was removed must stop
// the next token, not the one after.
func (c *Client) ServiceAccount(ctx context.Context, namespace, name string) (ServiceAccount, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	sa, err := c.dyn.Resource(ServiceAccounts).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return ServiceAccount{}, fmt.Errorf("get service account %s/%s: %w", namespace, name, err)
	}
	return ServiceAccount{Namespace: namespace, Name: name, RoleARN: sa.GetAnnotations()[RoleAnnotation]}, nil
}

// TokenSpec describes a service account token that lives as long as a Secret does.
type TokenSpec struct {
	Namespace      string
	ServiceAccount string
	// Secret is the name of the Secret the token is bound to: when it is deleted the token is refused. It is made when
	// it is absent.
	Secret string
	// TaskID and TaskARN are written on the Secret, so that it can be found and removed when the task stops.
	TaskID  string
	TaskARN string
	// TTL is the lifetime asked for; the API server's minimum is 10 minutes.
	TTL time.Duration
}

// Token is a service account token. It is secret: never log it.
type Token struct {
	Value      string
	Expiration time.Time
}

// IssueToken makes the Secret of a task, if it is not there yet, and a token with audience istio-ca bound to it.
func (c *Client) IssueToken(ctx context.Context, spec TokenSpec) (Token, error) {
	if spec.Namespace == "" || spec.ServiceAccount == "" || spec.Secret == "" || spec.TaskID == "" {
		return Token{}, errors.New("kube: TokenSpec.Namespace, ServiceAccount, Secret and TaskID are required")
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	secret, err := c.taskSecret(ctx, spec)
	if err != nil {
		return Token{}, err
	}
	return c.requestToken(ctx, spec.Namespace, spec.ServiceAccount, map[string]any{
		"audiences":         []any{istioTokenAudience},
		"expirationSeconds": int64(max(spec.TTL, minTokenLifetime) / time.Second),
		"boundObjectRef":    map[string]any{"apiVersion": "v1", "kind": "Secret", "name": secret.GetName(), "uid": string(secret.GetUID())},
	})
}

// requestToken makes a TokenRequest for a service account.
func (c *Client) requestToken(ctx context.Context, namespace, name string, spec map[string]any) (Token, error) {
	req := &Object{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"metadata": map[string]any{"name": name, "namespace": namespace}, "spec": spec,
	}}
	got, err := c.dyn.Resource(ServiceAccounts).Namespace(namespace).Create(ctx, req, metav1.CreateOptions{}, "token")
	if err != nil {
		return Token{}, fmt.Errorf("request token of %s/%s: %w", namespace, name, err)
	}
	token, _, _ := unstructured.NestedString(got.Object, "status", "token")
	if token == "" {
		return Token{}, fmt.Errorf("request token of %s/%s: empty answer", namespace, name)
	}
	text, _, _ := unstructured.NestedString(got.Object, "status", "expirationTimestamp")
	expires, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return Token{}, fmt.Errorf("request token of %s/%s: expiration: %w", namespace, name, err)
	}
	return Token{Value: token, Expiration: expires}, nil
}

// taskSecret returns the Secret that a task's tokens are bound to. The Secret is empty: its life is its only content.
func (c *Client) taskSecret(ctx context.Context, spec TokenSpec) (*Object, error) {
	secrets := c.dyn.Resource(Secrets).Namespace(spec.Namespace)
	want := &Object{Object: map[string]any{"apiVersion": "v1", "kind": "Secret", "type": "isthmus.dev/task"}}
	want.SetName(spec.Secret)
	want.SetNamespace(spec.Namespace)
	want.SetLabels(map[string]string{ManagedByLabel: ManagedByValue, TaskIDLabel: spec.TaskID})
	want.SetAnnotations(map[string]string{TaskARNAnnotation: spec.TaskARN})
	made, err := secrets.Create(ctx, want, metav1.CreateOptions{FieldManager: FieldManager})
	if err == nil {
		return made, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create secret %s/%s: %w", spec.Namespace, spec.Secret, err)
	}
	have, err := secrets.Get(ctx, spec.Secret, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get secret %s/%s: %w", spec.Namespace, spec.Secret, err)
	}
	// Somebody else's Secret of that name must not decide how long our tokens live.
	if have.GetLabels()[ManagedByLabel] != ManagedByValue || have.GetAnnotations()[TaskARNAnnotation] != spec.TaskARN {
		return nil, fmt.Errorf("secret %s/%s belongs to something else", spec.Namespace, spec.Secret)
	}
	if have.GetDeletionTimestamp() != nil {
		return nil, fmt.Errorf("secret %s/%s is being deleted", spec.Namespace, spec.Secret)
	}
	return have, nil
}

// TaskSecret is the Secret to which a task's tokens are bound.
type TaskSecret struct {
	Namespace string
	Name      string
	TaskID    string
	TaskARN   string
	Created   time.Time
}

// TaskSecrets lists the Secrets of all tasks. Where the caller may not list them in the whole cluster, it looks into each
// namespace and passes over those that are closed to it.
func (c *Client) TaskSecrets(ctx context.Context) ([]TaskSecret, error) {
	all, err := c.taskSecretsIn(ctx, metav1.NamespaceAll)
	if !IsForbidden(err) {
		return all, err
	}
	namespaces, err := c.List(ctx, Namespaces, "", "")
	if err != nil {
		return nil, err
	}
	var out []TaskSecret
	for _, ns := range namespaces {
		some, err := c.taskSecretsIn(ctx, ns.GetName())
		if IsForbidden(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

func (c *Client) taskSecretsIn(ctx context.Context, namespace string) ([]TaskSecret, error) {
	var out []TaskSecret
	opt := metav1.ListOptions{LabelSelector: ManagedByLabel + "=" + ManagedByValue + "," + TaskIDLabel, Limit: 500}
	for {
		page, cancel := context.WithTimeout(ctx, c.timeout)
		list, err := c.dyn.Resource(Secrets).Namespace(namespace).List(page, opt)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("list secrets of tasks: %w", err)
		}
		for i := range list.Items {
			s := &list.Items[i]
			out = append(out, TaskSecret{
				Namespace: s.GetNamespace(), Name: s.GetName(), TaskID: s.GetLabels()[TaskIDLabel],
				TaskARN: s.GetAnnotations()[TaskARNAnnotation], Created: s.GetCreationTimestamp().Time,
			})
		}
		if opt.Continue = list.GetContinue(); opt.Continue == "" {
			return out, nil
		}
	}
}

// RevokeTask deletes a task's Secret, which ends its tokens at once. A Secret that is gone already is no error.
func (c *Client) RevokeTask(ctx context.Context, s TaskSecret) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.dyn.Resource(Secrets).Namespace(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// ReviewToken asks the API server whose token it is, as istiod does; the lab's and the tests' way to see a revocation.
func (c *Client) ReviewToken(ctx context.Context, token string) (user string, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	review := &Object{Object: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
		"spec": map[string]any{"token": token, "audiences": []any{istioTokenAudience}},
	}}
	got, err := c.dyn.Resource(TokenReviews).Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return "", false, fmt.Errorf("review token: %w", err)
	}
	user, _, _ = unstructured.NestedString(got.Object, "status", "user", "username")
	ok, _, _ = unstructured.NestedBool(got.Object, "status", "authenticated")
	return user, ok, nil
}

// RootCertificates returns the mesh root that istiod publishes in every namespace, as PEM.
func (c *Client) RootCertificates(ctx context.Context, namespace string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	cm, err := c.dyn.Resource(ConfigMaps).Namespace(namespace).Get(ctx, RootCertConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get mesh root of namespace %s: %w", namespace, err)
	}
	pem, _, _ := unstructured.NestedString(cm.Object, "data", RootCertKey)
	if pem == "" {
		return nil, fmt.Errorf("get mesh root of namespace %s: config map %s has no %s", namespace, RootCertConfigMap, RootCertKey)
	}
	return []byte(pem), nil
}

// ServiceAccountToken returns a token with the API server's own audience: what a pod of the service account has. Tests
// and the command line use it to act as somebody.
func (c *Client) ServiceAccountToken(ctx context.Context, namespace, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	token, err := c.requestToken(ctx, namespace, name, map[string]any{})
	return token.Value, err
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	sa, err := c.core.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return ServiceAccount{}, fmt.Errorf("get service account %s/%s: %w", namespace, name, err)
	}
	return ServiceAccount{Namespace: namespace, Name: name, RoleARN: sa.Annotations[RoleAnnotation]}, nil
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
	seconds := int64(max(spec.TTL, minTokenLifetime) / time.Second)
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		Audiences:         []string{istioTokenAudience},
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: secret.Name, UID: secret.UID},
	}}
	got, err := c.core.CoreV1().ServiceAccounts(spec.Namespace).CreateToken(ctx, spec.ServiceAccount, req, metav1.CreateOptions{})
	if err != nil {
		return Token{}, fmt.Errorf("request token of %s/%s: %w", spec.Namespace, spec.ServiceAccount, err)
	}
	if got.Status.Token == "" {
		return Token{}, fmt.Errorf("request token of %s/%s: empty answer", spec.Namespace, spec.ServiceAccount)
	}
	return Token{Value: got.Status.Token, Expiration: got.Status.ExpirationTimestamp.Time}, nil
}

// taskSecret returns the Secret that a task's tokens are bound to. The Secret is empty: its life is its only content.
func (c *Client) taskSecret(ctx context.Context, spec TokenSpec) (*corev1.Secret, error) {
	secrets := c.core.CoreV1().Secrets(spec.Namespace)
	want := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: spec.Secret, Namespace: spec.Namespace,
			Labels:      map[string]string{ManagedByLabel: ManagedByValue, TaskIDLabel: spec.TaskID},
			Annotations: map[string]string{TaskARNAnnotation: spec.TaskARN},
		},
		Type: "isthmus.dev/task",
	}
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
	if have.Labels[ManagedByLabel] != ManagedByValue || have.Annotations[TaskARNAnnotation] != spec.TaskARN {
		return nil, fmt.Errorf("secret %s/%s belongs to something else", spec.Namespace, spec.Secret)
	}
	if have.DeletionTimestamp != nil {
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
		list, err := c.core.CoreV1().Secrets(namespace).List(page, opt)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("list secrets of tasks: %w", err)
		}
		for i := range list.Items {
			s := &list.Items[i]
			out = append(out, TaskSecret{
				Namespace: s.Namespace, Name: s.Name, TaskID: s.Labels[TaskIDLabel],
				TaskARN: s.Annotations[TaskARNAnnotation], Created: s.CreationTimestamp.Time,
			})
		}
		if opt.Continue = list.Continue; opt.Continue == "" {
			return out, nil
		}
	}
}

// RevokeTask deletes a task's Secret, which ends its tokens at once. A Secret that is gone already is no error.
func (c *Client) RevokeTask(ctx context.Context, s TaskSecret) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.core.CoreV1().Secrets(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete secret %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// ReviewToken asks the API server whose token it is, as istiod does; the lab's and the tests' way to see a revocation.
func (c *Client) ReviewToken(ctx context.Context, token string) (user string, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	review := &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{istioTokenAudience}}}
	got, err := c.core.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return "", false, fmt.Errorf("review token: %w", err)
	}
	return got.Status.User.Username, got.Status.Authenticated, nil
}

// RootCertificates returns the mesh root that istiod publishes in every namespace, as PEM.
func (c *Client) RootCertificates(ctx context.Context, namespace string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	cm, err := c.core.CoreV1().ConfigMaps(namespace).Get(ctx, RootCertConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get mesh root of namespace %s: %w", namespace, err)
	}
	pem := cm.Data[RootCertKey]
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
	got, err := c.core.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request token of %s/%s: %w", namespace, name, err)
	}
	return got.Status.Token, nil
}

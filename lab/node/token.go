package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// maxTokenAge is after how long a token is replaced at the latest, as the kubelet does.
const maxTokenAge = 24 * time.Hour

// defaultTokenSeconds is the lifetime of a token when the volume does not say.
const defaultTokenSeconds = 3600

type tokenKey struct {
	audience string
	seconds  int64
}

type issuedToken struct {
	token           string
	issued, expires time.Time
}

// due reports whether a token is to be replaced: when four fifths of its life are over.
func (t *issuedToken) due(now time.Time) bool {
	age := now.Sub(t.issued)
	return age > maxTokenAge || age > t.expires.Sub(t.issued)*4/5
}

// tokens are the service account tokens of one pod. They are bound to the pod, so that they end with it.
type tokens struct {
	w      *worker
	mu     sync.Mutex
	issued map[tokenKey]*issuedToken // guarded by mu
}

// get returns a valid token for the audience, "" being the API server's.
func (t *tokens) get(ctx context.Context, audience string, seconds *int64) (string, error) {
	key := tokenKey{audience: audience, seconds: defaultTokenSeconds}
	if seconds != nil {
		key.seconds = *seconds
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	have := t.issued[key]
	if have != nil && !have.due(time.Now()) {
		return have.token, nil
	}
	fresh, err := t.request(ctx, key)
	if err != nil {
		if have != nil && time.Now().Before(have.expires) {
			return have.token, nil // still good; tried again at the next refresh
		}
		return "", err
	}
	t.issued[key] = fresh
	return fresh.token, nil
}

func (t *tokens) request(ctx context.Context, key tokenKey) (*issuedToken, error) {
	pod := t.w.latest()
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &key.seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if key.audience != "" {
		request.Spec.Audiences = []string{key.audience}
	}
	now := time.Now()
	answer, err := t.w.n.cfg.Kube.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("request a token of service account %s: %w", account, err)
	}
	if answer.Status.Token == "" {
		return nil, errors.New("the API server issued an empty token")
	}
	return &issuedToken{token: answer.Status.Token, issued: now, expires: answer.Status.ExpirationTimestamp.Time}, nil
}

// EKS Pod Identity, as its webhook sets it up in a pod.
const (
	identityAudience = "pods.eks.amazonaws.com"
	identityDir      = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount"
	identityFile     = "eks-pod-identity-token"
	identityVolume   = "..eks-pod-identity" // no volume of a pod can have this name
	identitySeconds  = 86400
)

// podIdentity returns the variables and the mount by which the AWS SDKs of a pod find its credentials, if its service
// account has an association. A pod that mounts the token itself is left alone.
func (w *worker) podIdentity(ctx context.Context) ([]string, []runtime.Mount) {
	pod := w.latest()
	if w.n.cfg.PodIdentity == nil {
		return nil, nil
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	if !w.n.cfg.PodIdentity.Association(ctx, pod.Namespace, account) {
		return nil, nil
	}
	if err := w.writeIdentityToken(ctx); err != nil {
		w.event("Warning", "FailedPodIdentity", "no token for EKS Pod Identity: %v", err)
		return nil, nil
	}
	return []string{
		"AWS_STS_REGIONAL_ENDPOINTS=regional", "AWS_DEFAULT_REGION=" + w.n.cfg.Region, "AWS_REGION=" + w.n.cfg.Region,
		"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://" + netns.PodIdentityAgent.String() + "/v1/credentials",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=" + filepath.Join(identityDir, identityFile),
	}, []runtime.Mount{{Source: w.volumeDir(identityVolume), Target: identityDir, ReadOnly: true}}
}

// identityRequested reports whether the pod has an EKS Pod Identity token to keep fresh.
func (w *worker) identityRequested() bool {
	w.tokens.mu.Lock()
	defer w.tokens.mu.Unlock()
	return w.tokens.issued[tokenKey{identityAudience, identitySeconds}] != nil
}

func (w *worker) writeIdentityToken(ctx context.Context) error {
	lifetime := int64(identitySeconds)
	token, err := w.tokens.get(ctx, identityAudience, &lifetime)
	if err != nil {
		return err
	}
	return writeVolume(w.volumeDir(identityVolume), map[string]file{identityFile: {[]byte(token), 0o644}})
}

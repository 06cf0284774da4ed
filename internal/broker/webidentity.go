package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

// WebIdentity is what the second method needs.
type WebIdentity struct {
	// Issuer returns the issuer that is pinned to an account; false means that its tokens are not accepted. Required.
	Issuer func(account string) (issuer string, ok bool)
	Roles  Roles // required
	// Endpoint is asked for the issuers' documents instead of the issuers: an emulator. Only an operator sets it.
	Endpoint string
	// Transport carries requests to issuers; nil means one of its own, without proxies.
	Transport http.RoundTripper
}

// Roles tells who uses a role.
type Roles interface {
	// RoleUse returns every different user of a role that ECS knows of in an account, in all its regions: a service
	// account as NAMESPACE/NAME, and whatever has the role and is no service account by a text with a space. An error
	// means that not everything is known, and then nothing follows from what is.
	RoleUse(account, roleName string) ([]string, error)
}

// webVerifier is the second method's part of a Broker.
type webVerifier struct {
	verifier *webidentity.Verifier
	roles    Roles
	replays  *replayCache
}

func newWebVerifier(cfg Config) (*webVerifier, error) {
	w := cfg.WebIdentity
	if w == nil {
		return nil, nil
	}
	if w.Issuer == nil || w.Roles == nil {
		return nil, errors.New("broker: WebIdentity.Issuer and Roles are required")
	}
	v, err := webidentity.NewVerifier(webidentity.Config{Audience: cfg.Audience, Issuer: w.Issuer, Endpoint: w.Endpoint, Transport: w.Transport, Now: cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("broker: WebIdentity: %w", err)
	}
	return &webVerifier{verifier: v, roles: w.Roles, replays: newReplayCache(cfg.Limits.Replays)}, nil
}

// byWebIdentity takes the second method's steps, in the order of the package comment. It returns the key to seal to.
func (b *Broker) byWebIdentity(ctx context.Context, body []byte) (iamproof.TokenResponse, string, *refusal) {
	none := iamproof.TokenResponse{}
	proof, err := webidentity.ParseProof(body)
	if err != nil {
		return none, "", refuse(http.StatusBadRequest, diag.RequestMalformed, "%v", err)
	}
	who, err := b.web.verifier.Verify(ctx, proof.Token, proof.Key)
	if err != nil {
		return none, "", refuseToken(err)
	}
	key := who.ReplayKey()
	if !b.web.replays.begin(key, b.cfg.Now()) {
		return none, "", refuse(http.StatusForbidden, diag.ProofReplayed, "token %s of %s", who.ID, who.Issuer)
	}
	defer b.web.replays.end(key)
	// The session's name is what the caller says; only Roles makes that harmless.
	caller := iamproof.CallerIdentity{Partition: who.Partition, Account: who.Account, RoleName: who.RoleName, SessionName: proof.TaskID}
	spend := func() bool { return b.web.replays.spend(key, b.cfg.Now(), webidentity.ReplayWindow) }
	answer, refused := b.issue(ctx, caller, who.Region, spend, func(task Task) *refusal { return b.alone(caller, task) })
	return answer, proof.Key, refused
}

// refuseToken gives each kind of error of the verifier its code.
func refuseToken(err error) *refusal {
	switch {
	case errors.Is(err, webidentity.ErrNotEnabled):
		return refuse(http.StatusForbidden, diag.WebIdentityOff, "%v", err)
	case errors.Is(err, webidentity.ErrTime):
		return refuse(http.StatusForbidden, diag.WebTokenExpired, "%v", err)
	case errors.Is(err, webidentity.ErrAudience):
		return refuse(http.StatusForbidden, diag.WebTokenForeign, "%v", err)
	case errors.Is(err, webidentity.ErrSignature):
		return refuse(http.StatusForbidden, diag.WebTokenForged, "%v", err)
	case errors.Is(err, webidentity.ErrSubject):
		return refuse(http.StatusForbidden, diag.WebTokenSubject, "%v", err)
	case errors.Is(err, webidentity.ErrKeys):
		f := refuse(http.StatusServiceUnavailable, diag.IssuerKeysUnknown, "%v", err)
		f.retry = webidentity.RefreshInterval
		return f
	default:
		return refuse(http.StatusBadRequest, diag.WebTokenMalformed, "%v", err)
	}
}

// alone makes sure that whatever has the task's role is the service account that the task is, so that the role says it all.
func (b *Broker) alone(caller iamproof.CallerIdentity, task Task) *refusal {
	users, err := b.web.roles.RoleUse(caller.Account, caller.RoleName)
	if err != nil {
		f := refuse(http.StatusServiceUnavailable, diag.DiscoveryUnavailable, "who else has role %s: %v", caller.RoleName, err)
		f.retry = roleUseRetry
		return f
	}
	self := task.Namespace + "/" + task.ServiceAccount
	others := slices.DeleteFunc(slices.Clone(users), func(u string) bool { return u == self })
	if len(others) > 0 {
		return refuse(http.StatusForbidden, diag.RoleAmbiguous, "role %s is also that of %s", caller.RoleName, strings.Join(others[:min(len(others), maxNamedUsers)], ", "))
	}
	return nil
}

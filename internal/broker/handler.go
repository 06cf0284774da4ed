package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// refusal is a request's end without a token.
type refusal struct {
	*diag.Error
	status int
	retry  time.Duration
	caller string // who AWS said it is, as far as that got; for the log
}

func refuse(status int, code diag.Code, format string, args ...any) *refusal {
	return &refusal{Error: diag.Newf(code, format, args...), status: status}
}

// ServeHTTP answers POST /v1/token, and POST /v1/token/web-identity for the second method.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := b.cfg.Now()
	source := r.RemoteAddr
	if host, _, err := net.SplitHostPort(source); err == nil {
		source = host
	}
	answer, body, refused := b.answer(w, r, source)
	outcome := Outcome{Took: b.cfg.Now().Sub(start)}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if refused == nil {
		proof := "signature"
		if r.URL.Path == webidentity.TokenPath {
			proof = "web-identity" // which task it is was said, not proved
		}
		b.log.Info("token issued", slog.String("source", source), slog.String("proof", proof), slog.Any("token", answer))
		_, _ = w.Write(body)
	} else {
		outcome.Code = refused.Code
		if b.logRate.AllowN(b.cfg.Now(), 1) {
			b.log.Warn("token refused", slog.String("source", source), slog.String("code", string(refused.Code)),
				slog.String("caller", refused.caller), slog.String("cause", refused.Cause))
		}
		if refused.retry > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(refused.retry.Seconds()))))
		}
		w.WriteHeader(refused.status)
		_ = json.NewEncoder(w).Encode(iamproof.TokenError{Code: string(refused.Code), Message: refused.Summary + ": " + refused.Cause})
	}
	if b.cfg.Observe != nil {
		b.cfg.Observe(outcome)
	}
}

// answer returns what is issued, and the same sealed to the one who asked.
func (b *Broker) answer(w http.ResponseWriter, r *http.Request, source string) (answer iamproof.TokenResponse, body []byte, f *refusal) {
	none := iamproof.TokenResponse{}
	web := b.web != nil && r.URL.Path == webidentity.TokenPath
	if r.URL.Path != iamproof.TokenPath && !web {
		return none, nil, refuse(http.StatusNotFound, diag.MethodNotAllowed, "path %.64q", r.URL.Path)
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return none, nil, refuse(http.StatusMethodNotAllowed, diag.MethodNotAllowed, "method %.16q", r.Method)
	}
	if wait, ok := b.sources.allow(source, b.cfg.Now()); !ok {
		f := refuse(http.StatusTooManyRequests, diag.SourceRateLimited, "more than %g requests per second from %s", b.cfg.Limits.SourceRate, source)
		f.retry = wait
		return none, nil, f
	}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	default:
		f := refuse(http.StatusServiceUnavailable, diag.BrokerBusy, "%d requests are in flight", b.cfg.Limits.InFlight)
		f.retry = time.Second
		return none, nil, f
	}
	text, refused := b.read(w, r)
	if refused != nil {
		return none, nil, refused
	}
	method := b.bySignature
	if web {
		method = b.byWebIdentity
	}
	token, key, refused := method(r.Context(), text)
	if refused != nil {
		return none, nil, refused
	}
	sealed, err := iamproof.Seal(key, token)
	if err != nil {
		return none, nil, refuse(http.StatusServiceUnavailable, diag.TokenNotIssued, "%v", err)
	}
	return token, sealed, nil
}

// read reads a request within its bounds.
func (b *Broker) read(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, refuse(http.StatusRequestEntityTooLarge, diag.RequestTooLarge, "the body exceeds %d bytes", maxBody)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, diag.RequestMalformed, "the body ended early")
	}
	return body, nil
}

// parse decodes a signed request and checks all that can be checked without asking anybody.
func (b *Broker) parse(body []byte) (iamproof.Proof, *refusal) {
	none := iamproof.Proof{}
	proof, err := iamproof.ParseProof(body)
	if err != nil {
		return none, refuse(http.StatusBadRequest, diag.RequestMalformed, "%v", err)
	}
	switch err := proof.Validate(b.cfg.Now()); {
	case err == nil:
		return proof, nil
	case errors.Is(err, iamproof.ErrRegion):
		return none, refuse(http.StatusBadRequest, diag.RegionUnknown, "%v", err)
	case errors.Is(err, iamproof.ErrNotTemporary):
		return none, refuse(http.StatusForbidden, diag.KeyNotTemporary, "%v", err)
	case errors.Is(err, iamproof.ErrDate):
		return none, refuse(http.StatusForbidden, diag.ProofExpired, "%v", err)
	default:
		return none, refuse(http.StatusBadRequest, diag.RequestMalformed, "%v", err)
	}
}

// bySignature asks everybody who has a say, in the order of the package comment. It returns the key to seal to.
func (b *Broker) bySignature(ctx context.Context, body []byte) (iamproof.TokenResponse, string, *refusal) {
	none := iamproof.TokenResponse{}
	proof, refused := b.parse(body)
	if refused != nil {
		return none, "", refused
	}
	key := proof.ReplayKey()
	if !b.replays.begin(key, b.cfg.Now()) {
		return none, "", refuse(http.StatusForbidden, diag.ProofReplayed, "signed at %s", proof.AMZDate)
	}
	defer b.replays.end(key)

	caller, refused := b.verify(ctx, proof)
	if refused != nil {
		return none, "", refused
	}
	spend := func() bool { return b.replays.spend(key, b.cfg.Now(), iamproof.ReplayWindow) }
	answer, refused := b.issue(ctx, caller, proof.Region, spend, nil)
	return answer, proof.Key, refused
}

// issue asks those who say what a proven caller is. The proof is spent last, and then a token is issued. A method whose
// proof says less has a question of its own about the task.
func (b *Broker) issue(ctx context.Context, caller iamproof.CallerIdentity, region string, spend func() bool, ask func(Task) *refusal) (iamproof.TokenResponse, *refusal) {
	none := iamproof.TokenResponse{}
	named := func(f *refusal) *refusal {
		f.caller = caller.Account + "/" + caller.RoleName + "/" + caller.SessionName
		return f
	}
	task, refused := b.find(ctx, caller, region)
	if refused != nil {
		return none, named(refused)
	}
	sa, refused := b.admit(ctx, caller, task)
	if refused != nil {
		return none, named(refused)
	}
	if ask != nil {
		if refused := ask(task); refused != nil {
			return none, named(refused)
		}
	}
	if !spend() {
		return none, named(refuse(http.StatusServiceUnavailable, diag.BrokerBusy, "%d proofs are remembered", b.cfg.Limits.Replays))
	}
	token, err := b.cfg.Issuer.IssueToken(ctx, kube.TokenSpec{
		Namespace: sa.Namespace, ServiceAccount: sa.Name, Secret: secretPrefix + task.ID, TaskID: task.ID, TaskARN: task.ARN, TTL: b.cfg.TokenTTL,
	})
	if err != nil {
		b.log.Error("token not issued", slog.String("task_arn", task.ARN), slog.String("error", err.Error()))
		return none, named(refuse(http.StatusServiceUnavailable, diag.TokenNotIssued, "for service account %s/%s", sa.Namespace, sa.Name))
	}
	return iamproof.TokenResponse{
		Token: token.Value, Expiration: token.Expiration.UTC(), Namespace: sa.Namespace, ServiceAccount: sa.Name, WorkloadName: task.WorkloadName,
		TaskARN: task.ARN, TrustDomain: b.cfg.TrustDomain, ClusterID: b.cfg.ClusterID, Network: b.cfg.Network,
	}, nil
}

// awsCode is what an error of AWS may look like to be repeated to the caller and in the log.
var awsCode = regexp.MustCompile(`"Code"\s*:\s*"([A-Za-z]{1,64})"|<Code>([A-Za-z]{1,64})</Code>`)

// verify has AWS check the signature and say who made it.
func (b *Broker) verify(ctx context.Context, proof iamproof.Proof) (iamproof.CallerIdentity, *refusal) {
	none := iamproof.CallerIdentity{}
	req, err := proof.Request(b.cfg.Audience, b.cfg.STSEndpoint)
	if err != nil {
		return none, refuse(http.StatusBadRequest, diag.RequestMalformed, "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Limits.STSTimeout)
	defer cancel()
	resp, err := b.sts.Do(req.WithContext(ctx))
	if err != nil {
		// The error names the URL, which holds nothing of the caller's but the region.
		return none, refuse(http.StatusServiceUnavailable, diag.STSUnreachable, "%v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, iamproof.MaxCallerIdentity+1))
	switch {
	case err != nil:
		return none, refuse(http.StatusServiceUnavailable, diag.STSUnreachable, "read the answer of %s: %v", req.Host, err)
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		f := refuse(http.StatusServiceUnavailable, diag.STSUnreachable, "%s answered with status %d", req.Host, resp.StatusCode)
		f.retry = time.Second
		return none, f
	case resp.StatusCode >= 400:
		why := ""
		if m := awsCode.FindSubmatch(body); m != nil {
			why = ", " + cmp.Or(string(m[1]), string(m[2]))
		}
		return none, refuse(http.StatusForbidden, diag.ProofRefused, "%s answered with status %d%s (the broker's audience is %q)", req.Host, resp.StatusCode, why, b.cfg.Audience)
	case resp.StatusCode != http.StatusOK:
		return none, refuse(http.StatusServiceUnavailable, diag.STSAnswerInvalid, "%s answered with status %d", req.Host, resp.StatusCode)
	}
	caller, err := iamproof.ParseCallerIdentity(body, resp.Header.Get("Content-Type"))
	switch {
	case errors.Is(err, iamproof.ErrNotAssumed):
		return none, refuse(http.StatusForbidden, diag.CallerNotTaskRole, "%v", err)
	case err != nil:
		return none, refuse(http.StatusServiceUnavailable, diag.STSAnswerInvalid, "%v", err)
	case caller.Partition != iamproof.Partition(proof.Region):
		return none, refuse(http.StatusForbidden, diag.STSAnswerInvalid, "partition %s does not belong to region %s", caller.Partition, proof.Region)
	}
	return caller, nil
}

// find looks the caller's task up.
func (b *Broker) find(ctx context.Context, caller iamproof.CallerIdentity, region string) (Task, *refusal) {
	if !inventory.IsTaskID(caller.SessionName) {
		return Task{}, refuse(http.StatusForbidden, diag.CallerNotTaskRole, "session name %q of role %s is not a task id", caller.SessionName, caller.RoleName)
	}
	task, err := b.cfg.Directory.FindTask(ctx, caller.Account, region, caller.SessionName)
	switch {
	case err == nil:
	case errors.Is(err, ErrAccountUnknown):
		return Task{}, refuse(http.StatusForbidden, diag.AccountNotConfigured, "account %s", caller.Account)
	case errors.Is(err, ErrTaskUnknown):
		return Task{}, refuse(http.StatusForbidden, diag.TaskUnknown, "task %s in account %s", caller.SessionName, caller.Account)
	case errors.Is(err, ErrPlacement):
		return Task{}, refuse(http.StatusForbidden, diag.NoServiceAccountTag, "task %s: %v", caller.SessionName, err)
	case errors.Is(err, ErrLimited):
		f := refuse(http.StatusTooManyRequests, diag.BrokerBusy, "too many unknown tasks are being looked up in account %s", caller.Account)
		f.retry = time.Second
		return Task{}, f
	default:
		f := refuse(http.StatusServiceUnavailable, diag.DiscoveryUnavailable, "task %s: %v", caller.SessionName, err)
		f.retry = time.Second
		return Task{}, f
	}
	// A directory that answers with another task than the one asked for is a mistake of ours, and a bad one.
	if task.ID != caller.SessionName || inventory.LastPart(task.ARN) != task.ID {
		return Task{}, refuse(http.StatusForbidden, diag.TaskUnknown, "task %s in account %s", caller.SessionName, caller.Account)
	}
	// Only now is the role one of a configured account, so that strangers cannot fill the table of roles.
	if wait, ok := b.roles.allow(caller.Account+"/"+caller.RoleName, b.cfg.Now()); !ok {
		f := refuse(http.StatusTooManyRequests, diag.RoleRateLimited, "more than %g requests per second for role %s", b.cfg.Limits.RoleRate, caller.RoleName)
		f.retry = wait
		return Task{}, f
	}
	return task, nil
}

// admit decides whether the task may be the service account that its tags name.
func (b *Broker) admit(ctx context.Context, caller iamproof.CallerIdentity, task Task) (kube.ServiceAccount, *refusal) {
	none := kube.ServiceAccount{}
	// The ARN of an assumed role lacks the role's path; SameRole compares account and name, which are unique together.
	role := fmt.Sprintf("arn:%s:iam::%s:role/%s", caller.Partition, caller.Account, caller.RoleName)
	if task.RoleARN == "" || !inventory.SameRole(task.RoleARN, role) {
		return none, refuse(http.StatusForbidden, diag.TaskRoleMismatch, "task %s runs with %q, the proof is of role %s", task.ID, task.RoleARN, caller.RoleName)
	}
	switch task.LastStatus {
	case inventory.TaskPending, inventory.TaskActivating, inventory.TaskRunning:
	default:
		return none, refuse(http.StatusForbidden, diag.TaskNotServing, "task %s is %s", task.ID, task.LastStatus)
	}
	if task.DesiredStatus != inventory.TaskRunning {
		return none, refuse(http.StatusForbidden, diag.TaskNotServing, "task %s is wanted %s", task.ID, task.DesiredStatus)
	}
	if task.ServiceAccount == "" || task.Namespace == "" {
		return none, refuse(http.StatusForbidden, diag.NoServiceAccountTag, "task %s of cluster %s", task.ID, inventory.LastPart(task.ClusterARN))
	}
	sa, err := b.cfg.Issuer.ServiceAccount(ctx, task.Namespace, task.ServiceAccount)
	switch {
	case kube.IsNotFound(err):
		return none, refuse(http.StatusForbidden, diag.ServiceAccountMissing, "%s/%s", task.Namespace, task.ServiceAccount)
	case err != nil:
		b.log.Error("service account not read", slog.String("namespace", task.Namespace), slog.String("service_account", task.ServiceAccount), slog.String("error", err.Error()))
		return none, refuse(http.StatusServiceUnavailable, diag.TokenNotIssued, "service account %s/%s cannot be read now", task.Namespace, task.ServiceAccount)
	case sa.RoleARN == "":
		return none, refuse(http.StatusForbidden, diag.RoleNotAnnotated, "%s/%s", task.Namespace, task.ServiceAccount)
	case !inventory.SameRole(sa.RoleARN, role):
		return none, refuse(http.StatusForbidden, diag.RoleAnnotationForeign, "%s/%s is open to %q, the proof is of role %s of account %s",
			task.Namespace, task.ServiceAccount, sa.RoleARN, caller.RoleName, caller.Account)
	}
	return sa, nil
}

package awsapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"

	smithy "github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Kind classifies the outcome of a call. It is a closed set, fit for a metric label.
type Kind uint8

// The kinds of outcome.
const (
	OK           Kind = iota
	Throttled         // too many requests; AWS counts all callers of the account
	NotFound          // the thing named does not exist
	AccessDenied      // not allowed, or credentials missing, wrong or expired
	Invalid           // AWS refused the request as wrong; a repetition does not help
	Unavailable       // the endpoint cannot be reached, or answers with a server error
	Canceled          // our own context ended
	Other
)

// String returns the label's value.
func (k Kind) String() string {
	return [...]string{"ok", "throttled", "not_found", "access_denied", "invalid", "unavailable", "canceled", "other"}[k&7]
}

var (
	throttleCodes = []string{"ThrottlingException", "Throttling", "ThrottledException", "RequestLimitExceeded", "TooManyRequestsException", "RequestThrottled", "RequestThrottledException", "SlowDown", "LimitExceededException.Throttled"}
	notFoundCodes = []string{"ClusterNotFoundException", "ServiceNotFoundException", "ServiceNotActiveException", "ResourceNotFoundException", "NotFoundException", "NoSuchEntity", "NoSuchEntityException", "TaskSetNotFoundException", "QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "TargetNotFoundException"}
	deniedCodes   = []string{"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure", "UnrecognizedClientException", "InvalidClientTokenId", "ExpiredToken", "ExpiredTokenException", "SignatureDoesNotMatch", "InvalidSignatureException", "MissingAuthenticationToken", "OptInRequired", "NotAuthorized", "IncompleteSignature", "RequestExpired"}
	serverCodes   = []string{"ServerException", "InternalFailure", "InternalError", "ServiceUnavailable", "ServiceUnavailableException", "InternalServerError", "InternalServerException", "Unavailable"}
	invalidCodes  = []string{"InvalidParameterException", "ClientException", "ValidationError", "ValidationException", "InvalidParameterValue", "InvalidRequest", "MalformedPolicyDocument", "InvalidAction"}
)

// KindOf classifies an error of a call. Codes decide first, then the HTTP status, then the transport.
func KindOf(err error) Kind {
	if err == nil {
		return OK
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if k := kindOfCode(api.ErrorCode(), api.ErrorMessage()); k != Other {
			return k
		}
	}
	if re, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		switch code := re.HTTPStatusCode(); {
		case code == http.StatusTooManyRequests:
			return Throttled
		case code == http.StatusForbidden || code == http.StatusUnauthorized:
			return AccessDenied
		case code == http.StatusNotFound:
			return NotFound
		case code >= 500:
			return Unavailable
		case code >= 400:
			return Invalid
		}
	}
	if errors.Is(err, context.Canceled) {
		return Canceled
	}
	if _, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok {
		return Unavailable
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, context.DeadlineExceeded) {
		return Unavailable
	}
	if _, ok := errors.AsType[*smithy.CanceledError](err); ok {
		return Canceled
	}
	return Other
}

func kindOfCode(code, message string) Kind {
	switch {
	case slices.Contains(throttleCodes, code):
		return Throttled
	case slices.Contains(notFoundCodes, code), strings.HasSuffix(code, ".NotFound"):
		return NotFound
	case slices.Contains(deniedCodes, code):
		return AccessDenied
	case slices.Contains(serverCodes, code):
		return Unavailable
	case code == "ClientException" && strings.HasPrefix(message, "Unable to describe task definition"):
		return NotFound // ECS's way of saying that there is no such task definition
	case code == "ClientException" && strings.Contains(message, "Too many concurrent attempts"):
		return Throttled
	case slices.Contains(invalidCodes, code):
		return Invalid
	}
	return Other
}

// IsThrottled reports whether AWS asked for fewer requests.
func IsThrottled(err error) bool { return KindOf(err) == Throttled }

// IsNotFound reports whether the thing named in the call does not exist.
func IsNotFound(err error) bool { return KindOf(err) == NotFound }

// IsAccessDenied reports whether the call was not allowed, or the credentials are no good.
func IsAccessDenied(err error) bool { return KindOf(err) == AccessDenied }

// IsEndpointDown reports whether the endpoint cannot be reached or is failing.
func IsEndpointDown(err error) bool { return KindOf(err) == Unavailable }

// IsAlreadyExists reports whether a create call found that the thing is there already.
func IsAlreadyExists(err error) bool {
	switch code := Code(err); code {
	case "EntityAlreadyExists", "EntityAlreadyExistsException", "ResourceAlreadyExistsException", "ResourceInUseException",
		"InvalidGroup.Duplicate", "InvalidPermission.Duplicate", "AlreadyExistsException":
		return true
	case "InvalidParameterException":
		return strings.Contains(err.Error(), "not idempotent") // CreateService of an existing name
	}
	return false
}

// Code returns AWS's error code, or "".
func Code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// Advice returns what is likely wrong and how to put it right, for errors whose text does not tell; both are empty for
// others. Role is the role that was being assumed, if any.
func Advice(err error, role string) (cause, fix string) {
	text := err.Error()
	switch {
	case KindOf(err) == AccessDenied && strings.Contains(text, "sts:TagSession"):
		return "the session of EKS Pod Identity carries tags, and passing them on to " + orRole(role) + " is not allowed",
			"allow sts:TagSession next to sts:AssumeRole, both in the policy of the controller's role and in the trust policy of the other role"
	case KindOf(err) == AccessDenied && strings.Contains(text, "AssumeRole"):
		return "the controller's identity may not assume " + orRole(role),
			"allow sts:AssumeRole and sts:TagSession on it in the controller's role, name the controller's role in its trust policy, and check the external id"
	case KindOf(err) == AccessDenied && strings.Contains(strings.ToLower(text), "expired"):
		return "the credentials have expired", "sign in again (aws sso login), or restart what provides them"
	case KindOf(err) == AccessDenied:
		return orRole(role) + " lacks a permission: " + Code(err), "attach the policy that `isthmus ecs infra plan` prints"
	case KindOf(err) == Throttled:
		return "the account's request limit is used up", "nothing to do: sweeps slow down by themselves; raise the sweep interval if it stays"
	case KindOf(err) == Unavailable:
		return "the AWS endpoint cannot be reached or is failing", "check the network path and proxies to the region's endpoint"
	}
	return "", ""
}

func orRole(role string) string {
	if role == "" {
		return "the role"
	}
	return role
}

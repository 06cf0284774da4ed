package awsserver

import (
	"fmt"
	"net/http"
)

// Error is a failure as AWS would report it. Code is the name of the JSON protocols (with its "Exception");
// the other protocols' names for the failures of the front itself are derived when it is written.
type Error struct {
	Code    string
	Message string
	Status  int            // 0 means 400
	Fields  map[string]any // further members of the JSON error document
	// QueryCode is the name under which the failure was known before the service spoke JSON; clients of such a service
	// (SQS) are told it in a header and show it.
	QueryCode string
}

// Error makes Error an error.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Errorf returns a client error with status 400.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

// The front's own failures. Query protocols have other names for them, see queryCodes.
const (
	codeMissingToken     = "MissingAuthenticationTokenException"
	codeUnrecognized     = "UnrecognizedClientException"
	codeExpiredToken     = "ExpiredTokenException"
	codeInvalidSignature = "InvalidSignatureException"
	codeIncomplete       = "IncompleteSignatureException"
	codeAccessDenied     = "AccessDeniedException"
	codeInternal         = "InternalFailure"
	codeUnknownOperation = "UnknownOperationException"
)

// queryName is how a Query protocol calls one of the front's failures.
type queryName struct {
	code   string
	status int
}

// queryCodes maps the front's failures to AWS Query's names and statuses.
var queryCodes = map[string]queryName{ //nolint:gochecknoglobals // a constant table
	codeMissingToken:     {"MissingAuthenticationToken", http.StatusForbidden},
	codeUnrecognized:     {"InvalidClientTokenId", http.StatusForbidden},
	codeExpiredToken:     {"ExpiredToken", http.StatusForbidden},
	codeInvalidSignature: {"SignatureDoesNotMatch", http.StatusForbidden},
	codeIncomplete:       {"IncompleteSignature", http.StatusBadRequest},
	codeAccessDenied:     {"AccessDenied", http.StatusForbidden},
	codeUnknownOperation: {"InvalidAction", http.StatusBadRequest},
	codeThrottling:       {"Throttling", http.StatusBadRequest},
	codeServerError:      {"InternalFailure", http.StatusInternalServerError},
}

// ec2Codes maps the front's failures to EC2's names and statuses.
var ec2Codes = map[string]queryName{ //nolint:gochecknoglobals // a constant table
	codeMissingToken:     {"MissingAuthenticationToken", http.StatusForbidden},
	codeUnrecognized:     {"AuthFailure", http.StatusUnauthorized},
	codeExpiredToken:     {"RequestExpired", http.StatusBadRequest},
	codeInvalidSignature: {"AuthFailure", http.StatusUnauthorized},
	codeIncomplete:       {"IncompleteSignature", http.StatusBadRequest},
	codeAccessDenied:     {"UnauthorizedOperation", http.StatusForbidden},
	codeUnknownOperation: {"InvalidAction", http.StatusBadRequest},
	codeThrottling:       {"RequestLimitExceeded", http.StatusServiceUnavailable},
	codeServerError:      {"InternalError", http.StatusInternalServerError},
}

// AccessDenied words a refusal by policy as AWS does.
func AccessDenied(caller, action, resource string, d Decision) *Error {
	msg := fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s", caller, action, resource)
	if d == DeniedExplicitly {
		msg += " with an explicit deny in an identity-based policy"
	} else {
		msg += fmt.Sprintf(" because no identity-based policy allows the %s action", action)
	}
	return &Error{Code: codeAccessDenied, Message: msg, Status: http.StatusBadRequest}
}

// inProtocol returns the error under the name and status the protocol gives it.
func (e *Error) inProtocol(p Protocol) (code string, status int) {
	table := map[string]queryName(nil)
	switch p {
	case Query:
		table = queryCodes
	case EC2Query:
		table = ec2Codes
	case RESTJSON:
		if e.Code == codeAccessDenied || e.Code == codeUnrecognized || e.Code == codeInvalidSignature || e.Code == codeExpiredToken {
			return e.Code, http.StatusForbidden
		}
	case JSON10, JSON11:
	}
	if n, ok := table[e.Code]; ok {
		return n.code, n.status
	}
	if e.Status == 0 {
		return e.Code, http.StatusBadRequest
	}
	return e.Code, e.Status
}

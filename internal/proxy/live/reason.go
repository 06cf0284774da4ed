package live

import (
	"crypto/tls"
	"crypto/x509"
	"errors"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// Errors that end connections. Their texts are those operators know from ztunnel.
var (
	ErrDrain        = errors.New("connection closed due to connection drain")
	ErrPolicyChange = errors.New("connection closed due to policy change")
)

// DeniedError is a refusal by policy.
type DeniedError struct{ reason string }

// Error returns the text operators know from ztunnel.
func (e *DeniedError) Error() string {
	return "connection closed due to policy rejection: " + e.reason
}

// IdentityError says that there is no certificate for the local workload.
type IdentityError struct{ Err error }

// Error returns the text operators know from ztunnel.
func (e *IdentityError) Error() string { return "identity error: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *IdentityError) Unwrap() error { return e.Err }

// ReasonOf finds the response flag of a connection that ended with err.
func ReasonOf(err error) telemetry.Reason {
	var (
		denied   *DeniedError
		identity *IdentityError
		peer     *hbone.IdentityError
		verify   *tls.CertificateVerificationError
		alert    tls.AlertError
		record   tls.RecordHeaderError
		unknown  x509.UnknownAuthorityError
		invalid  x509.CertificateInvalidError
		goAway   *hbone.GoAwayError
	)
	switch {
	case err == nil:
		return telemetry.OK
	case errors.Is(err, hbone.ErrRevoked):
		return telemetry.CertRevoked
	case errors.As(err, &denied), errors.Is(err, ErrPolicyChange):
		return telemetry.Denied
	case errors.As(err, &identity):
		return telemetry.IdentityFailure
	case errors.Is(err, hbone.ErrConnectTimeout):
		return telemetry.NetworkPolicy
	case errors.As(err, &peer), errors.As(err, &verify), errors.As(err, &alert), errors.As(err, &record),
		errors.As(err, &unknown), errors.As(err, &invalid):
		return telemetry.TLSFailure
	case errors.As(err, &goAway):
		return telemetry.H2Failure
	}
	return telemetry.ConnectFailure
}

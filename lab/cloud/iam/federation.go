package iam

import (
	"fmt"
	"net/http"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// IssuerDomain ends the host names of the issuers of accounts.
const IssuerDomain = ".tokens.sts.global.api.aws"

// federation is an account's outbound web identity federation. The issuer stays when it is disabled.
type federation struct {
	issuer  string // "" before it was first enabled
	enabled bool
}

type issuerAnswer struct {
	IssuerIdentifier string `xml:"IssuerIdentifier" json:"IssuerIdentifier"`
}

type federationInfo struct {
	IssuerIdentifier  string `xml:"IssuerIdentifier" json:"IssuerIdentifier"`
	JwtVendingEnabled bool   `xml:"JwtVendingEnabled" json:"JwtVendingEnabled"`
}

func (s *Service) enableFederation(acct *account, _ *awsserver.Request) (any, error) {
	if acct.federation.enabled {
		return nil, conflict("FeatureEnabled", "Outbound web identity federation is already enabled for account %s.", acct.id)
	}
	if acct.federation.issuer == "" {
		acct.federation.issuer = "https://" + awsserver.UUID() + IssuerDomain
	}
	acct.federation.enabled = true
	return issuerAnswer{acct.federation.issuer}, nil
}

func (s *Service) disableFederation(acct *account, _ *awsserver.Request) (any, error) {
	if !acct.federation.enabled {
		return nil, featureDisabled(acct)
	}
	acct.federation.enabled = false
	return nil, nil
}

func (s *Service) federationInfo(acct *account, _ *awsserver.Request) (any, error) {
	if !acct.federation.enabled {
		return nil, featureDisabled(acct)
	}
	return federationInfo{acct.federation.issuer, true}, nil
}

func featureDisabled(acct *account) error {
	return &awsserver.Error{Code: "FeatureDisabled", Status: http.StatusNotFound, Message: fmt.Sprintf("Outbound web identity federation is not enabled for account %s.", acct.id)}
}

// Issuer returns the issuer of an account's web identity tokens; false means that it may not have any.
func (s *Service) Issuer(accountID string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	acct := s.accounts[accountID]
	if acct == nil {
		return "", false
	}
	return acct.federation.issuer, acct.federation.enabled
}

// AccountOfIssuer returns the account that has an issuer.
func (s *Service) AccountOfIssuer(issuer string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, acct := range s.accounts {
		if acct.federation.issuer == issuer && issuer != "" {
			return id, true
		}
	}
	return "", false
}

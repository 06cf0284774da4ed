package iamproof

import (
	"context"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	amzDateFormat = "20060102T150405Z"
	stsBody       = "Action=GetCallerIdentity&Version=2011-06-15"
	contentType   = "application/x-www-form-urlencoded; charset=utf-8"
	// signedHeaders is exact: neither side can add a header, leave one out or repeat one.
	signedHeaders = "accept;content-length;content-type;host;x-amz-date;x-amz-security-token;x-isthmus-audience;x-isthmus-bind"
)

// Header names of the proof's own.
const (
	audienceHeader = "X-Isthmus-Audience"
	bindHeader     = "X-Isthmus-Bind"
)

// Sign makes a proof of the role whose credentials these are, for the mesh audience.
func Sign(ctx context.Context, creds aws.Credentials, region, audience string) (Proof, error) {
	key, err := newKey()
	if err != nil {
		return Proof{}, fmt.Errorf("sign the proof: %w", err)
	}
	return sign(ctx, creds, region, audience, key, time.Now())
}

func sign(ctx context.Context, creds aws.Credentials, region, audience string, key *ecdh.PrivateKey, now time.Time) (Proof, error) {
	if creds.SessionToken == "" || !keyPattern.MatchString(creds.AccessKeyID) {
		return Proof{}, fmt.Errorf("sign the proof: only temporary credentials of a task role can be proved: %w", ErrNotTemporary)
	}
	p := Proof{
		Region:       region,
		AccessKeyID:  creds.AccessKeyID,
		SessionToken: creds.SessionToken,
		AMZDate:      now.UTC().Format(amzDateFormat),
		Key:          keyText(key.PublicKey()),
		private:      key,
	}
	req, err := p.unsigned(audience, "")
	if err != nil {
		return Proof{}, fmt.Errorf("sign the proof: %w", err)
	}
	// The signer sets both of these itself.
	req.Header.Del("X-Amz-Date")
	req.Header.Del("X-Amz-Security-Token")
	hash := sha256.Sum256([]byte(stsBody))
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(hash[:]), "sts", region, now); err != nil {
		return Proof{}, fmt.Errorf("sign the proof: %w", err)
	}
	authorization := req.Header.Get("Authorization")
	_, signature, ok := strings.Cut(authorization, "Signature=")
	p.Signature = signature
	if want := p.authorization(); !ok || authorization != want {
		// The signer covers other headers than the broker would: its answer could never be verified.
		return Proof{}, fmt.Errorf("sign the proof: the signer did not sign the headers %s", signedHeaders)
	}
	return p, nil
}

// Request builds the request that the proof is the signature of. Every part of it is fixed or one of the proof's
// fields, which must have passed Validate. A stsURL other than "" is where the request goes instead of the region's
// own endpoint, for example to a VPC endpoint or an emulator of AWS; the Host header, which is signed, stays. The
// caller must not follow redirects.
func (p Proof) Request(audience, stsURL string) (*http.Request, error) {
	req, err := p.unsigned(audience, stsURL)
	if err != nil {
		return nil, fmt.Errorf("rebuild the proof's request: %w", err)
	}
	req.Header.Set("Authorization", p.authorization())
	return req, nil
}

// unsigned builds the request without its Authorization header.
func (p Proof) unsigned(audience, stsURL string) (*http.Request, error) {
	if err := checkAudience(audience); err != nil {
		return nil, err
	}
	host, err := STSHost(p.Region)
	if err != nil {
		return nil, err
	}
	if stsURL == "" {
		stsURL = "https://" + host + "/"
	}
	u, err := url.Parse(stsURL)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("%q is not an http(s) URL", stsURL)
	}
	// Path and query are signed, so they are never the override's.
	u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}
	req, err := http.NewRequest(http.MethodPost, u.String(), strings.NewReader(stsBody))
	if err != nil {
		return nil, err
	}
	req.Host = host
	req.Header = http.Header{
		"Accept":               {"application/json"},
		"Content-Type":         {contentType},
		"X-Amz-Date":           {p.AMZDate},
		"X-Amz-Security-Token": {p.SessionToken},
		audienceHeader:         {audience},
		bindHeader:             {bind(audience, p.Key)},
	}
	return req, nil
}

func (p Proof) authorization() string {
	day, _, _ := strings.Cut(p.AMZDate, "T")
	return "AWS4-HMAC-SHA256 Credential=" + p.AccessKeyID + "/" + day + "/" + p.Region + "/sts/aws4_request" +
		", SignedHeaders=" + signedHeaders + ", Signature=" + p.Signature
}

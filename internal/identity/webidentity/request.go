package webidentity

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
)

// What is asked of STS; policies of task roles may allow just that.
const (
	// AskedSeconds is the life of a token: the shortest that AWS offers, as it is used at once.
	AskedSeconds = 60
	// AskedAlgorithm is that of the smaller signature.
	AskedAlgorithm = es384

	askTimeout    = 10 * time.Second
	maxSTSAnswer  = 64 << 10
	maxAudience   = 255 // of the mesh; with the prefix and the hash well below AWS's limit of 1,000
	maxSTSMessage = 256 // of AWS's error messages, as far as they are repeated
)

// ClientConfig configures a Client.
type ClientConfig struct {
	// Credentials returns those of the task role; required.
	Credentials func(ctx context.Context) (aws.Credentials, error)
	Region      string // required: whose STS is asked
	Audience    string // required: the mesh
	TaskID      string // required: of this task
	// Endpoint replaces the region's own STS: a VPC endpoint or an emulator. The signed Host header stays.
	Endpoint string
	// Dial connects to STS; nil means the standard way.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// TLS is how STS is verified; nil means by the roots of the system.
	TLS *tls.Config
}

// Client proves the task's role to the broker by web identity tokens.
type Client struct {
	cfg  ClientConfig
	host string // that is signed
	url  string
	http *http.Client
}

// NewClient returns a Client. It makes no connection yet.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case cfg.Credentials == nil:
		return nil, errors.New("webidentity: ClientConfig.Credentials is required")
	case !inventory.IsTaskID(cfg.TaskID):
		return nil, fmt.Errorf("webidentity: ClientConfig.TaskID: %q is not a task's id", cfg.TaskID)
	case cfg.Audience == "" || len(cfg.Audience) > maxAudience:
		return nil, fmt.Errorf("webidentity: ClientConfig.Audience must have 1 to %d characters", maxAudience)
	}
	host, err := iamproof.STSHost(cfg.Region)
	if err != nil {
		return nil, fmt.Errorf("webidentity: ClientConfig.Region: %w", err)
	}
	c := &Client{cfg: cfg, host: host, url: "https://" + host + "/"}
	if cfg.Endpoint != "" {
		u, err := url.Parse(cfg.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fmt.Errorf("webidentity: ClientConfig.Endpoint: %q is not an http(s) URL", cfg.Endpoint)
		}
		c.url = u.Scheme + "://" + u.Host + "/"
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	c.http = &http.Client{
		Timeout: askTimeout,
		Transport: &http.Transport{
			Proxy: nil, DialContext: cfg.Dial, TLSClientConfig: cfg.TLS, TLSHandshakeTimeout: askTimeout,
			DisableKeepAlives: true, // requests are an hour apart
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Prove asks STS for a token that is good for one request to the broker, and makes that request.
func (c *Client) Prove(ctx context.Context) (iamproof.Asking, error) {
	key, err := iamproof.NewOneTimeKey()
	if err != nil {
		return iamproof.Asking{}, fmt.Errorf("make a one-time key: %w", err)
	}
	token, err := c.token(ctx, Audience(c.cfg.Audience, key.Public()))
	if err != nil {
		return iamproof.Asking{}, fmt.Errorf("get a web identity token: %w", err)
	}
	body, err := json.Marshal(Proof{Token: token, TaskID: c.cfg.TaskID, Key: key.Public()})
	if err != nil {
		return iamproof.Asking{}, fmt.Errorf("encode the proof: %w", err)
	}
	return iamproof.Asking{Path: TokenPath, Body: body, Open: key.Open}, nil
}

// token calls sts:GetWebIdentityToken.
func (c *Client) token(ctx context.Context, audience string) (string, error) {
	creds, err := c.cfg.Credentials(ctx)
	if err != nil {
		return "", err
	}
	body := url.Values{
		"Action": {"GetWebIdentityToken"}, "Version": {"2011-06-15"}, "Audience.member.1": {audience},
		"DurationSeconds": {strconv.Itoa(AskedSeconds)}, "SigningAlgorithm": {AskedAlgorithm},
	}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Host = c.host
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "sts", c.cfg.Region, time.Now()); err != nil {
		return "", fmt.Errorf("sign the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxSTSAnswer+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("read the answer of %s: %w", c.host, err)
	case len(text) > maxSTSAnswer:
		return "", fmt.Errorf("read the answer of %s: more than %d bytes", c.host, maxSTSAnswer)
	case resp.StatusCode != http.StatusOK:
		return "", refusal(c.host, resp.StatusCode, text)
	}
	var answer struct {
		XMLName xml.Name `xml:"GetWebIdentityTokenResponse"`
		Token   string   `xml:"GetWebIdentityTokenResult>WebIdentityToken"`
	}
	if err := xml.Unmarshal(text, &answer); err != nil {
		return "", fmt.Errorf("read the answer of %s: it is not that of sts:GetWebIdentityToken", c.host)
	}
	if t, err := parse(answer.Token); err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", c.host, err)
	} else if t.claims.audience != audience {
		return "", fmt.Errorf("read the answer of %s: the token is for another audience than was asked", c.host)
	}
	return answer.Token, nil
}

// refusal says what AWS says, and what to do about what is usual.
func refusal(host string, status int, text []byte) error {
	var answer struct {
		Code    string `xml:"Error>Code"`
		Message string `xml:"Error>Message"`
	}
	if err := xml.Unmarshal(text, &answer); err != nil || answer.Code == "" {
		return fmt.Errorf("%s answered with status %d", host, status)
	}
	err := fmt.Errorf("%s refused with %.64q: %.*q", host, answer.Code, maxSTSMessage, answer.Message)
	switch answer.Code {
	case "AccessDenied", "AccessDeniedException":
		return fmt.Errorf("%w (allow sts:GetWebIdentityToken in the task role)", err)
	case "OutboundWebIdentityFederationDisabledException", "OutboundWebIdentityFederationDisabled":
		return fmt.Errorf("%w (aws iam enable-outbound-web-identity-federation)", err)
	}
	return err
}

package iamproof

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
)

// ecsCredentialsHost answers a task's relative credentials URI.
const ecsCredentialsHost = "http://169.254.170.2"

const (
	maxCredentialsWait = 5 * time.Second
	maxAuthTokenFile   = 16 << 10
)

// CredentialsFromEnvironment returns the provider of a task's credentials, by the variables that ECS sets:
// AWS_CONTAINER_CREDENTIALS_RELATIVE_URI or AWS_CONTAINER_CREDENTIALS_FULL_URI, the latter with
// AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE or AWS_CONTAINER_AUTHORIZATION_TOKEN. Without them, it falls back to
// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. As in AWS' own libraries, a plain http URI must
// point to loopback or to the credentials addresses of ECS and EKS.
func CredentialsFromEnvironment(getenv func(string) string) (aws.CredentialsProvider, error) {
	if relative := getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); relative != "" {
		if !strings.HasPrefix(relative, "/") {
			return nil, errors.New("read AWS_CONTAINER_CREDENTIALS_RELATIVE_URI: it does not begin with a slash")
		}
		return containerCredentials(ecsCredentialsHost+relative, getenv), nil
	}
	if full := getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"); full != "" {
		if err := checkCredentialsURI(full); err != nil {
			return nil, fmt.Errorf("read AWS_CONTAINER_CREDENTIALS_FULL_URI: %w", err)
		}
		return containerCredentials(full, getenv), nil
	}
	if id, secret := getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY"); id != "" && secret != "" {
		return credentials.NewStaticCredentialsProvider(id, secret, getenv("AWS_SESSION_TOKEN")), nil
	}
	return nil, errors.New("find credentials: none of AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_ACCESS_KEY_ID is set; does the task have a task role?")
}

func containerCredentials(uri string, getenv func(string) string) aws.CredentialsProvider {
	client := &http.Client{
		Timeout: maxCredentialsWait,
		// The URI is a secret and link-local: no proxy may see it.
		Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	return aws.NewCredentialsCache(endpointcreds.New(uri, func(o *endpointcreds.Options) {
		o.HTTPClient = client
		if file := getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
			o.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) { return readAuthToken(file) })
			return
		}
		o.AuthorizationToken = getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	}))
}

func readAuthToken(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read the authorization token of the credentials endpoint: %w", err)
	}
	if len(text) > maxAuthTokenFile || strings.ContainsAny(string(text), "\r\n") {
		return "", fmt.Errorf("read the authorization token of the credentials endpoint: %s does not hold a single-line token", file)
	}
	return string(text), nil
}

func checkCredentialsURI(uri string) error {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		return errors.New("not a URL")
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
	default:
		return fmt.Errorf("scheme %q", u.Scheme)
	}
	host := u.Hostname()
	if host == "localhost" {
		return nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || !addr.IsLoopback() && host != "169.254.170.2" && host != "169.254.170.23" && addr != netip.MustParseAddr("fd00:ec2::23") {
		return fmt.Errorf("host %s may not be asked over plain http", net.JoinHostPort(host, u.Port()))
	}
	return nil
}

// Retrieve gets credentials within the time that a task's endpoint may take.
func Retrieve(ctx context.Context, provider aws.CredentialsProvider) (aws.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*maxCredentialsWait)
	defer cancel()
	creds, err := provider.Retrieve(ctx)
	if err != nil {
		return creds, fmt.Errorf("get the task role's credentials: %w", err)
	}
	return creds, nil
}

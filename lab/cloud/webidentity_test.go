package cloud_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
	"github.com/isthmus-mesh/isthmus/test/clients"
)

// enableFederation lets an account have web identity tokens and returns its issuer.
func enableFederation(t *testing.T, cfg aws.Config) string {
	t.Helper()
	return *must(awsiam.NewFromConfig(cfg).EnableOutboundWebIdentityFederation(t.Context(), nil))(t).IssuerIdentifier
}

// ask asks for a token; change may be nil.
func askToken(t *testing.T, cfg aws.Config, change func(*sts.GetWebIdentityTokenInput)) (string, error) {
	t.Helper()
	in := &sts.GetWebIdentityTokenInput{Audience: []string{"isthmus-broker/cluster.local/x"}, SigningAlgorithm: aws.String("ES384"), DurationSeconds: aws.Int32(60)}
	if change != nil {
		change(in)
	}
	out, err := sts.NewFromConfig(cfg).GetWebIdentityToken(t.Context(), in)
	if err != nil {
		return "", err
	}
	return *out.WebIdentityToken, nil
}

func TestOutboundFederationIsSwitched(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	iam := l.iam()
	_, err := iam.GetOutboundWebIdentityFederationInfo(t.Context(), nil)
	wantCode(t, "info before it is enabled", err, "FeatureDisabled")
	_, err = askToken(t, l.admin(), nil)
	wantCode(t, "a token before it is enabled", err, "OutboundWebIdentityFederationDisabledException")
	issuer := enableFederation(t, l.admin())
	if err := webidentity.CheckIssuer(issuer); err != nil {
		t.Error(err)
	}
	_, err = iam.EnableOutboundWebIdentityFederation(t.Context(), nil)
	wantCode(t, "enabled again", err, "FeatureEnabled")
	if info := must(iam.GetOutboundWebIdentityFederationInfo(t.Context(), nil))(t); *info.IssuerIdentifier != issuer || !info.JwtVendingEnabled {
		t.Errorf("info = %s, %t, want %s", *info.IssuerIdentifier, info.JwtVendingEnabled, issuer)
	}
	must(iam.DisableOutboundWebIdentityFederation(t.Context(), nil))(t)
	_, err = askToken(t, l.admin(), nil)
	wantCode(t, "a token after it is disabled", err, "OutboundWebIdentityFederationDisabledException")
	if again := enableFederation(t, l.admin()); again != issuer {
		t.Errorf("enabled again the issuer is %s, want the same, %s", again, issuer)
	}
	other := enableFederation(t, l.config("AKIALABADMIN00000002", "secret-two", ""))
	if other == issuer {
		t.Error("two accounts have one issuer")
	}
	for host, status := range map[string]int{issuer: 200, other: 200, strings.Replace(issuer, "https://", "https://0", 1): 404} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, l.url+"/.well-known/jwks.json", nil)
		r.Host = strings.TrimPrefix(host, "https://")
		if resp, body := l.send(r); resp.StatusCode != status {
			t.Errorf("keys of %s: status %d, want %d: %s", host, resp.StatusCode, status, body)
		}
	}
}

// taskTokens is the statement that `isthmus ecs infra --web-identity` gives to a task role.
const taskTokens = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:GetWebIdentityToken","Resource":"*","Condition":{` +
	`"ForAllValues:StringLike":{"sts:IdentityTokenAudience":"isthmus-broker/cluster.local/*"},"Null":{"sts:IdentityTokenAudience":"false"},` +
	`"NumericLessThanEquals":{"sts:DurationSeconds":"60"},"StringEquals":{"sts:SigningAlgorithm":"ES384"}}}]}`

func TestWebIdentityTokenNeedsARight(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	enableFederation(t, l.admin())
	cfg, _, err := l.as(l.admin(), l.role("task", trust(rootTrust, "sts:AssumeRole")), func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(900) })
	if err != nil {
		t.Fatal(err)
	}
	_, err = askToken(t, cfg, nil)
	wantCode(t, "without a policy", err, "AccessDenied")
	l.inline("task", taskTokens)
	if _, err := askToken(t, cfg, nil); err != nil {
		t.Errorf("what the policy allows: %v", err)
	}
	for name, change := range map[string]func(*sts.GetWebIdentityTokenInput){
		"another audience":     func(in *sts.GetWebIdentityTokenInput) { in.Audience = []string{"https://api.example.com"} },
		"another audience too": func(in *sts.GetWebIdentityTokenInput) { in.Audience = append(in.Audience, "https://api.example.com") },
		"a longer life":        func(in *sts.GetWebIdentityTokenInput) { in.DurationSeconds = aws.Int32(61) },
		"the default life":     func(in *sts.GetWebIdentityTokenInput) { in.DurationSeconds = nil },
		"another algorithm":    func(in *sts.GetWebIdentityTokenInput) { in.SigningAlgorithm = aws.String("RS256") },
		"tags without the right": func(in *sts.GetWebIdentityTokenInput) {
			in.Tags = []ststypes.Tag{{Key: aws.String("a"), Value: aws.String("b")}}
		},
	} {
		_, err := askToken(t, cfg, change)
		wantCode(t, name, err, "AccessDenied")
	}
	for name, change := range map[string]func(*sts.GetWebIdentityTokenInput){
		"a short life":     func(in *sts.GetWebIdentityTokenInput) { in.DurationSeconds = aws.Int32(59) },
		"a long life":      func(in *sts.GetWebIdentityTokenInput) { in.DurationSeconds = aws.Int32(3601) },
		"a weak algorithm": func(in *sts.GetWebIdentityTokenInput) { in.SigningAlgorithm = aws.String("HS256") },
		"no audience":      func(in *sts.GetWebIdentityTokenInput) { in.Audience = []string{} },
		"many audiences":   func(in *sts.GetWebIdentityTokenInput) { in.Audience = strings.Split("a,b,c,d,e,f,g,h,i,j,k", ",") },
	} {
		_, err := askToken(t, l.admin(), change)
		wantCode(t, name, err, "ValidationError")
	}
	l.clock.advance(14*time.Minute + 30*time.Second)
	_, err = askToken(t, cfg, nil)
	wantCode(t, "beyond the session's end", err, "SessionDurationEscalationException")
}

// verifier reads the documents of issuers at the endpoint, as the controller's --web-identity-endpoint does.
func (l *lab) verifier(issuers map[string]string) *webidentity.Verifier {
	l.t.Helper()
	v, err := webidentity.NewVerifier(webidentity.Config{
		Audience: "cluster.local", Endpoint: l.url, Now: l.clock.now,
		Issuer: func(account string) (string, bool) { s, ok := issuers[account]; return s, ok },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return v
}

// TestWebIdentityTokensAreVerified is the product on both sides: its client asks the endpoint for a token as a task does,
// and its verifier reads the issuer's documents there.
func TestWebIdentityTokensAreVerified(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	second := l.config("AKIALABADMIN00000002", "secret-two", "")
	issuers := map[string]string{account: enableFederation(t, l.admin()), account2: enableFederation(t, second)}
	arn := l.role("task", trust(rootTrust, "sts:AssumeRole"))
	l.inline("task", taskTokens)
	cfg, _, err := l.as(l.admin(), arn)
	if err != nil {
		t.Fatal(err)
	}
	client, err := webidentity.NewClient(webidentity.ClientConfig{
		Credentials: func(ctx context.Context) (aws.Credentials, error) { return cfg.Credentials.Retrieve(ctx) },
		Region:      region, Audience: "cluster.local", TaskID: strings.Repeat("0", 32), Endpoint: l.url,
	})
	if err != nil {
		t.Fatal(err)
	}
	asking := must(client.Prove(t.Context()))(t)
	proof := must(webidentity.ParseProof(asking.Body))(t)
	v := l.verifier(issuers)
	who, err := v.Verify(t.Context(), proof.Token, proof.Key)
	if err != nil || who.RoleARN != arn || who.Account != account || who.Region != region {
		t.Fatalf("Verify() = %+v, %v, want %s", who, err, arn)
	}
	if _, err := l.verifier(map[string]string{account: issuers[account2]}).Verify(t.Context(), proof.Token, proof.Key); !errors.Is(err, webidentity.ErrNotEnabled) {
		t.Errorf("with the other account's issuer pinned: %v", err)
	}
	audience := func(in *sts.GetWebIdentityTokenInput) {
		in.Audience = []string{webidentity.Audience("cluster.local", proof.Key)}
	}
	text := must(askToken(t, cfg, audience))(t)
	l.inline("task", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:*","Resource":"*"}]}`)
	for name, tt := range map[string]struct {
		cfg    aws.Config
		change func(*sts.GetWebIdentityTokenInput)
		want   error
	}{
		"RS256": {cfg, func(in *sts.GetWebIdentityTokenInput) { in.SigningAlgorithm = aws.String("RS256") }, nil},
		"tags of another": {cfg, func(in *sts.GetWebIdentityTokenInput) {
			in.Tags = []ststypes.Tag{{Key: aws.String("sub"), Value: aws.String("arn:aws:iam::123456789012:role/admin")}}
		}, nil},
		"an administrator":       {l.admin(), nil, webidentity.ErrSubject},
		"two audiences":          {cfg, func(in *sts.GetWebIdentityTokenInput) { in.Audience = append(in.Audience, "https://api.example.com") }, webidentity.ErrMalformed},
		"a long life":            {cfg, func(in *sts.GetWebIdentityTokenInput) { in.DurationSeconds = aws.Int32(900) }, webidentity.ErrTime},
		"another account's user": {second, nil, webidentity.ErrSubject},
	} {
		got, err := askToken(t, tt.cfg, func(in *sts.GetWebIdentityTokenInput) {
			audience(in)
			if tt.change != nil {
				tt.change(in)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if who, err := v.Verify(t.Context(), got, proof.Key); !errors.Is(err, tt.want) || tt.want == nil && who.RoleARN != arn {
			t.Errorf("%s: Verify() = %+v, %v, want %v", name, who, err, tt.want)
		}
	}
	l.clock.advance(3 * time.Minute)
	if _, err := v.Verify(t.Context(), text, proof.Key); !errors.Is(err, webidentity.ErrTime) {
		t.Errorf("three minutes later: %v, want %v", err, webidentity.ErrTime)
	}
}

// TestOutboundFederationWithTheAWSCLI makes the calls of the configuration reference with the AWS CLI.
func TestOutboundFederationWithTheAWSCLI(t *testing.T) {
	t.Parallel()
	cli := clients.AWSCLI(t)
	l := newLab(t)
	var issuer string
	for _, c := range []struct {
		args, want string
		fail       bool
	}{
		{"iam get-outbound-web-identity-federation-info", "(FeatureDisabled)", true},
		{"iam enable-outbound-web-identity-federation --query IssuerIdentifier --output text", "https://", false},
		{"iam enable-outbound-web-identity-federation", "(FeatureEnabled)", true},
		{"iam get-outbound-web-identity-federation-info --query JwtVendingEnabled --output json", "true", false},
		{"sts get-web-identity-token --audience isthmus-broker/cluster.local/x --signing-algorithm RS256 --query WebIdentityToken --output text", "eyJ", false},
		{"sts get-web-identity-token --audience isthmus-broker/cluster.local/x --signing-algorithm HS256", "(ValidationError)", true},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := l.aws(ctx, cli, strings.Fields(c.args)...).CombinedOutput()
		cancel()
		got := strings.TrimSpace(string(out))
		if strings.Contains(got, "Invalid choice") || strings.Contains(got, "invalid choice") {
			t.Skipf("SKIPPED: this AWS CLI is older than the calls: %s", cli)
		}
		if (err != nil) != c.fail || !strings.Contains(got, c.want) {
			t.Errorf("aws %s = %v\n%s\nwant %q", c.args, err, got, c.want)
		}
		if strings.HasPrefix(c.want, "https://") {
			issuer = got
		}
	}
	if err := webidentity.CheckIssuer(issuer); err != nil {
		t.Error(err)
	}
}

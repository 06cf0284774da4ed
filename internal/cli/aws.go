package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// managedTag marks what the command line made, so that clean-up removes that and nothing else.
const managedTag = "isthmus.dev/managed-by"

// discoveryTag opts a cluster in to discovery.
const discoveryTag = "ecs.solo.io/discovery-enabled"

func madeBy(cfg config.Config) map[string]string {
	tags := map[string]string{managedTag: "isthmus"}
	if cfg.OwnerName != "" {
		tags["owner"] = cfg.OwnerName
	}
	return tags
}

// aws opens the AWS account of the configuration.
func (a *app) aws(ctx context.Context, cfg config.Config) (*awsadmin.Client, error) {
	s, err := awsapi.Open(ctx, awsapi.Config{Region: cfg.Region, Profile: cfg.Profile, RateShare: 1, SessionName: "isthmus"})
	if err != nil {
		return nil, diag.Wrap(diag.CloudUnreachable, err)
	}
	admin, err := awsadmin.New(ctx, s, awsapi.Target{Region: cfg.Region})
	if err != nil {
		return nil, diag.Wrap(diag.CloudUnreachable, err)
	}
	return admin, nil
}

// open reads the configuration of this invocation and opens its AWS account.
func (a *app) open(ctx context.Context) (config.Config, *awsadmin.Client, error) {
	cfg, err := a.load()
	if err != nil {
		return config.Config{}, nil, err
	}
	admin, err := a.aws(ctx, cfg)
	return cfg, admin, err
}

// account returns the account id: of the configuration, or of whoever AWS says we are.
func (a *app) account(ctx context.Context, cfg config.Config) (string, error) {
	if cfg.Account != "" {
		return cfg.Account, nil
	}
	admin, err := a.aws(ctx, cfg)
	if err != nil {
		return "", err
	}
	id, _, err := admin.Account(ctx)
	return id, awsError(err)
}

// awsError gives the errors that mean "no AWS here" their code and leaves the others as they are.
func awsError(err error) error {
	switch {
	case err == nil, diag.CodeOf(err) != "":
		return err
	case awsapi.IsEndpointDown(err):
		return diag.Wrap(diag.CloudUnreachable, err)
	case slices.Contains([]string{"InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken", "ExpiredTokenException", "RequestExpired",
		"SignatureDoesNotMatch", "InvalidSignatureException", "MissingAuthenticationToken", "AuthFailure"}, awsapi.Code(err)),
		// The SDK gives the lack of credentials no type: nothing provided them, or what should have done has failed.
		strings.Contains(err.Error(), "get credentials:") || strings.Contains(err.Error(), "get aws credentials"):
		return diag.Wrap(diag.CloudCredentials, err)
	case awsapi.IsAccessDenied(err):
		return diag.Wrap(diag.CloudDenied, err)
	}
	return err
}

// eksCluster reads the EKS cluster of the configuration, or returns an error that says where it was looked for.
func eksCluster(ctx context.Context, admin *awsadmin.Client, cfg config.Config) (awsadmin.EKSCluster, error) {
	if cfg.Home != nil {
		home, err := (&app{}).aws(ctx, cfg.OfHome())
		if err != nil {
			return awsadmin.EKSCluster{}, err
		}
		admin = home
	}
	eks, err := admin.EKSCluster(ctx, cfg.ClusterName)
	if awsapi.IsNotFound(err) {
		return eks, diag.Newf(diag.EKSClusterMissing, "account and region %s have no EKS cluster %q", admin.Region(), cfg.ClusterName)
	}
	return eks, awsError(err)
}

// partition is the AWS partition of a region.
func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

func roleARN(cfg config.Config, account, pathAndName string) string {
	return "arn:" + partition(cfg.Region) + ":iam::" + account + ":role/" + strings.TrimPrefix(pathAndName, "/")
}

func taskRoleARN(cfg config.Config, account string) string {
	return roleARN(cfg, account, cfg.TaskRole)
}

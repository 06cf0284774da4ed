package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/lab/cloud"
	"github.com/isthmus-mesh/isthmus/lab/cloud/eks"
	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// The AWS accounts of the lab, with the names of the guide.
const (
	Account = "123456789012"
	// ExternalAccount is the second account, that of the guide's scenario 3. It is empty when the lab starts.
	ExternalAccount = "210987654321"
	// ExternalProfile is the AWS profile of its administrator.
	ExternalProfile = "external"
	Region          = "us-east-2"
	ClusterName     = "demo"
	// Domain ends the host names of the account's services.
	Domain = "ecs.local"
	// AdminAccessKeyID and AdminSecretAccessKey are the keys of the account's administrator. They are worth nothing
	// outside the lab.
	AdminAccessKeyID     = "AKIALABADMIN00000001"
	AdminSecretAccessKey = "isthmus-lab-administrator"
	// ExternalAccessKeyID and ExternalSecretAccessKey are those of the second account's administrator.
	ExternalAccessKeyID     = "AKIALABADMIN00000002"
	ExternalSecretAccessKey = "isthmus-lab-external-administrator"

	// discoveryRole is the name of the role that the guide creates for reading ECS.
	discoveryRole = "istiod-local"
	// controllerRole is the name of the role that comes with the EKS cluster for the controller's pod.
	controllerRole = "istiod-eks-ecs-" + ClusterName
	// identityAudience is the audience of the tokens with which pods prove who they are to the Pod Identity agent.
	identityAudience = "pods.eks.amazonaws.com"
	// kubernetesVersion is what EKS says of the cluster.
	kubernetesVersion = "1.36"
)

// awsURL is the AWS endpoint inside the lab.
func awsURL() string { return "http://" + netip.AddrPortFrom(netns.Router, AWSPort).String() }

func roleARN(name string) string { return "arn:aws:iam::" + Account + ":role/" + name }

// startCloud starts the AWS endpoint, and makes of the account what `eksctl create cluster` leaves behind: the role of
// the controller's pod and its association.
func (d *Daemon) startCloud(ctx, stepCtx context.Context, vpc *netns.VPC, rt *runtime.Runtime) (*cloud.Cloud, error) {
	c, err := cloud.New(cloud.Config{
		AccountID: Account, Region: Region,
		Admin: cloud.Credentials{AccessKeyID: AdminAccessKeyID, SecretAccessKey: AdminSecretAccessKey},
		Accounts: []cloud.Account{{
			ID:    ExternalAccount,
			Admin: cloud.Credentials{AccessKeyID: ExternalAccessKeyID, SecretAccessKey: ExternalSecretAccessKey},
		}},
		Runtime: cloud.Containers(rt), VPC: vpc, Fabric: cloud.Network(vpc), Dir: filepath.Join(d.cfg.Dir.run(), "cloud"), EndpointURL: awsURL(),
		EKS: d.eksCluster, Log: d.cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	d.run(ctx, "ECS", c.Run)
	aws := newEndpoint(netip.AddrPortFrom(netns.Router, AWSPort), c, d.cfg.Log)
	first, err := aws.listen()
	if err != nil {
		return nil, fmt.Errorf("listen for the %s: %w", componentAWS, err)
	}
	d.run(ctx, componentAWS, func(ctx context.Context) error { return aws.run(ctx, first) })
	d.mu.Lock()
	d.cloud, d.endpoint = c, aws
	d.mu.Unlock()
	for _, endpoint := range []struct {
		name    string
		addr    netip.AddrPort
		handler http.Handler
	}{
		{"task metadata", netip.AddrPortFrom(netns.TaskMetadata, 80), c.TaskEndpoint()},
		{"Pod Identity agent", netip.AddrPortFrom(netns.PodIdentityAgent, 80), c.PodIdentityAgent()},
	} {
		l, err := net.Listen("tcp4", endpoint.addr.String())
		if err != nil {
			return nil, fmt.Errorf("listen for the %s: %w", endpoint.name, err)
		}
		d.run(ctx, endpoint.name, func(ctx context.Context) error { return serveHTTP(ctx, l, endpoint.handler, d.cfg.Log) })
	}
	return c, furnishAccount(stepCtx)
}

// serveHTTP serves until ctx ends. There is no write timeout, because exec sessions and credentials use one server.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// eksCluster describes the lab's Kubernetes as EKS does, with the address under which the host reaches it.
func (d *Daemon) eksCluster() eks.Cluster {
	c := eks.Cluster{Name: ClusterName, Version: kubernetesVersion, Endpoint: "https://" + d.cfg.Kube.Addr().String()}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.plane != nil {
		c.CertificateAuthority = string(d.plane.CA())
	}
	return c
}

// furnishAccount makes the role that comes with the EKS cluster and associates it with the controller, and the queue by which the
// controller hears of changes at once.
func furnishAccount(ctx context.Context) error {
	session, err := awsapi.Open(ctx, awsapi.Config{
		Region: Region, Endpoint: awsURL(), AccessKeyID: AdminAccessKeyID, SecretAccessKey: AdminSecretAccessKey, RateShare: 1,
	})
	if err != nil {
		return err
	}
	admin, err := awsadmin.New(ctx, session, awsapi.Target{Region: Region, Account: Account})
	if err != nil {
		return err
	}
	actions := []any{"sts:AssumeRole", "sts:TagSession"}
	policy := func(statement map[string]any) map[string]any {
		statement["Effect"], statement["Action"] = "Allow", actions
		return map[string]any{"Version": "2012-10-17", "Statement": []any{statement}}
	}
	_, _, err = admin.EnsureRole(ctx, awsadmin.Role{
		Path: "/", Name: controllerRole, Description: "isthmus-controller in EKS",
		Trust:  policy(map[string]any{"Principal": map[string]any{"Service": "pods.eks.amazonaws.com"}}),
		Inline: map[string]map[string]any{"AssumeIstiodLocal": policy(map[string]any{"Resource": roleARN(discoveryRole)})},
	}, false)
	if err != nil {
		return fmt.Errorf("furnish the AWS account: %w", err)
	}
	_, err = admin.EnsurePodIdentity(ctx, ClusterName, install.DefaultNamespace, install.Name, roleARN(controllerRole), false)
	if err != nil {
		return fmt.Errorf("furnish the AWS account: %w", err)
	}
	if _, err = admin.EnsureEvents(ctx, eventsOfGuide(), false); err != nil {
		return fmt.Errorf("furnish the AWS account: %w", err)
	}
	return nil
}

// eventsName is the name that `isthmus ecs infra --events` gives to the rule and the queue of the guide's clusters.
const eventsName = "ecs-" + ClusterName + "-events"

// guideClusters is how many ECS clusters of the first account the guide has.
const guideClusters = 2

// eventsOfGuide is the way of the events of the guide's clusters to the controller, as `isthmus ecs infra --events` makes it, but
// that the discovery role may read the queue however that role is made: by the guide's scripts, or without events.
func eventsOfGuide() awsadmin.Events {
	arn := func(service, rest string) string {
		return "arn:aws:" + service + ":" + Region + ":" + Account + ":" + rest
	}
	var clusters []string
	for i := range guideClusters {
		clusters = append(clusters, arn("ecs", fmt.Sprintf("cluster/ecs-%s-%d", ClusterName, i+1)))
	}
	e := awsadmin.EventsOf(eventsName, arn, clusters)
	e.Readers = []string{roleARN(discoveryRole)}
	return e
}

// eventQueueURL is the address of the queue as AWS forms it.
func eventQueueURL() string {
	return "https://sqs." + Region + ".amazonaws.com/" + Account + "/" + eventsName
}

// tokenReview asks Kubernetes whose token it is.
func tokenReview(client kubernetes.Interface) eks.TokenReview {
	return func(ctx context.Context, token string) (eks.Subject, error) {
		review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{identityAudience}}}
		review, err := client.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return eks.Subject{}, fmt.Errorf("review a token: %w", err)
		}
		return subjectOf(review.Status)
	}
}

// subjectOf reads the service account out of a review's answer.
func subjectOf(status authenticationv1.TokenReviewStatus) (eks.Subject, error) {
	if !status.Authenticated {
		return eks.Subject{}, fmt.Errorf("the token is not valid: %s", status.Error)
	}
	name, ok := strings.CutPrefix(status.User.Username, "system:serviceaccount:")
	namespace, account, ok2 := strings.Cut(name, ":")
	if !ok || !ok2 {
		return eks.Subject{}, fmt.Errorf("the token is of %q, which is no service account", status.User.Username)
	}
	extra := func(key string) string {
		if v := status.User.Extra[key]; len(v) == 1 {
			return v[0]
		}
		return ""
	}
	return eks.Subject{
		Namespace: namespace, ServiceAccount: account,
		PodName: extra("authentication.kubernetes.io/pod-name"), PodUID: extra("authentication.kubernetes.io/pod-uid"),
	}, nil
}

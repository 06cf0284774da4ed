// Package eks is the part of EKS the lab has: its one cluster, which is the lab's Kubernetes, and Pod Identity -
// associations of service accounts with roles, and the agent from which pods fetch the credentials.
package eks

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

const maxAssociations = 1000

// Cluster is what DescribeCluster tells of the lab's Kubernetes.
type Cluster struct {
	Name                 string // "" means the lab offers no EKS cluster
	Endpoint             string // URL of the API server
	CertificateAuthority string // PEM
	Version              string // "1.36"
	VPCID                string
	SubnetIDs            []string
	SecurityGroupID      string
}

// Subject is the service account a token belongs to.
type Subject struct {
	Namespace, ServiceAccount, PodName, PodUID string
}

// TokenReview says whose token this is; it fails for a token that is not valid for audience pods.eks.amazonaws.com.
type TokenReview func(ctx context.Context, token string) (Subject, error)

// Roles makes sessions of roles.
type Roles interface {
	AssumeForService(in iam.ServiceSession) (iam.Session, error)
}

// Config is what a Service needs.
type Config struct {
	AccountID string // required
	Region    string // required
	Roles     Roles  // required
	// Cluster is asked for at every call, because the lab learns some of it only when Kubernetes is up.
	Cluster func() Cluster // required
	// Review is needed by the agent only; without it the agent refuses everybody.
	Review TokenReview
	Now    func() time.Time // nil means time.Now
}

// Service is EKS. It is safe for concurrent use.
type Service struct {
	cfg Config
	now func() time.Time

	mu           sync.Mutex
	associations map[string]*association // by id; guarded by mu
	review       TokenReview             // guarded by mu
	created      time.Time
}

// association binds a service account to a role.
type association struct {
	id, namespace, serviceAccount, roleARN, targetRoleARN string
	created, modified                                     time.Time
	tags                                                  map[string]string
	noSessionTags                                         bool
}

// New returns a Service without associations.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.AccountID == "":
		return nil, errors.New("eks: Config.AccountID is required")
	case cfg.Region == "":
		return nil, errors.New("eks: Config.Region is required")
	case cfg.Roles == nil:
		return nil, errors.New("eks: Config.Roles is required")
	case cfg.Cluster == nil:
		return nil, errors.New("eks: Config.Cluster is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, now: cfg.Now, associations: map[string]*association{}, review: cfg.Review, created: cfg.Now()}, nil
}

// SetTokenReview gives the agent its TokenReview once Kubernetes is up.
func (s *Service) SetTokenReview(f TokenReview) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.review = f
}

// Association reports whether pods of the service account receive AWS credentials; the lab's node asks it before it
// starts a pod.
func (s *Service) Association(_ context.Context, namespace, serviceAccount string) bool {
	return s.find(namespace, serviceAccount) != nil
}

func (s *Service) find(namespace, serviceAccount string) *association {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.associations {
		if a.namespace == namespace && a.serviceAccount == serviceAccount {
			c := *a
			return &c
		}
	}
	return nil
}

func (s *Service) clusterARN(name string) string {
	return "arn:aws:eks:" + s.cfg.Region + ":" + s.cfg.AccountID + ":cluster/" + name
}

// API returns EKS for registration with the front.
func (s *Service) API() awsserver.Service {
	return awsserver.Service{Name: "eks", Protocol: awsserver.RESTJSON, Routes: []awsserver.Route{
		{Name: "ListClusters", Method: http.MethodGet, Pattern: "/clusters", Operation: s.listClusters},
		{Name: "DescribeCluster", Method: http.MethodGet, Pattern: "/clusters/{name}", Operation: s.describeCluster},
		{Name: "ListPodIdentityAssociations", Method: http.MethodGet, Pattern: "/clusters/{name}/pod-identity-associations", Operation: s.list},
		{Name: "CreatePodIdentityAssociation", Method: http.MethodPost, Pattern: "/clusters/{name}/pod-identity-associations", Operation: s.create},
		{Name: "DescribePodIdentityAssociation", Method: http.MethodGet, Pattern: "/clusters/{name}/pod-identity-associations/{id}", Operation: s.describe},
		{Name: "UpdatePodIdentityAssociation", Method: http.MethodPost, Pattern: "/clusters/{name}/pod-identity-associations/{id}", Operation: s.update},
		{Name: "DeletePodIdentityAssociation", Method: http.MethodDelete, Pattern: "/clusters/{name}/pod-identity-associations/{id}", Operation: s.delete},
	}}
}

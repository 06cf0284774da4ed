// Package cloud is the lab's AWS: one HTTP endpoint that speaks the protocols of ECS, STS, IAM, EC2, EKS, CloudWatch Logs,
// EventBridge and SQS, checks signatures and policies as AWS does, and runs ECS tasks for real on the lab's container
// runtime. This package only joins the services of its subfolders; each of them can be read alone.
//
// Where the lab differs from AWS on purpose:
//
//   - There is one machine. An EC2 instance is a network namespace with an address; one whose user data says
//     ECS_CLUSTER=NAME becomes a container instance of that cluster, whatever its image. It has room for any number of tasks.
//     Connections to host ports of a task in bridge mode are copied, TCP only, where Docker translates their addresses, and
//     such containers can reach the VPC directly. Platform versions are recorded and make no difference.
//   - VPCs are networks of their own, and packets cross only where a peering and the route tables of both sides let
//     them, but no two VPCs of the lab may overlap. Rules of security groups, internet gateways and NAT gateways are
//     recorded and do nothing to packets.
//   - Of a container definition, cpu, memory, user, ulimits, systemControls, restartPolicy, dockerLabels and linuxParameters
//     but for the capabilities are kept and shown but have no effect, and so has a task's proxyConfiguration. Secrets, environment
//     files and volumes other than empty ones make the task fail to start and say so.
//   - Health checks begin a tenth of a second after the start and repeat quickly until the first success, where ECS
//     waits a whole interval; failures count no sooner than ECS would count them.
//   - A service whose tasks fail backs off to one minute, not fifteen.
//   - A task's execution role needs no permissions, and ECS Exec does not ask for ssmmessages in the task role. The
//     trust policy of the task role is checked in full.
//   - Reads are consistent at once, and nothing is throttled, unless Faults are told otherwise.
//   - In containers AWS_ENDPOINT_URL names the endpoint, so that AWS clients in them need no change.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
	"github.com/isthmus-mesh/isthmus/lab/cloud/eks"
	"github.com/isthmus-mesh/isthmus/lab/cloud/events"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
	"github.com/isthmus-mesh/isthmus/lab/cloud/logs"
	"github.com/isthmus-mesh/isthmus/lab/cloud/sqs"
	"github.com/isthmus-mesh/isthmus/lab/cloud/stacks"
	"github.com/isthmus-mesh/isthmus/lab/cloud/sts"
)

// Credentials are a long-lived access key.
type Credentials struct {
	AccessKeyID, SecretAccessKey string
}

// Account is a further AWS account with its administrator. The access key of a call decides its account.
type Account struct {
	ID    string
	Admin Credentials
}

// Addresses hands out addresses of the lab's VPC; *netns.VPC does.
type Addresses interface {
	Allocate(subnet netip.Prefix) (netip.Addr, error)
	Release(addr netip.Addr)
}

// Config is what a Cloud needs.
type Config struct {
	AccountID string      // 12 digits; required
	Region    string      // where the VPC and the EKS cluster are; required
	Admin     Credentials // of AccountID; required
	Accounts  []Account   // further accounts
	Runtime   ecs.Runtime // what tasks run on, see Containers; required
	VPC       Addresses   // required
	// Fabric makes VPCs beyond the first real, see Network. Without it tasks cannot start in them.
	Fabric ec2.Fabric
	// Dir is a directory of the lab for volumes of tasks. Without it tasks with volumes fail to start.
	Dir string
	// EndpointURL is where tasks reach the endpoint; it becomes AWS_ENDPOINT_URL in their containers. May be empty.
	EndpointURL string
	// EKS describes the lab's Kubernetes; nil or an empty Name means there is no EKS cluster. The VPC parts are
	// filled in.
	EKS func() eks.Cluster
	// TokenReview serves the Pod Identity agent; it may be given later with SetTokenReview.
	TokenReview eks.TokenReview
	Now         func() time.Time // nil means time.Now
	Log         *slog.Logger     // required
}

// Cloud is the endpoint. It is an http.Handler.
type Cloud struct {
	front  *awsserver.Server
	faults *awsserver.Faults
	iam    *iam.Service
	sts    *sts.STS
	ecs    *ecs.Service
	eks    *eks.Service
}

// New puts the services together. Calls are answered at once; tasks run only while Run does.
func New(cfg Config) (*Cloud, error) {
	switch {
	case cfg.AccountID == "":
		return nil, errors.New("cloud: Config.AccountID is required")
	case cfg.Region == "":
		return nil, errors.New("cloud: Config.Region is required")
	case cfg.Admin.AccessKeyID == "" || cfg.Admin.SecretAccessKey == "":
		return nil, errors.New("cloud: Config.Admin is required")
	case cfg.Runtime == nil:
		return nil, errors.New("cloud: Config.Runtime is required")
	case cfg.VPC == nil:
		return nil, errors.New("cloud: Config.VPC is required")
	case cfg.Log == nil:
		return nil, errors.New("cloud: Config.Log is required")
	}
	if cfg.EKS == nil {
		cfg.EKS = func() eks.Cluster { return eks.Cluster{} }
	}
	c := &Cloud{}
	var err error
	if c.iam, err = newIAM(cfg); err != nil {
		return nil, err
	}
	return c, c.join(cfg)
}

func newIAM(cfg Config) (*iam.Service, error) {
	s, err := iam.New(iam.Config{Now: cfg.Now})
	if err != nil {
		return nil, err
	}
	for _, a := range append([]Account{{ID: cfg.AccountID, Admin: cfg.Admin}}, cfg.Accounts...) {
		if err := s.AddAccount(a.ID, a.Admin.AccessKeyID, a.Admin.SecretAccessKey); err != nil {
			return nil, fmt.Errorf("cloud: add account %s: %w", a.ID, err)
		}
	}
	return s, nil
}

// join makes the other services and the front.
func (c *Cloud) join(cfg Config) error {
	logSvc, err := logs.New(logs.Config{Now: cfg.Now})
	if err != nil {
		return err
	}
	queues, err := sqs.New(sqs.Config{Now: cfg.Now})
	if err != nil {
		return err
	}
	bus, err := events.New(events.Config{Queues: queues, Roles: c.iam, Now: cfg.Now, Log: cfg.Log})
	if err != nil {
		return err
	}
	ec2Svc, err := ec2.New(ec2.Config{AccountID: cfg.AccountID, Region: cfg.Region, Addresses: cfg.VPC, Fabric: cfg.Fabric, EKSCluster: cfg.EKS().Name})
	if err != nil {
		return err
	}
	cluster := func() eks.Cluster {
		k := cfg.EKS()
		k.VPCID, k.SecurityGroupID = ec2.DefaultVPCID, ec2Svc.EKSSecurityGroup()
		for _, sn := range ec2.DefaultSubnets(cfg.Region) {
			k.SubnetIDs = append(k.SubnetIDs, sn.ID)
		}
		return k
	}
	c.eks, err = eks.New(eks.Config{AccountID: cfg.AccountID, Region: cfg.Region, Roles: c.iam, Cluster: cluster, Review: cfg.TokenReview, Now: cfg.Now})
	if err != nil {
		return err
	}
	c.ecs, err = ecs.New(ecs.Config{Runtime: cfg.Runtime, Network: ec2Svc, Logs: logSvc, Roles: c.iam, Bus: ecsBus{bus}, Dir: cfg.Dir, EndpointURL: cfg.EndpointURL,
		Now: cfg.Now, Log: cfg.Log})
	if err != nil {
		return err
	}
	ec2Svc.SetMachines(machines{c.ecs})
	c.sts, err = sts.New(sts.Config{IAM: c.iam, Now: cfg.Now})
	if err != nil {
		return err
	}
	c.faults = awsserver.NewFaults(cfg.Now)
	c.front, err = awsserver.New(awsserver.Config{Authority: c.iam, Faults: c.faults, Now: cfg.Now, Log: cfg.Log,
		Services: append([]awsserver.Service{c.sts.API(), c.iam.API(), c.ecs.API(), ec2Svc.API(), c.eks.API(), logSvc.API(),
			queues.API(), bus.API()}, stacks.APIs()...)})
	return err
}

// machines is ECS as EC2 sees it: what runs instances.
type machines struct{ *ecs.Service }

// Boot starts an instance.
func (m machines) Boot(i ec2.Machine) error { return m.Service.Boot(ecs.Machine(i)) }

// ecsBus is EventBridge as ECS sees it.
type ecsBus struct{ *events.Service }

// Publish puts an event of ECS on the default bus.
func (b ecsBus) Publish(account, region, detailType string, resources []string, detail any) {
	b.Service.Publish(account, region, events.Event{Source: "aws.ecs", DetailType: detailType, Resources: resources, Detail: detail})
}

// Run runs services and tasks until ctx ends, then ends them all.
func (c *Cloud) Run(ctx context.Context) error { return c.ecs.Run(ctx) }

// ServeHTTP answers AWS calls, and what is not signed: the data channels of ECS Exec, which carry their own token, and
// the public documents of the issuers of web identity tokens, for requests whose Host is an issuer's.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, ecs.DataChannelPath) {
		c.ecs.ServeDataChannel(w, r)
		return
	}
	if sts.IsIssuer(r) {
		c.sts.ServeIssuer(w, r)
		return
	}
	c.front.ServeHTTP(w, r)
}

// Operations names all calls that are answered, as SERVICE.OPERATION.
func (c *Cloud) Operations() []string { return c.front.Operations() }

// Faults are the misbehaviours that can be asked of the endpoint.
func (c *Cloud) Faults() *awsserver.Faults { return c.faults }

// TaskEndpoint serves containers of tasks at 169.254.170.2:80: credentials of the task's role and metadata.
func (c *Cloud) TaskEndpoint() http.Handler { return c.ecs.MetadataHandler() }

// PodIdentityAgent serves pods at 169.254.170.23:80: credentials of the role associated with their service account.
func (c *Cloud) PodIdentityAgent() http.Handler { return c.eks.Agent() }

// SetTokenReview gives the Pod Identity agent its TokenReview once Kubernetes is up.
func (c *Cloud) SetTokenReview(f eks.TokenReview) { c.eks.SetTokenReview(f) }

// Association reports whether pods of the service account receive AWS credentials, for the lab's node.
func (c *Cloud) Association(ctx context.Context, namespace, serviceAccount string) bool {
	return c.eks.Association(ctx, namespace, serviceAccount)
}

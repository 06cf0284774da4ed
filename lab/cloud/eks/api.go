package eks

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type doc = map[string]any

func notFound(msg string) error {
	return &awsserver.Error{Code: "ResourceNotFoundException", Status: http.StatusNotFound, Message: msg}
}

// cluster finds the lab's cluster for a caller; other accounts and regions have none.
func (s *Service) cluster(r *awsserver.Request) (Cluster, error) {
	c := s.cfg.Cluster()
	name := r.Path["name"]
	if c.Name == "" || c.Name != name || r.Caller.AccountID != s.cfg.AccountID || r.Region != s.cfg.Region {
		return c, notFound("No cluster found for name: " + name + ".")
	}
	return c, nil
}

func (s *Service) listClusters(_ context.Context, r *awsserver.Request) (any, error) {
	if err := r.Authorize("eks:ListClusters", "*", nil); err != nil {
		return nil, err
	}
	names := []string{}
	after, _, err := paging(r)
	if err != nil {
		return nil, err
	}
	if c := s.cfg.Cluster(); c.Name > after && c.Name != "" && r.Caller.AccountID == s.cfg.AccountID && r.Region == s.cfg.Region {
		names = append(names, c.Name)
	}
	return doc{"clusters": names}, nil
}

func (s *Service) describeCluster(_ context.Context, r *awsserver.Request) (any, error) {
	if err := r.Authorize("eks:DescribeCluster", s.clusterARN(r.Path["name"]), nil); err != nil {
		return nil, err
	}
	c, err := s.cluster(r)
	if err != nil {
		return nil, err
	}
	return doc{"cluster": doc{"name": c.Name, "arn": s.clusterARN(c.Name), "status": "ACTIVE", "endpoint": c.Endpoint, "version": c.Version,
		"createdAt": awsserver.Epoch{Time: s.created}, "platformVersion": "eks.1", "tags": doc{},
		"certificateAuthority":    doc{"data": base64.StdEncoding.EncodeToString([]byte(c.CertificateAuthority))},
		"roleArn":                 "arn:aws:iam::" + s.cfg.AccountID + ":role/eks-cluster-role",
		"kubernetesNetworkConfig": doc{"serviceIpv4Cidr": "10.96.0.0/16", "ipFamily": "ipv4"},
		"resourcesVpcConfig": doc{"vpcId": c.VPCID, "subnetIds": c.SubnetIDs, "securityGroupIds": []string{},
			"clusterSecurityGroupId": c.SecurityGroupID, "endpointPublicAccess": true, "endpointPrivateAccess": true, "publicAccessCidrs": []string{"0.0.0.0/0"}},
	}}, nil
}

// paging reads nextToken and maxResults.
func paging(r *awsserver.Request) (after string, limit int, err error) {
	limit, err = strconv.Atoi(cmp.Or(r.Query.Get("maxResults"), "100"))
	if err != nil || limit < 1 || limit > 100 {
		return "", 0, awsserver.Errorf("InvalidParameterException", "maxResults must be between 1 and 100")
	}
	after, ok := r.ReadPageToken(r.Query.Get("nextToken"))
	if !ok {
		return "", 0, awsserver.Errorf("InvalidParameterException", "nextToken is invalid.")
	}
	return after, limit, nil
}

type associationInput struct {
	Namespace          string            `json:"namespace"`
	ServiceAccount     string            `json:"serviceAccount"`
	RoleARN            string            `json:"roleArn"`
	TargetRoleARN      string            `json:"targetRoleArn"`
	DisableSessionTags *bool             `json:"disableSessionTags"`
	Tags               map[string]string `json:"tags"`
}

// begin is what all calls on associations have in common.
func (s *Service) begin(r *awsserver.Request) (associationInput, error) {
	var in associationInput
	resource := s.clusterARN(r.Path["name"])
	if id := r.Path["id"]; id != "" {
		resource = s.associationARN(r.Path["name"], id)
	}
	if err := r.Authorize("eks:"+r.Operation, resource, nil); err != nil {
		return in, err
	}
	if _, err := s.cluster(r); err != nil {
		return in, err
	}
	if r.HTTP.Method != http.MethodPost {
		return in, nil
	}
	if err := r.Decode(&in); err != nil {
		return in, err
	}
	if in.TargetRoleARN != "" {
		return in, &awsserver.Error{Code: "InvalidParameterException", Message: "targetRoleArn is not supported by the lab"}
	}
	if in.RoleARN != "" {
		return in, r.Authorize("iam:PassRole", in.RoleARN, map[string][]string{"iam:PassedToService": {"pods.eks.amazonaws.com"}})
	}
	return in, nil
}

func (s *Service) associationARN(cluster, id string) string {
	return "arn:aws:eks:" + s.cfg.Region + ":" + s.cfg.AccountID + ":podidentityassociation/" + cluster + "/" + id
}

func (s *Service) summary(a *association) doc {
	name := s.cfg.Cluster().Name
	return doc{"clusterName": name, "namespace": a.namespace, "serviceAccount": a.serviceAccount, "associationArn": s.associationARN(name, a.id), "associationId": a.id}
}

func (s *Service) full(a *association) doc {
	d := s.summary(a)
	d["roleArn"], d["tags"], d["disableSessionTags"] = a.roleARN, a.tags, a.noSessionTags
	d["createdAt"], d["modifiedAt"] = awsserver.Epoch{Time: a.created}, awsserver.Epoch{Time: a.modified}
	return doc{"association": d}
}

func (s *Service) create(_ context.Context, r *awsserver.Request) (any, error) {
	in, err := s.begin(r)
	if err != nil {
		return nil, err
	}
	if in.Namespace == "" || in.ServiceAccount == "" || in.RoleARN == "" {
		return nil, awsserver.Errorf("InvalidParameterException", "namespace, serviceAccount and roleArn are required")
	}
	if s.find(in.Namespace, in.ServiceAccount) != nil {
		return nil, &awsserver.Error{Code: "ResourceInUseException", Status: http.StatusConflict,
			Message: "Association already exists: namespace " + in.Namespace + ", service account " + in.ServiceAccount}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.associations) >= maxAssociations {
		return nil, awsserver.Errorf("ResourceLimitExceededException", "The limit of pod identity associations is reached.")
	}
	b := make([]byte, 9)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	a := &association{id: "a-" + hex.EncodeToString(b)[:17], namespace: in.Namespace, serviceAccount: in.ServiceAccount, roleARN: in.RoleARN,
		created: s.now(), modified: s.now(), tags: in.Tags, noSessionTags: in.DisableSessionTags != nil && *in.DisableSessionTags}
	if a.tags == nil {
		a.tags = map[string]string{}
	}
	s.associations[a.id] = a
	return s.full(a), nil
}

// withAssociation finds the association a call names and runs f on it under the mutex.
func (s *Service) withAssociation(r *awsserver.Request, f func(*association, associationInput)) (any, error) {
	in, err := s.begin(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.associations[r.Path["id"]]
	if a == nil {
		return nil, notFound("The associationId " + r.Path["id"] + " does not exist.")
	}
	f(a, in)
	return s.full(a), nil
}

func (s *Service) describe(_ context.Context, r *awsserver.Request) (any, error) {
	return s.withAssociation(r, func(*association, associationInput) {})
}

func (s *Service) update(_ context.Context, r *awsserver.Request) (any, error) {
	return s.withAssociation(r, func(a *association, in associationInput) {
		a.roleARN = cmp.Or(in.RoleARN, a.roleARN)
		if in.DisableSessionTags != nil {
			a.noSessionTags = *in.DisableSessionTags
		}
		a.modified = s.now()
	})
}

func (s *Service) delete(_ context.Context, r *awsserver.Request) (any, error) {
	return s.withAssociation(r, func(a *association, _ associationInput) { delete(s.associations, a.id) })
}

func (s *Service) list(_ context.Context, r *awsserver.Request) (any, error) {
	if _, err := s.begin(r); err != nil {
		return nil, err
	}
	after, limit, err := paging(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []string
	for id, a := range s.associations {
		ns, sa := r.Query.Get("namespace"), r.Query.Get("serviceAccount")
		if (ns == "" || ns == a.namespace) && (sa == "" || sa == a.serviceAccount) && id > after {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	out, items := doc{}, []doc{}
	if len(ids) > limit {
		ids = ids[:limit]
		out["nextToken"] = r.PageToken(ids[limit-1])
	}
	for _, id := range ids {
		items = append(items, s.summary(s.associations[id]))
	}
	out["associations"] = items
	return out, nil
}

package ecs

import (
	"cmp"
	"context"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

var (
	errNoCluster = awsserver.Errorf(errClusterNotFound, "Cluster not found.") //nolint:gochecknoglobals // a constant error
)

// clusterLocked finds an ACTIVE or INACTIVE cluster by name or ARN; "" means "default".
func (p *place) clusterLocked(ref string) *cluster {
	if ref == "" {
		ref = "default"
	}
	if strings.HasPrefix(ref, "arn:") && !strings.HasPrefix(ref, p.arn("cluster", "")) {
		return nil
	}
	return p.clusters[last(ref)]
}

// activeCluster finds a cluster that can be used.
func (p *place) activeCluster(ref string) (*cluster, error) {
	c := p.clusterLocked(ref)
	if c == nil || c.status != statusActive {
		return nil, errNoCluster
	}
	return c, nil
}

// clusterARN is the ARN a call about a cluster is authorised on, whether the cluster exists or not.
func clusterARN(r *awsserver.Request, ref string) string {
	if strings.HasPrefix(ref, "arn:") {
		return ref
	}
	if ref == "" {
		ref = "default"
	}
	return "arn:aws:ecs:" + r.Region + ":" + r.Caller.AccountID + ":cluster/" + ref
}

// withPlace locks the service and finds the caller's state. The caller unlocks.
func (s *Service) withPlace(r *awsserver.Request) (*place, func()) {
	s.mu.Lock()
	return s.placeLocked(r.Caller.AccountID, r.Region), s.mu.Unlock
}

func (s *Service) createCluster(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		ClusterName string `json:"clusterName"`
		Tags        []tag  `json:"tags"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	raw, err := decodeDoc(r)
	if err != nil {
		return nil, err
	}
	if in.ClusterName == "" {
		in.ClusterName = "default"
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`).MatchString(in.ClusterName) {
		return nil, invalid("Identifier was not valid: a cluster name has up to 255 letters, numbers, underscores, and hyphens.")
	}
	tags, err := tagMap(in.Tags)
	if err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:CreateCluster", clusterARN(r, in.ClusterName), requestTags(tags)); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	if c := p.clusters[in.ClusterName]; c != nil && c.status == statusActive {
		return doc{"cluster": c.describe(allIncluded())}, nil // AWS answers with the cluster that is there
	}
	if len(p.clusters) >= maxClusters {
		return nil, awsserver.Errorf("LimitExceededException", "The limit for the resource was exceeded.")
	}
	c := &cluster{place: p, name: in.ClusterName, arn: p.arn("cluster", in.ClusterName), status: statusActive, changedAt: s.now(),
		tags: tags, extra: without(raw, "clusterName", "tags"), services: map[string]*service{}, tasks: map[string]*task{},
		instances: map[string]*instance{}}
	p.clusters[c.name] = c
	return doc{"cluster": c.describe(allIncluded())}, nil
}

// requestTags are the condition keys that tags of a request give.
func requestTags(m map[string]string) map[string][]string {
	out := map[string][]string{}
	for k, v := range m {
		out["aws:RequestTag/"+k] = []string{v}
		out["aws:TagKeys"] = append(out["aws:TagKeys"], k)
	}
	return out
}

func allIncluded() []string { return []string{"TAGS", "SETTINGS", "CONFIGURATIONS", "STATISTICS"} }

// describe writes the cluster; tags and settings only when they are asked for.
func (c *cluster) describe(include []string) doc {
	running, pending, active := 0, 0, 0
	for _, t := range c.tasks {
		switch t.last {
		case stateRunning:
			running++
		case stateProvisioning, statePending, stateActivating:
			pending++
		}
	}
	for _, sv := range c.services {
		if sv.status == statusActive {
			active++
		}
	}
	d := doc{"clusterArn": c.arn, "clusterName": c.name, "status": c.status, "registeredContainerInstancesCount": len(c.instances),
		"runningTasksCount": running, "pendingTasksCount": pending, "activeServicesCount": active,
		"statistics": []any{}, "tags": []tag{}, "settings": []any{}, "capacityProviders": []any{}, "defaultCapacityProviderStrategy": []any{}}
	for k, v := range c.extra {
		switch {
		case k == "settings" && !slices.Contains(include, "SETTINGS"), k == "configuration" && !slices.Contains(include, "CONFIGURATIONS"):
		default:
			d[k] = v
		}
	}
	if slices.Contains(include, "TAGS") {
		d["tags"] = sortedTags(c.tags)
	}
	return d
}

func (s *Service) describeClusters(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Clusters []string `json:"clusters"`
		Include  []string `json:"include"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if len(in.Clusters) > 100 {
		return nil, invalid("Clusters cannot have more than 100 elements.")
	}
	if len(in.Clusters) == 0 {
		in.Clusters = []string{"default"}
	}
	for _, ref := range in.Clusters {
		if err := r.Authorize("ecs:DescribeClusters", clusterARN(r, ref), s.tagsOfCluster(r, ref)); err != nil {
			return nil, err
		}
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	found, failures := []doc{}, []doc{}
	for _, ref := range in.Clusters {
		if c := p.clusterLocked(ref); c != nil {
			found = append(found, c.describe(in.Include))
		} else {
			failures = append(failures, missing(clusterARN(r, ref)))
		}
	}
	return doc{"clusters": found, "failures": failures}, nil
}

func missing(arn string) doc { return doc{"arn": arn, "reason": "MISSING"} }

// tagsOfCluster are the condition keys of a cluster's tags, for policies that narrow by tag.
func (s *Service) tagsOfCluster(r *awsserver.Request, ref string) map[string][]string {
	p, unlock := s.withPlace(r)
	defer unlock()
	if c := p.clusterLocked(ref); c != nil {
		return resourceTags(c.tags, nil)
	}
	return nil
}

func (s *Service) listClusters(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		MaxResults int    `json:"maxResults"`
		NextToken  string `json:"nextToken"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListClusters", "*", nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	var arns []string
	for _, c := range p.clusters {
		if c.status == statusActive {
			arns = append(arns, c.arn)
		}
	}
	slices.Sort(arns)
	return listAnswer(r, "clusterArns", arns, in.NextToken, in.MaxResults)
}

// listAnswer pages a sorted list of ARNs into the answer of a List call.
func listAnswer(r *awsserver.Request, member string, arns []string, token string, limit int) (any, error) {
	items, next, err := page(r, arns, token, limit, 100, cmp.Compare[string])
	if err != nil {
		return nil, err
	}
	return prune(doc{member: items, "nextToken": next}), nil
}

func (s *Service) deleteCluster(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster string `json:"cluster"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:DeleteCluster", clusterARN(r, in.Cluster), s.tagsOfCluster(r, in.Cluster)); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c := p.clusterLocked(in.Cluster)
	if c == nil {
		return nil, errNoCluster
	}
	for _, sv := range c.services {
		if sv.status != statusInactive {
			return nil, awsserver.Errorf("ClusterContainsServicesException", "The Cluster cannot be deleted while Services are active.")
		}
	}
	for _, t := range c.tasks {
		if t.last != stateStopped {
			return nil, awsserver.Errorf("ClusterContainsTasksException", "The Cluster cannot be deleted while Tasks are active.")
		}
	}
	if len(c.instances) > 0 {
		return nil, awsserver.Errorf("ClusterContainsContainerInstancesException", "The Cluster cannot be deleted while Container Instances are active or draining.")
	}
	c.status, c.changedAt = statusInactive, s.now()
	return doc{"cluster": c.describe(allIncluded())}, nil
}

// tagsLocked finds the tags of any resource by its ARN.
func (p *place) tagsLocked(arn string) (map[string]string, error) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[2] != "ecs" {
		return nil, invalid("The specified ARN %s is invalid.", arn)
	}
	kind, rest, _ := strings.Cut(parts[5], "/")
	path := strings.Split(rest, "/")
	notFound := awsserver.Errorf(errInvalid, "The specified %s was not found.", kind)
	if parts[3] != p.region || parts[4] != p.account {
		return nil, notFound
	}
	if kind == "task-definition" {
		if td := p.taskDef(arn); td != nil {
			return td.tags, nil
		}
		return nil, notFound
	}
	c := p.clusters[path[0]]
	if c == nil || c.status != statusActive {
		return nil, errNoCluster
	}
	switch {
	case kind == "cluster":
		return c.tags, nil
	case kind == "service" && len(path) == 2 && c.services[path[1]] != nil:
		return c.services[path[1]].tags, nil
	case kind == "task" && len(path) == 2 && c.tasks[path[1]] != nil:
		return c.tasks[path[1]].tags, nil
	}
	return nil, notFound
}

type tagInput struct {
	ResourceARN string   `json:"resourceArn"`
	Tags        []tag    `json:"tags"`
	TagKeys     []string `json:"tagKeys"`
}

func (s *Service) tagResource(_ context.Context, r *awsserver.Request) (any, error) {
	return s.changeTags(r, func(tags map[string]string, in tagInput) error {
		add, err := tagMap(in.Tags)
		if err != nil {
			return err
		}
		maps.Copy(tags, add)
		return nil
	})
}

func (s *Service) untagResource(_ context.Context, r *awsserver.Request) (any, error) {
	return s.changeTags(r, func(tags map[string]string, in tagInput) error {
		for _, k := range in.TagKeys {
			delete(tags, k)
		}
		return nil
	})
}

func (s *Service) changeTags(r *awsserver.Request, change func(map[string]string, tagInput) error) (any, error) {
	var in tagInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:"+r.Operation, in.ResourceARN, nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	tags, err := p.tagsLocked(in.ResourceARN)
	if err != nil {
		return nil, err
	}
	if err := change(tags, in); err != nil {
		return nil, err
	}
	return doc{}, nil
}

func (s *Service) listTagsForResource(_ context.Context, r *awsserver.Request) (any, error) {
	var in tagInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListTagsForResource", in.ResourceARN, nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	tags, err := p.tagsLocked(in.ResourceARN)
	if err != nil {
		return nil, err
	}
	return doc{"tags": sortedTags(tags)}, nil
}

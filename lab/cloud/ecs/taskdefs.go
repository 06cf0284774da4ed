package ecs

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// family is the revisions of a task definition; index i is revision i+1.
type family struct {
	name      string
	revisions []*taskDef
}

// taskDef is one revision. It never changes but for its status and tags, so runners read it without the mutex.
type taskDef struct {
	Family               string          `json:"family"`
	TaskRoleARN          string          `json:"taskRoleArn"`
	ExecutionRoleARN     string          `json:"executionRoleArn"`
	NetworkMode          string          `json:"networkMode"`
	CPU                  string          `json:"cpu"`
	Memory               string          `json:"memory"`
	Compatibilities      []string        `json:"requiresCompatibilities"`
	ContainerDefinitions []*containerDef `json:"containerDefinitions"`
	Volumes              []volume        `json:"volumes"`

	raw            doc // the whole definition as given, with AWS's defaults filled in
	arn            string
	revision       int
	status         string
	tags           map[string]string
	registeredAt   time.Time
	deregisteredAt time.Time
	registeredBy   string
}

// containerDef is the part of a container definition the lab obeys; the rest is kept in the raw definition.
type containerDef struct {
	Name             string        `json:"name"`
	Image            string        `json:"image"`
	Essential        *bool         `json:"essential"`
	EntryPoint       []string      `json:"entryPoint"`
	Command          []string      `json:"command"`
	Environment      []keyPair     `json:"environment"`
	EnvironmentFiles []any         `json:"environmentFiles"`
	Secrets          []any         `json:"secrets"`
	DependsOn        []dependency  `json:"dependsOn"`
	HealthCheck      *healthCheck  `json:"healthCheck"`
	StartTimeout     *int          `json:"startTimeout"`
	StopTimeout      *int          `json:"stopTimeout"`
	WorkingDirectory string        `json:"workingDirectory"`
	ReadOnlyRoot     bool          `json:"readonlyRootFilesystem"`
	PseudoTerminal   bool          `json:"pseudoTerminal"`
	LogConfiguration *logConfig    `json:"logConfiguration"`
	MountPoints      []mountPoint  `json:"mountPoints"`
	PortMappings     []portMapping `json:"portMappings"`
	Privileged       bool          `json:"privileged"`
	Linux            *struct {
		Capabilities struct {
			Add  []string `json:"add"`
			Drop []string `json:"drop"`
		} `json:"capabilities"`
	} `json:"linuxParameters"`
	CPU    int  `json:"cpu"`
	Memory *int `json:"memory"`
}

type dependency struct {
	ContainerName string `json:"containerName"`
	Condition     string `json:"condition"`
}

type healthCheck struct {
	Command     []string `json:"command"`
	Interval    int      `json:"interval"`
	Timeout     int      `json:"timeout"`
	Retries     int      `json:"retries"`
	StartPeriod int      `json:"startPeriod"`
}

type logConfig struct {
	LogDriver string            `json:"logDriver"`
	Options   map[string]string `json:"options"`
}

type portMapping struct {
	ContainerPort int    `json:"containerPort"`
	HostPort      int    `json:"hostPort"`
	Protocol      string `json:"protocol"`
}

type mountPoint struct {
	SourceVolume  string `json:"sourceVolume"`
	ContainerPath string `json:"containerPath"`
	ReadOnly      bool   `json:"readOnly"`
}

type volume struct {
	Name string `json:"name"`
	Host *struct {
		SourcePath string `json:"sourcePath"`
	} `json:"host"`
	EFS    any `json:"efsVolumeConfiguration"`
	Docker any `json:"dockerVolumeConfiguration"`
	FSX    any `json:"fsxWindowsFileServerVolumeConfiguration"`
}

func (c *containerDef) isEssential() bool { return c.Essential == nil || *c.Essential }

// taskDef finds a revision by "family", "family:revision" or ARN; the bare family means its latest ACTIVE revision.
func (p *place) taskDef(ref string) *taskDef {
	if strings.HasPrefix(ref, "arn:") {
		prefix := p.arn("task-definition", "")
		if !strings.HasPrefix(ref, prefix) {
			return nil
		}
		ref = strings.TrimPrefix(ref, prefix)
	}
	name, rev, exact := strings.Cut(ref, ":")
	f := p.families[name]
	if f == nil {
		return nil
	}
	if exact {
		n, err := strconv.Atoi(rev)
		if err != nil || n < 1 || n > len(f.revisions) {
			return nil
		}
		return f.revisions[n-1]
	}
	return f.latest()
}

func (f *family) latest() *taskDef {
	for _, td := range slices.Backward(f.revisions) {
		if td.status == statusActive {
			return td
		}
	}
	return nil
}

func (s *Service) registerTaskDefinition(_ context.Context, r *awsserver.Request) (any, error) {
	raw, err := decodeDoc(r)
	if err != nil {
		return nil, err
	}
	td := &taskDef{}
	if err := r.Decode(td); err != nil {
		return nil, err
	}
	var withTags struct {
		Tags []tag `json:"tags"`
	}
	if err := r.Decode(&withTags); err != nil {
		return nil, err
	}
	if td.tags, err = tagMap(withTags.Tags); err != nil {
		return nil, err
	}
	if err := td.check(len(r.Body)); err != nil {
		return nil, err
	}
	resource := "arn:aws:ecs:" + r.Region + ":" + r.Caller.AccountID + ":task-definition/" + td.Family + ":*"
	if err := r.Authorize("ecs:RegisterTaskDefinition", resource, requestTags(td.tags)); err != nil {
		return nil, err
	}
	if len(td.tags) > 0 {
		if err := r.Authorize("ecs:TagResource", resource, requestTags(td.tags)); err != nil {
			return nil, err
		}
	}
	if err := passRoles(r, td.TaskRoleARN, td.ExecutionRoleARN); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	f := p.families[td.Family]
	if f == nil {
		f = &family{name: td.Family}
		p.families[td.Family] = f
	}
	if len(f.revisions) >= maxRevisions {
		return nil, awsserver.Errorf(errClient, "The family %s has too many revisions.", td.Family)
	}
	td.revision = len(f.revisions) + 1
	td.arn = p.arn("task-definition", fmt.Sprintf("%s:%d", td.Family, td.revision))
	td.status, td.registeredAt, td.registeredBy = statusActive, s.now(), r.Caller.ARN
	td.raw = td.withDefaults(without(raw, "tags"))
	f.revisions = append(f.revisions, td)
	return doc{"taskDefinition": td.describe(), "tags": sortedTags(td.tags)}, nil
}

// passRoles checks that the caller may hand the roles to ECS tasks.
func passRoles(r *awsserver.Request, arns ...string) error {
	for _, arn := range arns {
		if arn == "" {
			continue
		}
		if err := r.Authorize("iam:PassRole", arn, map[string][]string{"iam:PassedToService": {"ecs-tasks.amazonaws.com"}}); err != nil {
			return err
		}
	}
	return nil
}

// withDefaults fills in what AWS adds to a definition when it is registered.
func (td *taskDef) withDefaults(raw doc) doc {
	setDefault(raw, "volumes", []any{})
	setDefault(raw, "placementConstraints", []any{})
	list, _ := raw["containerDefinitions"].([]any)
	for _, item := range list {
		c, ok := item.(doc)
		if !ok {
			continue
		}
		setDefault(c, "cpu", 0)
		setDefault(c, "essential", true)
		for _, name := range []string{"portMappings", "environment", "mountPoints", "volumesFrom", "systemControls"} {
			setDefault(c, name, []any{})
		}
		ports, _ := c["portMappings"].([]any)
		for _, port := range ports {
			if pm, ok := port.(doc); ok {
				setDefault(pm, "protocol", "tcp")
				if td.NetworkMode == "awsvpc" && pm["containerPort"] != nil {
					setDefault(pm, "hostPort", pm["containerPort"])
				}
			}
		}
		if hc, ok := c["healthCheck"].(doc); ok {
			setDefault(hc, "interval", defaultInterval)
			setDefault(hc, "timeout", defaultTimeout)
			setDefault(hc, "retries", defaultRetries)
		}
	}
	return raw
}

func setDefault(d doc, name string, value any) {
	if d[name] == nil {
		d[name] = value
	}
}

func (td *taskDef) describe() doc {
	d := without(td.raw)
	d["taskDefinitionArn"], d["revision"], d["status"] = td.arn, td.revision, td.status
	d["registeredAt"], d["registeredBy"] = epoch(td.registeredAt), td.registeredBy
	d["deregisteredAt"] = epoch(td.deregisteredAt)
	d["requiresAttributes"] = []any{}
	d["compatibilities"] = []string{"EC2", "FARGATE"}
	if td.NetworkMode == modeAWSVPC && td.refuseFargate() != nil {
		d["compatibilities"] = []string{"EC2"}
	}
	if td.NetworkMode != modeAWSVPC {
		d["compatibilities"] = []string{"EXTERNAL", "EC2"}
	}
	return prune(d)
}

func (s *Service) describeTaskDefinition(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		TaskDefinition string   `json:"taskDefinition"`
		Include        []string `json:"include"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:DescribeTaskDefinition", "*", nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	td := p.taskDef(in.TaskDefinition)
	if td == nil {
		return nil, awsserver.Errorf(errClient, "Unable to describe task definition.")
	}
	out := doc{"taskDefinition": td.describe(), "tags": []tag{}}
	if slices.Contains(in.Include, "TAGS") {
		out["tags"] = sortedTags(td.tags)
	}
	return out, nil
}

func (s *Service) deregisterTaskDefinition(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		TaskDefinition string `json:"taskDefinition"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:DeregisterTaskDefinition", "*", nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	if !strings.Contains(last(in.TaskDefinition), ":") {
		return nil, invalid("The specified task definition is invalid: a revision is required.")
	}
	td := p.taskDef(in.TaskDefinition)
	if td == nil {
		return nil, awsserver.Errorf(errClient, "The specified task definition does not exist. Specify a valid account, family, revision and try again.")
	}
	if td.status == statusActive {
		td.status, td.deregisteredAt = statusInactive, s.now()
	}
	return doc{"taskDefinition": td.describe()}, nil
}

type listDefinitionsInput struct {
	FamilyPrefix string `json:"familyPrefix"`
	Status       string `json:"status"`
	Sort         string `json:"sort"`
	MaxResults   int    `json:"maxResults"`
	NextToken    string `json:"nextToken"`
}

func (s *Service) listTaskDefinitions(_ context.Context, r *awsserver.Request) (any, error) {
	var in listDefinitionsInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListTaskDefinitions", "*", nil); err != nil {
		return nil, err
	}
	if in.Status == "" {
		in.Status = statusActive
	}
	if !slices.Contains([]string{statusActive, statusInactive, "DELETE_IN_PROGRESS"}, in.Status) {
		return nil, invalid("Invalid status %s", in.Status)
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	var arns []string
	for _, f := range p.families {
		// The prefix is, by the API's own definition, the full family name.
		if in.FamilyPrefix != "" && f.name != in.FamilyPrefix {
			continue
		}
		for _, td := range f.revisions {
			if td.status == in.Status {
				arns = append(arns, td.arn)
			}
		}
	}
	order := compareDefinitions
	if in.Sort == "DESC" {
		order = func(a, b string) int { return compareDefinitions(b, a) }
	}
	slices.SortFunc(arns, order)
	items, next, err := page(r, arns, in.NextToken, in.MaxResults, 100, order)
	if err != nil {
		return nil, err
	}
	return prune(doc{"taskDefinitionArns": items, "nextToken": next}), nil
}

// compareDefinitions orders by family, then by revision as a number.
func compareDefinitions(a, b string) int {
	fa, ra, _ := strings.Cut(last(a), ":")
	fb, rb, _ := strings.Cut(last(b), ":")
	if c := strings.Compare(fa, fb); c != 0 {
		return c
	}
	na, _ := strconv.Atoi(ra)
	nb, _ := strconv.Atoi(rb)
	return na - nb
}

func (s *Service) listTaskDefinitionFamilies(_ context.Context, r *awsserver.Request) (any, error) {
	var in listDefinitionsInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListTaskDefinitionFamilies", "*", nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	var names []string
	for _, f := range p.families {
		isActive := f.latest() != nil
		wanted := in.Status == "" || in.Status == "ALL" || in.Status == statusActive && isActive || in.Status == statusInactive && !isActive
		if wanted && strings.HasPrefix(f.name, in.FamilyPrefix) {
			names = append(names, f.name)
		}
	}
	slices.Sort(names)
	return listAnswer(r, "families", names, in.NextToken, in.MaxResults)
}

package inventory

import (
	"fmt"
	"regexp"
	"strings"
)

// ARN is a parsed Amazon resource name. It is strict about the six parts and nothing else.
type ARN struct {
	Partition string // aws, aws-cn, aws-us-gov, ...
	Service   string
	Region    string
	Account   string
	Resource  string // for example task/CLUSTER/ID
}

// ParseARN splits an ARN of any partition.
func ParseARN(s string) (ARN, error) {
	p := strings.SplitN(s, ":", 6)
	if len(p) != 6 || p[0] != "arn" || p[1] == "" || p[2] == "" || p[5] == "" {
		return ARN{}, fmt.Errorf("invalid arn %q: want arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE", s)
	}
	return ARN{Partition: p[1], Service: p[2], Region: p[3], Account: p[4], Resource: p[5]}, nil
}

// String returns the ARN in its usual form.
func (a ARN) String() string {
	return strings.Join([]string{"arn", a.Partition, a.Service, a.Region, a.Account, a.Resource}, ":")
}

// LastPart returns what follows the last slash of an ARN or a path; the whole string if there is none.
func LastPart(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }

// ClusterARNOf returns the ARN of the cluster of a task or service, from its ARN in ECS's long format, or "".
func ClusterARNOf(arn string) string {
	name := ClusterOf(arn)
	if name == "" {
		return ""
	}
	a, _ := ParseARN(arn) // ClusterOf has parsed it
	a.Resource = "cluster/" + name
	return a.String()
}

// ClusterOf returns the cluster's name (not its ARN) from the ARN of a task, service or cluster in ECS's long format, or "".
func ClusterOf(arn string) string {
	a, err := ParseARN(arn)
	if err != nil {
		return ""
	}
	p := strings.Split(a.Resource, "/")
	if len(p) == 2 && p[0] == "cluster" || len(p) == 3 {
		return p[1]
	}
	return ""
}

// TaskARN returns the ARN (long format) of the task with the given id in a cluster, or "" if the cluster's ARN is none.
func TaskARN(clusterARN, id string) string {
	a, err := ParseARN(clusterARN)
	if err != nil {
		return ""
	}
	a.Resource = "task/" + LastPart(a.Resource) + "/" + id
	return a.String()
}

// SameRole reports whether two IAM role ARNs name the same role. A role's path is not part of its identity (role names
// are unique in an account) and is missing from the ARN that STS returns, so only the account and the last part count.
func SameRole(a, b string) bool {
	x, err := ParseARN(a)
	if err != nil {
		return false
	}
	y, err := ParseARN(b)
	if err != nil {
		return false
	}
	xn, xok := roleName(x)
	yn, yok := roleName(y)
	return xok && yok && x.Partition == y.Partition && x.Account == y.Account && xn == yn
}

func roleName(a ARN) (string, bool) {
	rest, ok := strings.CutPrefix(a.Resource, "role/")
	if !ok || a.Service != "iam" {
		return "", false
	}
	name := LastPart(rest)
	return name, name != ""
}

// taskID matches 32 hexadecimal digits, and the older form with dashes.
var taskID = regexp.MustCompile(`^[0-9a-f]{32}$|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// IsTaskID reports whether a text has the form of a task's id, which is also the name of the session that ECS gives to the
// task's role.
func IsTaskID(s string) bool { return taskID.MatchString(s) }

package inventory

import (
	"net/netip"
	"testing"
)

// Trap 17: partitions other than aws.
func TestTrap17Partitions(t *testing.T) {
	for _, s := range []string{
		"arn:aws:ecs:us-east-2:123456789012:task/demo/0123456789abcdef0123456789abcdef",
		"arn:aws-cn:ecs:cn-north-1:123456789012:task/demo/0123456789abcdef0123456789abcdef",
		"arn:aws-us-gov:ecs:us-gov-west-1:123456789012:task/demo/0123456789abcdef0123456789abcdef",
	} {
		a, err := ParseARN(s)
		if err != nil || a.String() != s {
			t.Errorf("ParseARN(%q) = %v, %v", s, a, err)
		}
		if got := ClusterOf(s); got != "demo" {
			t.Errorf("ClusterOf(%q) = %q", s, got)
		}
		cluster := ARN{a.Partition, "ecs", a.Region, a.Account, "cluster/demo"}.String()
		if got := ClusterARNOf(s); got != cluster {
			t.Errorf("ClusterARNOf(%q) = %q, want %q", s, got, cluster)
		}
		if got := TaskARN(cluster, "0123456789abcdef0123456789abcdef"); got != s {
			t.Errorf("TaskARN(%q) = %q, want %q", cluster, got, s)
		}
	}
	for _, s := range []string{"", "arn:aws", "arn::ecs:r:a:x", "urn:aws:ecs:r:a:x", "arn:aws:ecs:r:a:"} {
		if _, err := ParseARN(s); err == nil {
			t.Errorf("ParseARN(%q) gave no error", s)
		}
	}
}

// Trap 8: STS loses the role's path, so roles are the same by account and last part.
func TestTrap8SameRole(t *testing.T) {
	const full = "arn:aws:iam::123456789012:role/ecs/ambient/eks-ecs-task-role"
	tests := []struct {
		other string
		want  bool
	}{
		{full, true},
		{"arn:aws:iam::123456789012:role/eks-ecs-task-role", true},
		{"arn:aws:iam::123456789012:role/ecs/ambient/other", false},
		{"arn:aws:iam::999999999999:role/ecs/ambient/eks-ecs-task-role", false},
		{"arn:aws-cn:iam::123456789012:role/eks-ecs-task-role", false},
		{"arn:aws:iam::123456789012:user/eks-ecs-task-role", false},
		{"arn:aws:iam::123456789012:role/", false},
		{"eks-ecs-task-role", false},
		{"", false},
	}
	for _, tt := range tests {
		if got := SameRole(full, tt.other); got != tt.want {
			t.Errorf("SameRole(%q) = %v, want %v", tt.other, got, tt.want)
		}
	}
}

func TestAddressesPreferInterfacesOfContainers(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("2600::9")
	task := &Task{
		Attachments: []Attachment{{Type: "eni", Details: map[string]string{"privateIPv4Address": "10.0.0.1"}}},
		Containers:  []Container{{Addrs: []netip.Addr{v6, v4}}, {Addrs: []netip.Addr{v4}}},
	}
	got := task.Addresses()
	if len(got) != 2 || got[0] != v4 || got[1] != v6 {
		t.Errorf("Addresses() = %v, want IPv4 first, each once", got)
	}
}

func TestTagPrecedence(t *testing.T) {
	v := TaskView{Task: &Task{}, Service: &Service{}, Definition: &TaskDefinition{Tags: Tags{"k": "definition"}}}
	if s, from, _ := v.Tag("k"); s != "definition" || from != "task definition" {
		t.Errorf("Tag = %q from %q", s, from)
	}
	v.Service.Tags = Tags{"k": "service"}
	if s, _, _ := v.Tag("k"); s != "service" {
		t.Errorf("Tag = %q, want service", s)
	}
	v.Task.Tags = Tags{"k": "task"}
	if s, _, _ := v.Tag("k"); s != "task" {
		t.Errorf("Tag = %q, want task", s)
	}
	if _, _, ok := v.Tag("other"); ok {
		t.Error("Tag of an absent key is there")
	}
}

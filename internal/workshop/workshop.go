// Package workshop is the guide's scenario 2 as data: its ECS services and their task definitions, the five paths that
// traffic may take, and the six authorization exercises with what each path must do. Nothing here does any I/O.
package workshop

import "fmt"

// LogGroup is the log group of the guide's tasks.
const LogGroup = "/ecs/ecs-demo"

// Service is one ECS service of the guide.
type Service struct {
	Name      string // the ECS service
	Family    string // family of its task definition
	Container string // its application container
	Image     string
	Port      int
	Command   []string // nil means the image's
	Env       [][2]string
}

// Services returns the guide's two services of each cluster.
func Services() []Service {
	return []Service{
		{Name: "shell-task", Family: "shell-task-definition", Container: "shell", Image: "curlimages/curl", Port: 80, Command: []string{"sleep", "3600"},
			Env: [][2]string{{"ALL_PROXY", "socks5h://127.0.0.1:15080"}}},
		{Name: "echo-service", Family: "echo-service-definition", Container: "echo-service", Image: "ealen/echo-server", Port: 8080,
			Env: [][2]string{{"PORT", "8080"}}},
	}
}

// TaskDefinition is s's task definition as RegisterTaskDefinition takes it.
func (s Service) TaskDefinition(roleARN, region string) map[string]any {
	env := make([]any, 0, len(s.Env))
	for _, e := range s.Env {
		env = append(env, map[string]any{"name": e[0], "value": e[1]})
	}
	c := map[string]any{
		"name": s.Container, "image": s.Image, "essential": true, "environment": env,
		"portMappings": []any{map[string]any{"containerPort": float64(s.Port), "hostPort": float64(s.Port), "protocol": "tcp", "name": "http", "appProtocol": "http"}},
		"logConfiguration": map[string]any{"logDriver": "awslogs", "options": map[string]any{
			"awslogs-group": LogGroup, "awslogs-region": region, "awslogs-stream-prefix": s.Name, "awslogs-create-group": "true"}},
	}
	if s.Command != nil {
		cmd := make([]any, 0, len(s.Command))
		for _, a := range s.Command {
			cmd = append(cmd, a)
		}
		c["command"] = cmd
	}
	return map[string]any{
		"family": s.Family, "networkMode": "awsvpc", "requiresCompatibilities": []any{"FARGATE"}, "cpu": "256", "memory": "512",
		"taskRoleArn": roleARN, "executionRoleArn": roleARN, "containerDefinitions": []any{c},
	}
}

// Path is one way from a caller to an echo service.
type Path struct {
	Title string
	From  string // "" means the pod eks-shell, otherwise the ECS cluster of the shell-task that calls
	To    string // the ECS cluster of the echo-service
}

// Names of a scenario: the two ECS clusters (which are namespaces too) and the domain of their services.
type Names struct {
	Cluster1, Cluster2, Domain string
}

// Host is the mesh name of the echo service of a cluster.
func (n Names) Host(cluster string) string {
	return fmt.Sprintf("echo-service.%s.%s:8080", cluster, n.Domain)
}

// Paths returns the guide's five paths in the order in which it tests them.
func (n Names) Paths() []Path {
	return []Path{
		{Title: "EKS -> Cluster 1 echo-service", To: n.Cluster1},
		{Title: "EKS -> Cluster 2 echo-service", To: n.Cluster2},
		{Title: "Cluster 1 -> Cluster 2 echo-service", From: n.Cluster1, To: n.Cluster2},
		{Title: "Cluster 2 -> Cluster 1 echo-service", From: n.Cluster2, To: n.Cluster1},
		{Title: "Cluster 1 internal (shell -> echo)", From: n.Cluster1, To: n.Cluster1},
	}
}

// Policy is one AuthorizationPolicy of the guide, in namespace Cluster1.
type Policy struct {
	Name   string
	Action string   // "" leaves the specification empty: deny everything
	From   []string // source namespaces
	Port   string   // "" means any
}

// Exercise is one of the guide's six: the policies that stand and which of the five paths are open.
type Exercise struct {
	Number   int
	Title    string
	Effect   string
	Policies []Policy
	Open     [5]bool // in the order of Paths
}

// Exercises returns the guide's exercises 6.1 to 6.6. The policies of each are the whole set that stands.
func (n Names) Exercises() []Exercise {
	denyAll := Policy{Name: "deny-all"}
	allow := func(name, ns string) Policy {
		return Policy{Name: name, Action: "ALLOW", From: []string{ns}, Port: "8080"}
	}
	eks, c2, internal := allow("allow-eks-to-echo", "default"), allow("allow-cluster-2-to-echo", n.Cluster2), allow("allow-internal", n.Cluster1)
	return []Exercise{
		{1, "Baseline (No Policies)", "All connections work without policies.", nil, [5]bool{true, true, true, true, true}},
		{2, "Deny-All Policy", "All inbound traffic to Cluster 1 is blocked. Cluster 2 remains accessible.",
			[]Policy{denyAll}, [5]bool{false, true, true, false, false}},
		{3, "Allow EKS to Cluster 1", "EKS can reach Cluster 1, but Cluster 2 and internal traffic are still blocked.",
			[]Policy{denyAll, eks}, [5]bool{true, true, true, false, false}},
		{4, "Allow Cluster 2 to Cluster 1", "Both EKS and Cluster 2 can reach Cluster 1. Internal traffic is still blocked.",
			[]Policy{denyAll, eks, c2}, [5]bool{true, true, true, true, false}},
		{5, "Allow Internal Communication", "All traffic paths are now allowed through the combination of ALLOW policies.",
			[]Policy{denyAll, eks, c2, internal}, [5]bool{true, true, true, true, true}},
		{6, "Explicit Deny", "Cluster 2 is explicitly blocked by the DENY rule, which is evaluated before any ALLOW.",
			[]Policy{denyAll, eks, {Name: "deny-cluster-2", Action: "DENY", From: []string{n.Cluster2}}}, [5]bool{true, true, true, false, false}},
	}
}

// Object is p as an AuthorizationPolicy in a namespace.
func (p Policy) Object(namespace string) map[string]any {
	spec := map[string]any{}
	if p.Action != "" {
		from := make([]any, 0, len(p.From))
		for _, ns := range p.From {
			from = append(from, ns)
		}
		rule := map[string]any{"from": []any{map[string]any{"source": map[string]any{"namespaces": from}}}}
		if p.Port != "" {
			rule["to"] = []any{map[string]any{"operation": map[string]any{"ports": []any{p.Port}}}}
		}
		spec["action"], spec["rules"] = p.Action, []any{rule}
	}
	return map[string]any{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": p.Name, "namespace": namespace}, "spec": spec,
	}
}

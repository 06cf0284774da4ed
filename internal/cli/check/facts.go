package check

import (
	"errors"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// Facts is everything the checks look at. An Err in a part means that the part could not be read.
type Facts struct {
	Now   time.Time
	Names Names
	AWS   AWS
	Kube  Kube
	Istio Istio
	// Controller is isthmus-controller and the east-west gateway.
	Controller Controller
	Clusters   []Cluster
	// ECSErr is why the ECS clusters could not be read.
	ECSErr error
}

// Names are what the configuration calls things.
type Names struct {
	Account        string // "" if the configuration names none
	Profile        string
	Region         string
	EKSCluster     string
	Network        string
	Gateway        string // namespace/name
	ServiceAccount string
	ControllerSA   string // namespace/name
}

// AWS is the account.
type AWS struct {
	Err     error
	Account string
	ARN     string
	EKSErr  error
	EKS     string // status of the EKS cluster
	// InfraErr is why the infrastructure could not be compared; Infra are the changes that `isthmus ecs infra` would make.
	InfraErr error
	Infra    []string
	// Rights are policies, beyond what the mesh needs, of roles that others made.
	Rights []string
	// Group is the tasks' security group, and Open what it admits beside the mesh.
	Group   string
	OpenErr error
	Open    []string
}

// Kube is the Kubernetes API.
type Kube struct {
	Err     error
	Server  string
	Missing []string // kinds that it does not serve
}

// Pods counts the pods of one part.
type Pods struct {
	Err          error
	Ready, Total int
}

// Istio is the mesh's control plane and node proxies.
type Istio struct {
	Istiod, Ztunnel Pods
	NetworkErr      error
	Network         string // label of istio-system
	RootErr         error
	RootNotAfter    time.Time
}

// Controller is isthmus-controller with what it says of itself.
type Controller struct {
	Pods       Pods
	StatusErr  error
	Status     *Status // nil if it has written none
	GatewayErr error
	Gateway    string // address of the east-west gateway
}

// Status is what the controller writes to its status ConfigMap, as far as it is judged.
type Status struct {
	Accounts []Account `json:"accounts"`
	Problems []Problem `json:"problems"`
	Held     []struct {
		Object string `json:"object"`
		Reason string `json:"reason"`
	} `json:"held"`
	Updated time.Time `json:"updated"`
}

// Account is one account and region as the controller's last sweep left it.
type Account struct {
	Account           string    `json:"account"`
	Region            string    `json:"region"`
	Complete          bool      `json:"complete"`
	LastCompleteSweep time.Time `json:"lastCompleteSweep"`
	Services          int       `json:"services"`
	Tasks             int       `json:"tasks"`
	Clusters          []string  `json:"clusters"`
	Code              diag.Code `json:"code"`
	Error             string    `json:"error"`
	Fix               string    `json:"fix"`
}

// Problem is something that discovery asks a person to put right.
type Problem struct {
	Object string    `json:"object"`
	Code   diag.Code `json:"code"`
	Cause  string    `json:"cause"`
	Fix    string    `json:"fix"`
}

// Cluster is one ECS cluster with its namespace.
type Cluster struct {
	Name   string `json:"name"`
	Status string `json:"status"` // "" if there is none
	ARN    string `json:"-"`
	Tagged bool   `json:"discovered"`
	// NamespaceErr is why the namespace could not be read.
	NamespaceErr error     `json:"-"`
	Namespace    bool      `json:"-"`
	Ambient      bool      `json:"-"`
	Services     []Service `json:"services"`
}

// Service is one ECS service.
type Service struct {
	Cluster    string `json:"cluster"`
	Name       string `json:"name"`
	Desired    int    `json:"desired"`
	Running    int    `json:"running"`
	Pending    int    `json:"pending"`
	Rollout    string `json:"rollout,omitempty"` // reason of a deployment that is under way
	Definition string `json:"definition"`
	Enrolled   bool   `json:"enrolled"`
	Role       string `json:"role,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	Account    string `json:"serviceAccount,omitempty"`
	// AccountErr is why a task may not become its service account.
	AccountErr error `json:"-"`
	// DriftErr is why drift could not be told; Drift is what add-service would change.
	DriftErr error    `json:"-"`
	Drift    []string `json:"drift,omitempty"`
	// Add is the add-service command that makes the service as it should be, with the choices that were made for it.
	Add   string `json:"-"`
	Tasks []Task `json:"tasks"`
}

// Task is one ECS task.
type Task struct {
	ID      string `json:"id"`
	Status  string `json:"status"`
	Address string `json:"address,omitempty"`
	// Proxy is the health of the proxy's container, "" without one.
	Proxy string `json:"proxy,omitempty"`
	// Protocol is how the mesh reaches the task, as a node's ztunnel says: HBONE, TCP, or "" if it does not know it.
	Protocol string `json:"protocol,omitempty"`
}

func coded(err error) (*diag.Error, bool) {
	var e *diag.Error
	ok := errors.As(err, &e)
	return e, ok
}

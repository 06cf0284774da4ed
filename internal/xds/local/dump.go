package local

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// MaxDumpBytes limits the size of a dump; a mesh of 100,000 workloads takes some 60 MB.
const MaxDumpBytes = 256 << 20

// ParseDump reads the mesh in a config_dump, of this program's proxies or of Istio's. Unknown members are ignored; what
// cannot be understood is an error, since it could be a policy.
func ParseDump(r io.Reader) (mesh.Update, error) {
	var raw struct {
		Workloads, Services, Policies json.RawMessage
	}
	if err := json.NewDecoder(io.LimitReader(r, MaxDumpBytes)).Decode(&raw); err != nil {
		return mesh.Update{}, fmt.Errorf("read config dump: %w", err)
	}
	workloads, err := list[dumpWorkload]("workloads", raw.Workloads)
	if err != nil {
		return mesh.Update{}, err
	}
	services, err := list[dumpService]("services", raw.Services)
	if err != nil {
		return mesh.Update{}, err
	}
	var file localFile
	if file.Policies, err = list[localPolicy]("policies", raw.Policies); err != nil {
		return mesh.Update{}, err
	}
	// Services name their endpoints and the endpoints' own ports.
	parts := map[string]map[string]map[uint16]uint16{} // by workload and service
	for _, s := range services {
		for _, e := range s.Endpoints {
			if parts[e.WorkloadUID] == nil {
				parts[e.WorkloadUID] = map[string]map[uint16]uint16{}
			}
			parts[e.WorkloadUID][s.Namespace+"/"+s.Hostname] = e.Port
		}
		file.Services = append(file.Services, s.localService)
	}
	for _, w := range workloads {
		w.localWorkload.Services = parts[w.UID]
		file.Workloads = append(file.Workloads, w.localWorkload)
	}
	u, err := file.mesh()
	if err != nil {
		return mesh.Update{}, fmt.Errorf("read config dump: %w", err)
	}
	return u, nil
}

type dumpWorkload struct {
	localWorkload
	Services json.RawMessage `json:"services"` // names only
}

type dumpService struct {
	localService
	Endpoints map[string]struct {
		WorkloadUID string            `json:"workloadUid"`
		Port        map[uint16]uint16 `json:"port"`
	} `json:"endpoints"`
}

// list reads a member that is a list, or an object whose values are the elements.
func list[T any](member string, text json.RawMessage) ([]T, error) {
	if len(text) == 0 || string(text) == "null" {
		return nil, nil
	}
	var l []T
	err := json.Unmarshal(text, &l)
	if err == nil {
		return l, nil
	}
	if text[0] != '{' {
		return nil, fmt.Errorf("read config dump: %s: %w", member, err)
	}
	var m map[string]T
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("read config dump: %s: %w", member, err)
	}
	for _, v := range m {
		l = append(l, v)
	}
	return l, nil
}

package ztunnel

import (
	"fmt"
	"net/url"

	"github.com/isthmus-mesh/isthmus/internal/proxy/why"
)

// why answers the admin port's question whether a connection would be let pass.
func (a *app) why(v url.Values) (any, error) {
	q := why.Query{Network: a.cfg.Network, Domain: a.cfg.ClusterDomain, AllowMissing: a.cfg.AllowMissingPolicies}
	parameters := map[string]*string{"source": &q.Source, "sourceAddress": &q.SourceAddr, "destination": &q.Destination}
	for name, values := range v {
		to := parameters[name]
		switch {
		case to == nil:
			return nil, &why.Error{Text: fmt.Sprintf("unknown parameter %q", name)}
		case len(values) != 1:
			return nil, &why.Error{Text: fmt.Sprintf("%s is given %d times", name, len(values))}
		}
		*to = values[0]
	}
	answer, err := why.Explain(a.store.Snapshot(), q)
	if err != nil {
		return nil, err
	}
	return answer, nil
}

package ecs

import (
	"maps"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

func sameCluster(a, b *inventory.Cluster) bool {
	return a.ARN == b.ARN && a.Name == b.Name && a.Status == b.Status && maps.Equal(a.Tags, b.Tags)
}

// sameContent reports whether two views hold the same, counters aside. Equal things share their pointer, because a
// reading that brings nothing new keeps the old value.
func sameContent(a, b *inventory.ClusterView) bool {
	return a.Complete == b.Complete && sameCluster(a.Cluster, b.Cluster) &&
		maps.Equal(a.Tasks, b.Tasks) && maps.Equal(a.Services, b.Services) && maps.Equal(a.Members, b.Members)
}

// hostAddr returns the first of the strings that is an address.
func hostAddr(candidates ...string) netip.Addr {
	for _, s := range candidates {
		if a, err := netip.ParseAddr(s); err == nil {
			return a
		}
	}
	return netip.Addr{}
}

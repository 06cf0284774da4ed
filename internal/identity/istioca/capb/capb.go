// Package capb is Istio's certificate service (ca.proto). The code is generated; see
// internal/xds/generate.go.
package capb

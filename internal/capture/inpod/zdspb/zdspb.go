// Package zdspb is the protocol between istio-cni and a node's ztunnel (zds.proto). The code is generated; see
// internal/xds/generate.go.
package zdspb

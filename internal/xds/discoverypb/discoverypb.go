// Package discoverypb is the part of Envoy's discovery service that a ztunnel speaks. The code is generated; see
// internal/xds/generate.go.
package discoverypb

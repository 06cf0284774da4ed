// Package securitypb is Istio's authorization API (authorization.proto): how istiod describes policies to a ztunnel. The code is generated; see
// internal/xds/generate.go.
package securitypb

// Package workloadpb is Istio's workload API (workload.proto): how istiod describes workloads and services to a ztunnel. The code is generated; see
// internal/xds/generate.go.
package workloadpb

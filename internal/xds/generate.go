package xds

// The protobuf code is generated with protoc 3.21 or newer, protoc-gen-go v1.36 and protoc-gen-go-grpc v1.6. The
// one imported message that protoc does not bring along, google.rpc.Status, is described in proto/google/rpc.
//go:generate sh -c "cd .. && protoc -I . -I xds/proto --go_out=. --go_opt=module=github.com/isthmus-mesh/isthmus/internal --go-grpc_out=. --go-grpc_opt=module=github.com/isthmus-mesh/isthmus/internal xds/workloadpb/workload.proto xds/securitypb/authorization.proto xds/discoverypb/discovery.proto identity/istioca/capb/ca.proto capture/inpod/zdspb/zds.proto"

// Package netns is the lab's network: one bridge that plays the VPC, and one network namespace with its own address
// for every pod and task.
//
// Everything is made inside the network namespace of the calling process, which the lab has created for itself; the
// package never touches another one and works without privileges on the host, in a user namespace. A sandbox has a
// single /32 address and reaches everything, its neighbours included, through the router 10.0.0.1. That is how EKS
// wires pods, and it means that every packet is routed by the lab's root namespace, where the service network can
// rewrite it in both directions.
package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Bridge is the name of the bridge that plays the VPC.
const Bridge = "vpc0"

// mtu is that of an elastic network interface inside a VPC.
const mtu = 9001

// The addresses of the lab. They are the same in every lab, because every lab has a network namespace of its own.
var (
	// VPCNetwork is the address range of the VPC.
	VPCNetwork = netip.MustParsePrefix("10.0.0.0/16")
	// Router is the lab's root namespace as the sandboxes see it: API server, node agent and AWS endpoint.
	Router = netip.MustParseAddr("10.0.0.1")
	// Resolver answers DNS for pods and tasks.
	Resolver = netip.MustParseAddr("10.0.0.2")
	// TaskMetadata serves task credentials and task metadata.
	TaskMetadata = netip.MustParseAddr("169.254.170.2")
	// PodIdentityAgent serves EKS Pod Identity credentials.
	PodIdentityAgent = netip.MustParseAddr("169.254.170.23")
	// Pods is the subnet of the pods.
	Pods = netip.MustParsePrefix("10.0.64.0/18")
	// SubnetA is the subnet of the tasks in us-east-2a.
	SubnetA = netip.MustParsePrefix("10.0.128.0/20")
	// SubnetB is the subnet of the tasks in us-east-2b.
	SubnetB = netip.MustParsePrefix("10.0.144.0/20")
	// LoadBalancers is the range of the addresses of Services of type LoadBalancer.
	LoadBalancers = netip.MustParsePrefix("10.0.200.0/24")
	// Services is the range of the cluster addresses of Services.
	Services = netip.MustParsePrefix("10.96.0.0/16")
)

// MAC returns the hardware address of the interface that carries addr. It follows from the address, so that a
// neighbour entry never goes stale when an address is used again.
func MAC(addr netip.Addr) net.HardwareAddr {
	a := addr.As4()
	return net.HardwareAddr{0x02, 0x00, a[0], a[1], a[2], a[3]}
}

// Do runs f on an operating system thread that is in the network namespace ns, and returns what f returns. f must not
// start goroutines that depend on the namespace. Sockets that f opens stay in ns for as long as they live.
func Do(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the current network namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	result := f()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked and dies with this goroutine: better than a stray thread in the wrong namespace.
		return fmt.Errorf("return from network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	return result
}

// newNamespace makes an empty network namespace and returns a descriptor that keeps it alive.
func newNamespace() (*os.File, error) {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("open the current network namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	ns, openErr := os.Open("/proc/thread-self/ns/net")
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("return from new network namespace: %w", err)
	}
	runtime.UnlockOSThread()
	if openErr != nil {
		return nil, fmt.Errorf("open the new network namespace: %w", openErr)
	}
	return ns, nil
}

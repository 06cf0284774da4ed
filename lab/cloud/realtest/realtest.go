// Package realtest tests the lab's AWS endpoint with tasks that really run: processes in network namespaces of a VPC
// made for the test. It has no code of its own; it is apart from package cloud because its tests need namespaces,
// while those of package cloud need nothing.
package realtest

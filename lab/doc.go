// Package lab is the root of the lab module: a real control plane, real tasks and real packets on one machine.
package lab

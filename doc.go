// Package isthmus is the root of the module; the programs are in cmd and the packages in internal.
package isthmus

// Command gen writes the reference page of error codes to the file named by its argument.
package main

import (
	"fmt"
	"os"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], diag.Markdown(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

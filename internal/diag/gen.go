package diag

//go:generate go run ./gen ../../docs/reference/errors.md

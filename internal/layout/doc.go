// Package layout holds the test of the import rules: which package may know which.
// It has no code of its own.
package layout

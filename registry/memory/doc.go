// Package memory is the registry's store within one process: the default for one
// machine, for the demo, where several daemons in one process share one [Store],
// and for tests.
//
// It keeps registry.Backend's contract, fencing and trimming included, and
// refuses to outlive its process.
package memory

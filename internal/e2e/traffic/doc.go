// Package traffic measures a whole mesh and its Redis: nodes with simulated switches and name
// servers, whole daemons in one process, half of them far from the primary and beside a
// replica of it. It holds tests and nothing else.
package traffic

// Package traffic measures what a whole mesh costs its Redis when nothing happens: nodes
// with simulated switches and name servers, all of them whole daemons in one process.
// It holds tests and nothing else.
package traffic

// Package health measures how soon a failure changes the answers of name servers, with
// real processes: daemons and name servers as an operator runs them, switches that can
// be killed with kill -9 and stopped with SIGSTOP, a real Redis, and DNS queries. It
// holds tests only.
//
// As root every machine of the mesh is a network namespace of its own, so that networks
// can be cut and machines can vanish. Otherwise all of them are addresses of the loopback
// network, and what needs namespaces is skipped.
package health

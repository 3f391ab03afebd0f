// Package app joins the parts of the daemon and owns their lifecycle.
//
// It owns construction from a configuration, the order in which parts start and
// stop, and the few lines that carry one part's output into another: leases into
// the failure detector, the switch's state into the lease, the picture of the mesh
// into hooks and name server. It refuses to decide anything: a rule that could be
// tested alone belongs into the package that it is about.
package app

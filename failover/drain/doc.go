// Package drain empties a node: it moves the phones of one switch to the others at a
// pace that they can take, and never touches a call.
//
// It owns the wishes of operators (Wish, Book: what a node shall be, who said so and
// why), the question whether the rest of the mesh can take what a node holds (Check),
// the decision which phone is told to go and when (Machine), and the event socket
// commands that tell it (Switch).
//
// It refuses to share anything by itself: internal/app carries wishes and progress
// between the daemons. It refuses to end a call, and to decide where a phone goes: the
// name servers do, because they no longer name the node.
package drain

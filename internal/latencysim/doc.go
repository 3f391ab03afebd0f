// Package latencysim is a simulation (tests only): client networks in real cities,
// phones that register with the node that the name server names, and nodes that learn
// from nothing but those registrations. Estimates, notes, views and choices are the
// real ones; only the internet is made up.
package latencysim

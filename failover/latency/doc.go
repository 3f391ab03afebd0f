// Package latency estimates how far client networks are from the nodes, from what
// phones do anyway: no packet goes to a client network for our sake.
//
// A Watch follows one switch and makes a Sample of every challenge that a phone
// answers and of every keep-alive that the switch timed. Estimates keep a few of them for
// each /24 or /48, and forget. A Publisher turns them into chunks, which nodes share;
// a Book holds those of all nodes, and a View ranks the nodes for every network: by the
// low quantile of its own samples, shrunk towards its parent network, its autonomous
// system and the distance. docs/latency.md tells the rules and their reasons.
//
// The package refuses to decide which node a client gets: states of nodes, shedding and
// the operator's preferences come after the ranking. It does not know how chunks travel.
package latency

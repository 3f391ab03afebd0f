// Package latency estimates how far client networks are from the nodes, from what
// phones do anyway: no packet goes to a client network for our sake.
//
// A Watch follows one switch and makes a Sample of every challenge that a phone
// answers and of every keep-alive that the switch timed. Estimates keep a few of them for
// some phones of each /24 or /48, and forget. A Publisher turns them into chunks, which
// nodes share; a Book holds those of all nodes, and a View ranks the nodes for every
// network: by what its own phones showed, shrunk towards its parent network, its autonomous
// system and the distance. docs/latency.md tells the rules and their reasons.
//
// One phone has one phone's weight. A phone is an account that the switch found right;
// each has its own estimate, and what lies in the middle of them counts (cell.join). Of a
// network at most maxPhones are followed, chosen by a secret; of one address at most
// perAddress where there are others. What less than half as many phones show as show
// another node, or as manyPhones, moves nothing by itself (network.weigh), and wider
// networks take the median by phones. Estimates end keep after a phone, NoteTTL after a
// daemon was heard last.
//
// Arrivals are when phones of which networks registered; Followers join those of all nodes with a
// name server's queries without client subnet, and learn whose phones ask through which
// resolver. A View ranks such a resolver for them (View.behind).
//
// The package refuses to decide which node a client gets: states of nodes, shedding and
// the operator's preferences come after the ranking. It does not know how chunks travel.
package latency

// Package selection decides which nodes a client gets, best first, on one snapshot of the
// mesh.
//
// The decision is a chain of stages. Each is a pure function of the nodes that the one before
// it left:
//
//  1. order: the operator's preferences, the ranking by latency or place, the default
//     order, then names (plan, inOrder);
//  2. address: nodes with an address for phones, of the family that was asked for (Family);
//  3. state: those that take phones; the panic rule (living);
//  4. shedding: nodes that send this client elsewhere go behind those that take it (shed);
//  5. spill: the clients of a node that is down are spread by the room that the others
//     have (shares).
//
// Who answers takes the first node, or the first three. Two name servers with the same
// snapshot, preferences and ranking decide the same.
//
// Choices keeps what the stages say for each snapshot, so that a query costs a look-up;
// Why shows what each stage left for one client.
package selection

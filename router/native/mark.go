package native

// originHeader marks events of ours that the switch fires to everybody, us
// included: its value is the node that sent them.
const originHeader = "Pbxmesh-Origin"

// Package router decides where a call goes: Decide joins who is registered with
// which nodes are alive into a Plan, and the plan says why each device rings or
// does not. Plan.BridgeString writes the plan in FreeSWITCH's dial string syntax.
//
// The package owns the rules of the decision and the one place where a bridge
// string is put together. It refuses to look anything up, to know the time, to
// do I/O and to log: everything it needs is in Input, so `pbxmesh explain` and
// the call itself cannot come to different answers.
//
// Nothing a caller dials gets into a bridge string but through a pbxmesh.AOR,
// whose alphabet has no character that FreeSWITCH reads as syntax.
//
// The hooks that carry a plan to a switch are packages below this one.
package router

// Package dialplan is the hook over HTTP, for dialplans that mod_curl or
// mod_xml_curl drive, and for scripts. The decision is router.Decide, as in every
// other hook.
//
// # GET /dialstring/user@domain, for mod_curl
//
// The answer is a dial string:
//
//	bridge ${sofia_contact(internal/1002@pbx.test)},${curl(http://127.0.0.1:8086/dialstring/1002@pbx.test)}
//
// It names the other nodes that hold the callee, and nothing that FreeSWITCH would
// have to expand, because (measured on 1.11.1):
//   - what an API call returns inside ${...} is not expanded again: a
//     ${sofia_contact(...)} in it fails the call with CHAN_NOT_IMPLEMENTED;
//   - the application `curl` refuses to keep such a text in curl_response_data.
//
// So the dial string above names the devices of its own switch itself. That has a
// second good: they ring too when nobody answers at our port. With ?local=contact
// the answer is the whole bridge string, which works behind one more expansion:
// ${expand(echo ${curl(...)})}, or a variable that `set` gave the text.
//
// mod_curl returns the body whatever the HTTP status is. Who is nowhere is
// error/user_not_registered, a leg that fails alone and at once; the causes are
// those of the socket hook. A body never ends in a line end: FreeSWITCH would take
// it for a part of the cause.
//
// # POST /xml, a binding of mod_xml_curl
//
// For section dialplan the answer is one extension that bridges, sets
// pbxmesh_result and pbxmesh_cause and transfers the call to the same number, for
// which the answer then is "not found": the switch's own dialplan goes on. Everything
// that rings nobody is "not found" at once. Only Options.Contexts are answered for,
// and calls on the mesh profile.
//
// For acl.conf see ACL. Everything else is "not found".
//
// # GET /route/user@domain, for scripts
//
// JSON with the plan and its reasons.
//
// # What it owns and refuses
//
// The package owns its listener's connections and all their bounds: requests at
// once, bytes, time. Every answer has the form that its door wants, errors included,
// so that a switch always reads a dial string or a document. It refuses to redirect,
// to decode anything twice, and to write into an answer what is not from a fixed
// vocabulary, a validated address, or the operator's own file.
package dialplan

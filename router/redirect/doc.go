// Package redirect is the door for those who are no node of the mesh: a carrier, an
// SBC or another PBX sends an INVITE and gets 302 with the node that holds the
// callee. It is no proxy: no call, no dialog and no transaction is held.
//
//	INVITE   302 with the nodes of router.Decide, first group q=1.0, next one q=0.5
//	         302 with the default node, or 404, when nobody is registered
//	         480 when the nodes that hold the callee take no calls
//	         503 when the registry was not read
//	REGISTER 302 with the best nodes for the phone's network, where that is turned on
//	OPTIONS  200 or 503: whether calls may be sent here
//	CANCEL   200 when it belongs to an INVITE that was just answered, else 481
//	BYE      481, and so is every request inside of a dialog
//	ACK      nothing, ever; a response gets nothing either
//	others   405 with Allow
//
// # The contact
//
//	Contact: <sip:1002@pbx.example.com:5090;maddr=192.0.2.10>;q=1.0
//
// The URI is what the next INVITE is sent with. Its host has to be the tenant's
// domain, because a node's mesh profile looks its callee up as user@${sip_req_host};
// with the node's address there the node answers 480. Its way has to be the node's
// mesh address, because the tenant's domain leads to the node that is best for a
// phone. maddr is SIP's own word for that (RFC 3261 sections 19.1.1 and 8.3 allow it
// in a redirect's contact), and a real FreeSWITCH follows it. It is the mesh profile
// that is named and no phone port: that one lets callers in by address and not by
// password. So who is redirected has to stand in the nodes' access list, as a peer.
//
// A contact for REGISTER is the node's own address, as phones know no maddr.
//
// # Without state
//
// RFC 3261 section 8.2.7 allows a server that answers at once to keep nothing: the To
// tag is a keyed hash of what names the transaction, so the same request again gets
// the same answer (until the registry says something else), and a burst costs no
// memory. The one thing remembered is a hash for each of the last 8192 INVITEs, which
// tells a CANCEL that crossed its answer from one for nothing.
//
// # What it owns and refuses
//
// The package owns its sockets, and the bounds on everything that comes from them. It
// answers nobody outside of Options.Allow, not even with 403: a source over UDP may be
// forged, and a refusal would hit who did not ask. An answer over UDP has at most
// twice the bytes of its request and goes to the address that the request came from.
// Of a request only Via, From, To, Call-ID, CSeq and what a 420 names are echoed, byte
// by byte, and only when they are bounded, printable and unambiguous; what was dialled
// gets into a contact as a pbxmesh.AOR and in no other way. It refuses sips: the nodes
// promise TLS to nobody.
package redirect

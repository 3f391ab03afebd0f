package redirect

import (
	"hash/maphash"
	"net/netip"
	"strconv"

	"github.com/emiago/sipgo/sip"

	"pbxmesh"
)

// Bounds of an answer over UDP, whose asker may not be who it says it is. Contacts
// are left out, the last ones first, until it fits; when it does not fit without
// any, there is no answer.
const (
	maxGrowth    = 2    // times the request
	maxUDPAnswer = 1300 // bytes; above that it may come in fragments (RFC 3261 section 18.1.1)
	maxContacts  = 8
)

// contact is one place that a request is sent on to.
type contact struct {
	aor  pbxmesh.AOR    // zero for a REGISTER, whose target is the node itself
	at   netip.AddrPort // of the node
	via  Transport      // of the node's port, REGISTER only
	q    string
	node pbxmesh.NodeID
}

// reply is an answer before it is written.
type reply struct {
	status   int
	reason   string
	contacts []contact
	allow    string // the methods of an Allow header
	accept   bool
	bad      []byte // option tags that a 420 names
}

// reasons are the phrases of the statuses that we send.
var reasons = map[int]string{
	sip.StatusOK: "OK", sip.StatusMovedTemporarily: "Moved Temporarily",
	sip.StatusBadRequest: "Bad Request", sip.StatusNotFound: "Not Found", sip.StatusMethodNotAllowed: "Method Not Allowed",
	sip.StatusTemporarilyUnavailable: "Temporarily Unavailable", sip.StatusCallTransactionDoesNotExists: "Call/Transaction Does Not Exist",
	statusUnsupportedScheme: "Unsupported URI Scheme", sip.StatusBadExtension: "Bad Extension",
	sip.StatusVersionNotSupported: "Version Not Supported", sip.StatusInternalServerError: "Server Internal Error",
	sip.StatusServiceUnavailable: "Service Unavailable",
}

// statusUnsupportedScheme is 416 in SIP's words; sipgo has HTTP's.
const statusUnsupportedScheme = sip.StatusRequestedRangeNotSatisfiable

func status(code int) reply { return reply{status: code, reason: reasons[code]} }

// hash names the transaction: requests that have it in common are the same request
// again, or the CANCEL of it. It is keyed, so that nobody can choose it.
func (s *Server) hash(r *request) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, part := range [...][]byte{r.callID, r.fromTag, r.top.head, r.top.params, r.cseqNum} {
		_, _ = h.Write(part)
		_ = h.WriteByte(0) // no part can hold one
	}
	return h.Sum64()
}

// appendReply writes the answer to r. limit is the most bytes it may have; nil means
// that it does not fit. The result depends on nothing but r, rep and where r came
// from: it is the same for the same request again (RFC 3261 section 8.2.7).
func (r *request) appendReply(b []byte, rep *reply, hash uint64, from netip.AddrPort, limit int) []byte {
	start := len(b)
	b = append(b, "SIP/2.0 "...)
	b = strconv.AppendInt(b, int64(rep.status), 10)
	b = append(b, ' ')
	b = append(b, rep.reason...)
	b = append(b, "\r\n"...)
	b = r.appendVias(b, from)
	b = append(b, "From: "...)
	b = append(b, r.from...)
	b = append(b, "\r\nTo: "...)
	b = append(b, r.to...)
	if r.toTag == nil && r.fault != "Malformed To" {
		b = append(b, ";tag="...)
		b = appendTag(b, hash)
	}
	b = append(b, "\r\nCall-ID: "...)
	b = append(b, r.callID...)
	b = append(b, "\r\nCSeq: "...)
	b = append(b, r.cseq...)
	b = append(b, "\r\n"...)
	if rep.allow != "" {
		b = append(b, "Allow: "...)
		b = append(b, rep.allow...)
		b = append(b, "\r\n"...)
	}
	if rep.accept {
		b = append(b, "Accept: application/sdp\r\n"...)
	}
	if rep.bad != nil {
		b = append(b, "Unsupported: "...)
		b = append(b, rep.bad...)
		b = append(b, "\r\n"...)
	}
	const end = "Content-Length: 0\r\n\r\n"
	for i := range rep.contacts {
		whole := len(b)
		b = rep.contacts[i].append(b)
		if len(b)-start+len(end) > limit {
			if i == 0 {
				return nil
			}
			b = b[:whole]
			break
		}
	}
	b = append(b, end...)
	if len(b)-start > limit {
		return nil
	}
	return b
}

// append writes the contact. See doc.go for why the URI has the form that it has.
func (c *contact) append(b []byte) []byte {
	if c.aor.IsZero() {
		b = append(b, "Contact: <sip:"...)
		b = c.at.AppendTo(b)
		b = append(b, ";transport="...)
		b = append(b, c.via.String()...)
	} else {
		b = append(b, "Contact: <sip:"...)
		b = append(b, c.aor.String()...)
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(c.at.Port()), 10)
		b = append(b, ";maddr="...)
		b = c.at.Addr().AppendTo(b)
	}
	b = append(b, ">;q="...)
	b = append(b, c.q...)
	return append(b, "\r\n"...)
}

func appendTag(b []byte, hash uint64) []byte {
	const hex = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, hex[hash>>shift&15])
	}
	return b
}

package probe

import (
	"bytes"
	crand "crypto/rand"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// newID returns a word that nobody can guess who does not see our packets: 130 bits in
// 26 letters and digits.
func newID() string { return crand.Text() }

// request returns the nth OPTIONS of the row id.
//
// Each is a request of its own: Call-ID, branch and CSeq differ, so that it is neither a
// retransmission, whose answer would not tell which of the two it answers, nor a
// merged request (RFC 3261 section 8.2.2.2), which would be 482.
//
// The Call-ID comes first, because an ICMP error is believed when it quotes it and quotes
// the beginning only: at least 8 bytes after the IP header (RFC 792), which do not reach
// it; as much as fits in 576 bytes (RFC 1812 section 4.3.2.3, and Linux) or, IPv6,
// in 1280 (RFC 4443 section 2.4), which do; and, with extensions, 128 bytes of the packet or
// more (RFC 4884 section 4.1), 100 of them ours over IPv4. The Call-ID ends at byte 86
// there at the latest. The order of header fields is free (RFC 3261 section 7.3.1).
func request(id string, n int, to netip.AddrPort, sentBy string) []byte {
	return fmt.Appendf(make([]byte, 0, 512), "OPTIONS sip:%[1]s SIP/2.0\r\n"+
		"Call-ID: %[2]s.%[3]d\r\n"+
		"Via: SIP/2.0/UDP %[4]s;rport;branch=z9hG4bK%[2]s.%[3]d\r\n"+ // rport, RFC 3581: answers come back to this very port
		"Max-Forwards: 70\r\n"+
		"From: <sip:pbxmesh@%[4]s>;tag=%[2]s\r\n"+
		"To: <sip:%[1]s>\r\n"+
		"CSeq: %[3]d OPTIONS\r\n"+
		"User-Agent: pbxmesh\r\n"+
		"Content-Length: 0\r\n\r\n",
		to, id, n, sentBy)
}

// sentBy returns the sent-by of the Via header for a socket bound to local. A socket
// bound to any address has none to show; a name makes the far end add "received" and
// answer to where the request came from (RFC 3261 section 18.2.1).
func sentBy(local netip.AddrPort) string {
	if local.Addr().IsUnspecified() {
		return "pbxmesh.invalid:" + strconv.Itoa(int(local.Port()))
	}
	return local.String()
}

// finalStatus returns the status code of a packet that is a final SIP answer (RFC 3261
// section 7.2), 0 for every other packet: a provisional answer promises one, no more.
func finalStatus(packet []byte) int {
	rest, ok := bytes.CutPrefix(packet, []byte("SIP/2.0 "))
	if !ok || len(rest) < 4 || rest[3] != ' ' && rest[3] != '\r' {
		return 0
	}
	code, err := strconv.Atoi(string(rest[:3]))
	if err != nil || code < 200 || code > 699 {
		return 0
	}
	return code
}

// numberIn returns which request of the row id a packet names, 0 for none. It looks for
// the word itself instead of for a header field: nobody else can know it, and a quote
// that is cut off has no more to offer.
func numberIn(packet []byte, id string) int {
	text := string(packet)
	for {
		_, after, found := strings.Cut(text, id+".")
		if !found {
			return 0
		}
		text = after
		end := 0
		for end < len(after) && after[end] >= '0' && after[end] <= '9' {
			end++
		}
		if end == len(after) {
			return 0 // cut off: the number may go on
		}
		if n, err := strconv.Atoi(after[:end]); err == nil && n > 0 {
			return n
		}
	}
}

package probe

import (
	"bytes"
	"net/netip"
	"testing"
)

// TestQuoteSuffices holds the place of the word that nobody can guess: an ICMP error that
// quotes 128 bytes of an IPv4 packet, or 1280 of an IPv6 one less the headers, has it.
func TestQuoteSuffices(t *testing.T) {
	t.Parallel()
	for to, quote := range map[string]int{
		"255.255.255.255:65535":                          128 - 20 - 8,
		"[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535": 1280 - 40 - 8 - 40 - 8,
	} {
		id := newID()
		packet := request(id, maxRow, netip.MustParseAddrPort(to), "192.0.2.1:5070")
		if got := numberIn(packet[:min(quote, len(packet))], id); got != maxRow {
			t.Errorf("the first %d bytes of a request to %s name request %d, want %d:\n%s", quote, to, got, maxRow, packet)
		}
		if end := bytes.Index(packet, []byte(id)) + len(id) + len(".105\r"); end > len(packet) || numberIn(packet[:end-1], id) != 0 {
			t.Errorf("a quote of %d bytes, which may end within the number, was believed", end-1)
		}
		if got := numberIn(packet, newID()); got != 0 {
			t.Errorf("another row's word was found in it, request %d", got)
		}
	}
}

func TestFinalStatus(t *testing.T) {
	t.Parallel()
	for packet, want := range map[string]int{
		"SIP/2.0 200 OK\r\n":          200,
		"SIP/2.0 299 \r\n":            299,
		"SIP/2.0 404\r\n":             404,
		"SIP/2.0 503 Busy\r\n":        503,
		"SIP/2.0 699 x\r\n":           699,
		"SIP/2.0 100 Trying\r\n":      0,
		"SIP/2.0 199 x\r\n":           0,
		"SIP/2.0 700 x\r\n":           0,
		"SIP/2.0 2000 OK\r\n":         0,
		"SIP/2.0 +20 OK\r\n":          0,
		"SIP/2.0 ":                    0,
		"SIP/3.0 200 OK\r\n":          0,
		"OPTIONS sip:x@y SIP/2.0\r\n": 0,
		"":                            0,
	} {
		if got := finalStatus([]byte(packet)); got != want {
			t.Errorf("%q is %d, want %d", packet, got, want)
		}
	}
}

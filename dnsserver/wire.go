package dnsserver

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

const (
	headerSize  = 12
	optSize     = 11 // an OPT record without options
	maxNameSize = 255
)

// wireQuery is a usual query, read without allocating: opcode QUERY, one question of
// class IN, and at most an OPT record of version 0 with the options that are read here.
type wireQuery struct {
	// key is the name in wire format and lower case, the type and the form: what an
	// answer depends on besides the client. It stands in buf.
	key []byte
	buf [maxNameSize + 3]byte

	nameEnd int // offset behind the name in the packet; the question ends 4 bytes later
	qtype   uint16
	edns    bool
	do      bool
	nsid    bool
	size    int // of the longest answer the client takes over UDP, in bytes

	subnet []byte     // data of the client subnet option
	client netip.Addr // its address; invalid when it says "do not tailor"
	cookie []byte     // data of the cookie option
}

const (
	formEDNS = 1 << iota
	formDO
)

// parse reads packet, and reports false for everything unusual: that is for the slow
// path to judge. It accepts nothing that the slow path calls malformed.
func (q *wireQuery) parse(packet []byte) bool {
	// Flags that may stand in a query: AA, RD; the second byte does not matter.
	if len(packet) < headerSize+5 || packet[2]&^0x05 != 0 ||
		binary.BigEndian.Uint32(packet[4:]) != 1<<16 || binary.BigEndian.Uint16(packet[8:]) != 0 {
		return false
	}
	additional := binary.BigEndian.Uint16(packet[10:])
	n := q.lower(packet[headerSize:])
	if n == 0 || headerSize+n+4 > len(packet) {
		return false
	}
	q.nameEnd = headerSize + n
	rest := packet[q.nameEnd:]
	q.qtype = binary.BigEndian.Uint16(rest)
	if binary.BigEndian.Uint16(rest[2:]) != dns.ClassINET || q.qtype == dns.TypeAXFR || q.qtype == dns.TypeIXFR {
		return false
	}
	q.edns, q.do, q.nsid, q.subnet, q.cookie, q.size = false, false, false, nil, nil, dns.MinMsgSize
	form := byte(0)
	switch rest = rest[4:]; {
	case additional == 0 && len(rest) == 0:
	case additional != 1 || !q.parseOPT(rest):
		return false
	default:
		form = formEDNS
		if q.do {
			form |= formDO
		}
	}
	q.buf[n], q.buf[n+1], q.buf[n+2] = byte(q.qtype>>8), byte(q.qtype), form
	q.key = q.buf[:n+3]
	return true
}

// lower copies the name at the start of b in lower case, and returns its length; 0
// when it is compressed, too long, or does not end.
func (q *wireQuery) lower(b []byte) int {
	off := 0
	for {
		if off >= len(b) || off >= maxNameSize {
			return 0
		}
		length := int(b[off])
		if length > 63 {
			return 0
		}
		q.buf[off] = b[off]
		off++
		if length == 0 {
			return off
		}
		if off+length >= len(b) || off+length >= maxNameSize {
			return 0
		}
		for _, c := range b[off : off+length] {
			if c-'A' < 26 {
				c += 'a' - 'A'
			}
			q.buf[off] = c
			off++
		}
	}
}

func (q *wireQuery) parseOPT(b []byte) bool {
	if len(b) < optSize || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != dns.TypeOPT ||
		b[5] != 0 || b[6] != 0 || int(binary.BigEndian.Uint16(b[9:])) != len(b)-optSize {
		return false
	}
	if b[7]&0x40 != 0 {
		return false // CO: who sets it gets other response codes (RFC 9824)
	}
	q.edns, q.do = true, b[7]&0x80 != 0
	q.size = min(max(dns.MinMsgSize, int(binary.BigEndian.Uint16(b[3:]))), MaxUDPSize)
	for b = b[optSize:]; len(b) > 0; {
		if len(b) < 4 {
			return false
		}
		code, length := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if 4+length > len(b) {
			return false
		}
		data := b[4 : 4+length]
		switch {
		case code == dns.EDNS0NSID && !q.nsid:
			q.nsid = true
		case code == dns.EDNS0COOKIE && q.cookie == nil && cookieLength(length):
			q.cookie = data
		case code == dns.EDNS0SUBNET && q.subnet == nil && q.parseSubnet(data):
			q.subnet = data
		default:
			return false
		}
		b = b[4+length:]
	}
	return true
}

// parseSubnet is subnetClient for the bytes of the option.
func (q *wireQuery) parseSubnet(data []byte) bool {
	if len(data) < 4 || data[0] != 0 || data[3] != 0 {
		return false
	}
	source, address := int(data[2]), data[4:]
	var a netip.Addr
	switch data[1] {
	case 1:
		var b [4]byte
		if source > 32 || len(address) != (source+7)/8 {
			return false
		}
		copy(b[:], address)
		a = netip.AddrFrom4(b)
	case 2:
		var b [16]byte
		if source > 128 || len(address) != (source+7)/8 {
			return false
		}
		copy(b[:], address)
		a = netip.AddrFrom16(b)
		if a.Is4In6() {
			return false
		}
	default:
		return false
	}
	if source%8 != 0 && address[len(address)-1]<<(source%8) != 0 {
		return false // bits beyond the length
	}
	if q.client = a; source == 0 {
		q.client = netip.Addr{}
	}
	return true
}

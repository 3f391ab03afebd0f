package dnsserver

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Respond answers one packet: what comes off the wire goes in, what goes onto it
// comes out; nil means that nothing must be sent. udp bounds the reply to what the
// client can take (RFC 6891 section 6.2.3: at least 512, here at most MaxUDPSize)
// and sets TC when it had to be cut. packet is not kept.
func (z *Zone) Respond(packet []byte, client netip.Addr, udp bool) []byte {
	r := responder{zone: z}
	return r.respond(packet, client, udp, time.Now()).reply
}

// responder turns packets into replies: a Zone, and what keeps it from being abused.
type responder struct {
	zone          *Zone
	cookies       *Cookies // nil: cookies are ignored
	rate          *rateLimiter
	amplification int // 0 is without bound
}

// response is a reply with what the rate limiter wants to know.
type response struct {
	reply  []byte // nil: nothing is sent
	edns   bool   // the reply may have an OPT record
	state  cookieState
	cookie [cookieSize]byte // to give to the client, unless state is cookieNone
}

// limit is the longest reply over UDP, in bytes, to a client that takes size. Who has
// no valid cookie may be somebody else, and gets no more than so many times what it sent.
func (r *responder) limit(size, query int, state cookieState) int {
	if r.amplification > 0 && state != cookieValid {
		return min(size, r.amplification*query)
	}
	return size
}

// respond answers any packet; see Zone.Respond.
func (r *responder) respond(packet []byte, client netip.Addr, udp bool, now time.Time) response {
	z := r.zone
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		// Too short to be answered, or a response: answering those makes loops.
		z.stats.dropped.Add(1)
		return response{}
	}
	req := new(dns.Msg)
	if err := req.Unpack(packet); err != nil || !checkSubnet(packet) {
		return response{reply: z.formErr(packet)}
	}
	res := response{edns: req.IsEdns0() != nil}
	if option := cookieOption(req); option != nil && r.cookies != nil {
		res.cookie, res.state = r.cookies.answer(option, client, now)
		z.stats.cookies[res.state].Add(1)
	}
	// Names are made and compressed in lower case; the case of the question is put
	// back at the end, so that every name which points to it has it too.
	name := 0
	if len(req.Question) == 1 {
		name = plainName(packet[headerSize:])
	}
	if name > 0 {
		req.Question[0].Name = strings.ToLower(req.Question[0].Name)
	}
	var m *dns.Msg
	if len(req.Question) == 0 && res.state != cookieNone && req.Opcode == dns.OpcodeQuery {
		m = z.cookieOnly(req, res.state)
	} else if m = z.Answer(req, client); m == nil {
		z.stats.dropped.Add(1)
		return response{}
	}
	if opt := m.IsEdns0(); opt != nil && res.state != cookieNone && m.Rcode != dns.RcodeBadVers {
		opt.Option = append(opt.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: hex.EncodeToString(res.cookie[:])})
	}
	limit := dns.MaxMsgSize
	if udp {
		limit = dns.MinMsgSize
		if opt := req.IsEdns0(); opt != nil {
			limit = min(max(limit, int(opt.UDPSize())), MaxUDPSize)
		}
		limit = r.limit(limit, len(packet), res.state)
	}
	out, err := pack(m, limit)
	if err != nil {
		z.log.Error("answer cannot be packed", "question", question(req), "err", err)
		res.reply = z.fail(packet, dns.RcodeServerFailure)
		return res
	}
	if name > 0 && len(m.Question) == 1 {
		copy(out[headerSize:], packet[headerSize:headerSize+name])
	}
	z.stats.count(req, m.Rcode)
	if m.Truncated {
		z.stats.truncated.Add(1)
	}
	res.reply = out
	return res
}

// cookieOption returns the data of the cookie option; nil when there is none that
// could be answered.
func cookieOption(req *dns.Msg) []byte {
	opt := req.IsEdns0()
	if opt == nil || opt.Version() != 0 {
		return nil
	}
	for _, o := range opt.Option {
		if c, ok := o.(*dns.EDNS0_COOKIE); ok {
			if data, err := hex.DecodeString(c.Cookie); err == nil && cookieLength(len(data)) {
				return data
			}
		}
	}
	return nil
}

// cookieOnly answers a query that has a cookie and no question (RFC 7873 section 5.4):
// it asks for a cookie, or whether the one that it has is still good.
func (z *Zone) cookieOnly(req *dns.Msg, state cookieState) *dns.Msg {
	m := &dns.Msg{}
	m.Id, m.Response, m.RecursionDesired, m.CheckingDisabled = req.Id, true, req.RecursionDesired, req.CheckingDisabled
	e := parseEDNS(req)
	switch {
	case e.bad || req.Truncated:
		m.Rcode = dns.RcodeFormatError
	case state == cookieBad:
		m.Rcode = dns.RcodeBadCookie
	}
	e.reply(m, z.opts.NSID)
	return m
}

// plainName returns the length of the name at the start of b; 0 when it is compressed.
func plainName(b []byte) int {
	for off := 0; off < len(b) && b[off] < 64; off += 1 + int(b[off]) {
		if b[off] == 0 {
			return off + 1
		}
	}
	return 0
}

// pack returns m in at most limit bytes. Additional records are a courtesy and go
// first, without TC (RFC 2181 section 9); only then is the answer cut.
func pack(m *dns.Msg, limit int) ([]byte, error) {
	out, err := m.Pack()
	if err != nil || len(out) <= limit {
		return out, err
	}
	opt := m.IsEdns0()
	m.Extra = nil
	if opt != nil {
		m.Extra = []dns.RR{opt}
	}
	if out, err = m.Pack(); err != nil || len(out) <= limit {
		return out, err
	}
	m.Truncated = true
	m.Answer, m.Ns = nil, nil // half a record set is worth nothing: TCP brings it whole
	if out, err = m.Pack(); err != nil || len(out) <= limit {
		return out, err
	}
	m.Question = nil // a question of 255 bytes and more: cannot come from one we parsed
	return m.Pack()
}

// formErr answers a packet that cannot be parsed, with no more than its header: a
// longer reply would be an amplifier for spoofed garbage.
func (z *Zone) formErr(packet []byte) []byte {
	if opcode := packet[2] >> 3 & 0xf; opcode != dns.OpcodeQuery {
		return z.fail(packet, dns.RcodeNotImplemented) // its body may follow other rules
	}
	return z.fail(packet, dns.RcodeFormatError)
}

func (z *Zone) fail(packet []byte, rcode int) []byte {
	z.stats.count(nil, rcode)
	out := make([]byte, headerSize)
	copy(out, packet[:2])
	out[2] = packet[2]&0x79 | 0x80 // QR; opcode and RD copied
	out[3] = packet[3]&0x10 | byte(rcode)
	return out
}

// checkSubnet reports whether each client subnet option in packet has exactly the
// address bytes that its source length asks for (RFC 7871 section 6). The parsed
// message no longer shows it. packet must be one that parses.
func checkSubnet(packet []byte) bool {
	counts := [4]int{}
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(packet[4+2*i:]))
	}
	off := headerSize
	for range counts[0] {
		if off = skipName(packet, off); off < 0 || off+4 > len(packet) {
			return false
		}
		off += 4
	}
	for range counts[1] + counts[2] + counts[3] {
		if off == len(packet) {
			return true // miekg/dns takes a packet that ends early
		}
		if off = skipName(packet, off); off < 0 || off+10 > len(packet) {
			return false
		}
		rrtype := binary.BigEndian.Uint16(packet[off:])
		length := int(binary.BigEndian.Uint16(packet[off+8:]))
		off += 10
		if off+length > len(packet) {
			return false
		}
		if rrtype == dns.TypeOPT && !checkOptions(packet[off:off+length]) {
			return false
		}
		off += length
	}
	return true
}

func checkOptions(data []byte) bool {
	for len(data) >= 4 {
		code, length := binary.BigEndian.Uint16(data), int(binary.BigEndian.Uint16(data[2:]))
		if 4+length > len(data) {
			return false
		}
		if option := data[4 : 4+length]; code == dns.EDNS0SUBNET {
			if len(option) < 4 || len(option)-4 != (int(option[2])+7)/8 {
				return false
			}
		}
		data = data[4+length:]
	}
	return len(data) == 0
}

// skipName returns the offset behind the name at off, -1 when it does not end.
func skipName(packet []byte, off int) int {
	for off < len(packet) {
		switch c := int(packet[off]); {
		case c == 0:
			return off + 1
		case c&0xc0 == 0xc0:
			return off + 2
		default:
			off += 1 + c
		}
	}
	return -1
}

func question(m *dns.Msg) string {
	if len(m.Question) == 0 {
		return ""
	}
	return m.Question[0].String()
}

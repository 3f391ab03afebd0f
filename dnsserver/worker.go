package dnsserver

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/dnsserver/selection"
)

// worker answers what one reader of a UDP socket reads. A usual query whose answer was
// packed before is answered from that (fast), without allocating; everything else goes
// the way of Zone.Respond, and both give the same bytes.
type worker struct {
	r     *responder
	log   *slog.Logger
	cache *answerCache
	query wireQuery

	// What the answers in the cache are made from: taken once per batch, each change
	// is a new generation. looked is whether it was taken for this batch.
	view       *view
	edition    uint64
	generation uint64
	looked     bool

	counts localCounts
	asked  *askedLog // nil when nobody wants to know
}

// localCounts are added to the zone's once per batch: readers on several processors
// would otherwise fight for the counters' cache lines at each query.
type localCounts struct {
	packets, hits, misses uint64
	queries               [len(countedTypes) + 1]uint64
	responses             [16]uint64
	cookies               [cookieValid + 1]uint64
}

func newWorker(r *responder, log *slog.Logger) *worker {
	return &worker{r: r, log: log, cache: newAnswerCache(cacheNames, cacheBytes)}
}

// respond answers one packet over UDP, into buf where it can; nil sends nothing.
// Whatever a packet does to us, the next one is answered.
func (w *worker) respond(buf, packet []byte, client netip.Addr, now time.Time) (reply []byte) {
	defer func() {
		if r := recover(); r != nil {
			reply = crashed(w.r.zone, w.log, packet, r)
		}
	}()
	w.counts.packets++
	res, ok := w.fast(buf, packet, client, now)
	if !ok {
		res = w.r.respond(packet, client, true, now)
	}
	if res.reply == nil || w.r.rate == nil || res.state == cookieValid {
		return res.reply
	}
	switch w.r.rate.judge(client, int(res.reply[3]&0xf), now) {
	case slip:
		w.r.zone.stats.rateSlips.Add(1)
		return res.cut(buf, len(packet))
	case drop:
		w.r.zone.stats.rateDrops.Add(1)
		return nil
	}
	return res.reply
}

func crashed(z *Zone, log *slog.Logger, packet []byte, reason any) []byte {
	z.stats.crashes.Add(1)
	log.Error("panic while answering; this is a bug", "panic", reason, "packet", hex.EncodeToString(packet), "stack", string(debug.Stack()))
	if len(packet) < headerSize {
		return nil
	}
	return z.fail(packet, dns.RcodeServerFailure)
}

// look sees to it that w has the zone's present view.
func (w *worker) look() {
	if w.looked {
		return
	}
	z := w.r.zone
	v := z.view() // raises the edition when it makes a new one
	w.edition = z.edition.Load()
	if again := z.view(); again != v {
		v = again // what changes after this is seen by the edition
	}
	if v != w.view {
		w.view = v
		w.generation++
	}
	w.looked = true
}

// flush ends a batch: it adds the counts to the zone's.
func (w *worker) flush() {
	w.looked = false
	if w.asked != nil {
		w.asked.flush()
	}
	s, c := &w.r.zone.stats, &w.counts
	s.udp.Add(c.packets)
	if c.misses > 0 {
		s.cacheMisses.Add(c.misses)
	}
	if c.hits > 0 {
		s.cacheHits.Add(c.hits)
		for i, n := range c.queries {
			if n > 0 {
				s.queries[i].Add(n)
			}
		}
		for i, n := range c.responses {
			if n > 0 {
				s.responses[i].Add(n)
			}
		}
		for i, n := range c.cookies {
			if n > 0 {
				s.cookies[i].Add(n)
			}
		}
	}
	*c = localCounts{}
}

// fast answers a usual query from a packed answer, which it may have to make first.
// It reports false when the slow path has to answer.
func (w *worker) fast(buf, packet []byte, client netip.Addr, now time.Time) (res response, ok bool) {
	q := &w.query
	if !q.parse(packet) {
		return res, false
	}
	p, scope := w.find(client, now)
	if p == nil {
		w.counts.misses++
		return res, false
	}
	res.edns = q.edns
	if q.cookie != nil && w.r.cookies != nil {
		res.cookie, res.state = w.r.cookies.answer(q.cookie, client, now)
	}
	options := 0
	nsid := w.r.zone.opts.NSID
	if q.subnet != nil {
		options += 4 + len(q.subnet)
	}
	if q.nsid && nsid != "" {
		options += 4 + len(nsid)
	}
	if res.state != cookieNone {
		options += 4 + cookieSize
	}
	if len(p.wire)+options > w.r.limit(q.size, len(packet), res.state) {
		w.counts.misses++
		return res, false // to be cut
	}
	buf = append(buf[:0], p.wire...)
	out := buf
	out[0], out[1] = packet[0], packet[1]
	out[2] |= packet[2] & 0x01 // RD
	out[3] |= packet[3] & 0x10 // CD
	copy(out[headerSize:q.nameEnd], packet[headerSize:])
	if options > 0 {
		binary.BigEndian.PutUint16(out[len(out)-2:], uint16(options))
		if q.subnet != nil {
			out = appendOption(out, dns.EDNS0SUBNET, len(q.subnet))
			out = append(out, q.subnet...)
			out[len(out)-len(q.subnet)+3] = byte(scope)
		}
		if q.nsid && nsid != "" {
			out = append(appendOption(out, dns.EDNS0NSID, len(nsid)), nsid...)
		}
		if res.state != cookieNone {
			out = append(appendOption(out, dns.EDNS0COOKIE, cookieSize), res.cookie[:]...)
		}
	}
	w.counts.hits++
	w.counts.queries[countedAs(q.qtype)]++
	w.counts.responses[p.rcode]++
	if res.state != cookieNone {
		w.counts.cookies[res.state]++
	}
	res.reply = out
	return res, true
}

func appendOption(out []byte, code uint16, length int) []byte {
	return append(out, byte(code>>8), byte(code), byte(length>>8), byte(length))
}

// find returns the packed answer to w.query and the ECS scope; nil when there is none
// that may be used.
func (w *worker) find(client netip.Addr, now time.Time) (p *packed, scope int) {
	q := &w.query
	hash := w.cache.hash(q.key)
	n := w.cache.find(hash, q.key)
	if n == nil {
		if n = w.cache.admit(hash, q.key); n == nil {
			return nil, 0
		}
	}
	w.look()
	if w.cache.fresh(n, w.generation, now.Unix()) && n.anew {
		return nil, 0
	}
	if n.plain != nil {
		return n.plain, 0
	}
	if q.subnet != nil {
		client = q.client
	}
	d, block := w.view.choices.For(client, familyOf(q.qtype))
	if p = n.lookup(d); p != nil {
		if d.Panic {
			w.r.zone.warnPanic(w.view.mesh) // when it is made, the zone does
		}
	} else if p = w.fill(n, client, d); p == nil {
		return nil, 0
	}
	if w.asked != nil && p.scoped && q.subnet == nil {
		w.asked.note(client, d, now)
	}
	if p.scoped && q.subnet != nil && q.client.IsValid() {
		scope = max(0, block.Bits())
	}
	return p, scope
}

// fill has the zone answer w.query for clients with the decision d, and keeps what it
// says. nil: it cannot be kept.
func (w *worker) fill(n *cachedName, client netip.Addr, d *selection.Decision) *packed {
	q, z := &w.query, w.r.zone
	name, length, err := dns.UnpackDomainName(q.key, 0)
	if err != nil {
		n.anew = true
		return nil
	}
	req := &dns.Msg{Question: []dns.Question{{Name: name, Qtype: q.qtype, Qclass: dns.ClassINET}}}
	if q.edns {
		req.SetEdns0(MaxUDPSize, q.do)
	}
	m, b := z.answer(req, client)
	if b.choices != nil && b.choices != w.view.choices || b.decision != nil && b.decision != d || z.edition.Load() != w.edition {
		return nil // the view changed meanwhile
	}
	wire, err := m.Pack()
	if err != nil || len(wire) > MaxUDPSize || m.Truncated ||
		m.Rcode == dns.RcodeServerFailure || m.Rcode >= len(w.counts.responses) ||
		len(m.Question) != 1 || !bytes.Equal(wire[headerSize:headerSize+length], q.key[:length]) ||
		q.edns && !endsInOPT(wire) {
		n.anew = true
		return nil
	}
	p := &packed{wire: bytes.Clone(wire), rcode: m.Rcode, scoped: b.decision != nil && m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0}
	w.cache.keep(n, b.decision, p)
	return p
}

// endsInOPT reports whether the last record is an OPT record without options.
func endsInOPT(wire []byte) bool {
	if len(wire) < headerSize+optSize {
		return false
	}
	opt := wire[len(wire)-optSize:]
	return opt[0] == 0 && binary.BigEndian.Uint16(opt[1:]) == dns.TypeOPT && opt[9] == 0 && opt[10] == 0
}

// cut makes the reply to a query above the rate limit, no longer than the query but
// for a cookie: a client that is where it says comes back by TCP, or with the cookie
// (RFC 7873 section 5.2.3: BADCOOKIE), and is then not limited. A query of length bytes
// whose name was compressed gets none, because that is written out.
func (res *response) cut(buf []byte, length int) []byte {
	reply := res.reply
	end := headerSize
	if binary.BigEndian.Uint16(reply[4:]) == 1 {
		if end = skipName(reply, headerSize) + 4; end < headerSize || end > len(reply) {
			return nil
		}
	}
	buf = append(buf[:0], reply[:end]...)
	out := buf
	clear(out[6:headerSize])
	out[3] &^= 0x0f
	if res.state == cookieNone || !res.edns {
		out[2] |= 0x02 // TC
	}
	if res.edns {
		out[11] = 1
		out = append(out, 0, 0, byte(dns.TypeOPT), MaxUDPSize>>8, MaxUDPSize&0xff, 0, 0, 0, 0, 0, 0)
		if res.state != cookieNone {
			out[3] |= dns.RcodeBadCookie & 0xf
			out[len(out)-6] = dns.RcodeBadCookie >> 4
			out[len(out)-1] = 4 + cookieSize
			out = append(appendOption(out, dns.EDNS0COOKIE, cookieSize), res.cookie[:]...)
		}
	}
	if len(out) > length+serverCookieSize {
		return nil
	}
	return out
}

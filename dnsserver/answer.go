package dnsserver

import (
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
)

// MaxUDPSize is the largest answer over UDP, in bytes, and the size this server
// announces: no path cuts 1232 bytes into fragments (DNS flag day 2020).
const MaxUDPSize = 1232

// srvAnswers bounds the nodes an SRV answer names: best, second best, third.
const srvAnswers = 3

// Answer returns the reply to req from client, OPT record included when req has
// one. It is a function of req, client, and the snapshot taken at the start, and
// does not know the transport: who sends the reply cuts it to size (see Respond).
//
// A message that must not be answered (it is a response itself) gives nil.
func (z *Zone) Answer(req *dns.Msg, client netip.Addr) *dns.Msg {
	m, _ := z.answer(req, client)
	return m
}

// basis is what an answer was made from: who keeps a copy of it knows by this for
// whom it is good, and until when.
type basis struct {
	// choices are those of the snapshot; nil when none was looked at.
	choices *selection.Choices

	// decision is set when the answer depends on the client, and is then the same for
	// every client with this Decision, but for the ECS scope.
	decision *selection.Decision
}

// answer is Answer, and tells what the reply was made from. A change of anything
// else that a reply is made from raises Zone.edition.
func (z *Zone) answer(req *dns.Msg, client netip.Addr) (*dns.Msg, basis) {
	var b basis
	if req.Response {
		return nil, b
	}
	m := &dns.Msg{}
	m.Id, m.Response, m.Opcode, m.Compress = req.Id, true, req.Opcode, true
	m.RecursionDesired, m.CheckingDisabled = req.RecursionDesired, req.CheckingDisabled
	m.Question = req.Question

	e := parseEDNS(req)
	switch {
	case e.bad:
		m.Rcode = dns.RcodeFormatError
	case e.version != 0:
		m.Rcode = dns.RcodeBadVers // before all else: nothing else in it can be trusted
	case req.Opcode != dns.OpcodeQuery:
		m.Rcode = dns.RcodeNotImplemented
	case len(req.Question) != 1 || req.Truncated:
		m.Rcode = dns.RcodeFormatError
	case req.Question[0].Qtype == dns.TypeNXNAME:
		m.Rcode, e.ede = dns.RcodeFormatError, dns.ExtendedErrorCodeInvalidQueryType // RFC 9824 section 3.5
	default:
		q := &query{z: z, m: m, Question: req.Question[0], client: client, do: e.do, co: e.co}
		if e.subnet != nil {
			q.client = e.client // invalid for source length 0: not to be tailored
		}
		q.run()
		b.choices = q.choices
		if q.tailored {
			b.decision = q.decision
		}
		if q.tailored && m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0 {
			e.scope = q.block.Bits()
		}
		e.compact = q.co && q.do && q.view != nil && q.view.signer.zone(q.apex) != nil
		if q.notReady {
			e.ede = dns.ExtendedErrorCodeNotReady
		}
	}
	e.reply(m, z.opts.NSID)
	return m, b
}

// query is one question being answered into m.
type query struct {
	dns.Question
	z      *Zone
	m      *dns.Msg
	client netip.Addr
	do, co bool // flags of the OPT record: signatures are wanted, NXNAME is understood

	name     string // canonical
	view     *view
	choices  *selection.Choices // of view
	mesh     *pbxmesh.Mesh      // of view
	apex     *apex
	decision *selection.Decision
	block    netip.Prefix
	cut      bool // the DS record of a zone of ours, in its parent zone of ours
	tailored bool // the answer depends on the client
	notReady bool
}

func (q *query) run() {
	q.name = strings.ToLower(q.Name)
	q.apex = q.z.zoneOf(q.name)
	if q.apex == nil || q.Qclass != dns.ClassINET || q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR {
		q.m.Rcode = dns.RcodeRefused
		return
	}
	if up := q.z.zoneOf(parent(q.name)); q.Qtype == dns.TypeDS && q.apex.name == q.name && up != nil {
		q.apex, q.cut = up, true
	}
	q.view = q.z.view()
	q.choices, q.mesh = q.view.choices, q.view.mesh
	q.m.Authoritative = true
	q.follow()
	if q.do && q.view.signer != nil && q.m.Rcode != dns.RcodeServerFailure {
		if err := q.sign(); err != nil {
			q.z.log.Error("answer cannot be signed", "question", q.Question.String(), "err", err)
			q.m.Rcode, q.m.Authoritative = dns.RcodeServerFailure, false
			q.m.Answer, q.m.Ns, q.m.Extra = nil, nil, nil
		}
	}
}

// follow answers for the name, and for those that its CNAME records lead to.
func (q *query) follow() {
	for range maxChain + 1 {
		target := q.answer()
		if target == "" {
			return
		}
		// The next name is a question of its own, within one answer (RFC 1034 section
		// 4.3.2). Where it leaves our zones the resolver goes on.
		q.Name, q.name = target, strings.ToLower(target)
		if q.apex = q.z.zoneOf(q.name); q.apex == nil {
			return
		}
	}
}

// answer answers for one name. A CNAME there gives the name to go on with.
func (q *query) answer() (target string) {
	f := q.z.lookup(q.view, q.apex, q.name)
	if (f.service || f.srv != nil || !f.exists) && !q.known() && q.dynamic(f) {
		// Nothing is known yet. A negative answer would be cached and believed; this
		// one makes the resolver ask the next name server.
		q.m.Rcode, q.notReady, q.m.Authoritative = dns.RcodeServerFailure, true, false
		q.m.Answer, q.m.Extra = nil, nil
		return ""
	}
	before := len(q.m.Answer)
	switch {
	case !f.exists:
	case q.cut:
		q.answerCut(&f)
	case q.Qtype == dns.TypeANY:
		q.answerAny(f)
	case q.answerDNSSEC(&f):
	case f.static.cname() != nil:
		q.answerStatic(f.static[dns.TypeCNAME])
		if q.Qtype != dns.TypeCNAME {
			return f.static.cname().Target
		}
	case f.srv != nil && q.Qtype == dns.TypeSRV:
		q.answerSRV(f.srv)
	default:
		q.answerName(f)
	}
	if len(q.m.Answer) == before {
		q.deny(&f)
	}
	return ""
}

// known reports whether the snapshot holds any node that phones could use.
func (q *query) known() bool {
	if q.mesh == nil {
		return false
	}
	for _, n := range q.mesh.Nodes {
		if len(n.Addresses) > 0 {
			return true
		}
	}
	return false
}

// dynamic reports whether the answer would come from the nodes.
func (q *query) dynamic(f found) bool {
	if !f.exists {
		return parent(q.name) == q.z.origin && q.name[0] != '_' // the name of a node to come
	}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeNAPTR:
		return f.service
	case dns.TypeSRV:
		return f.srv != nil
	}
	return false
}

// answerAny is the minimal answer of RFC 8482 section 4.2.
func (q *query) answerAny(f found) {
	if f.empty() {
		return
	}
	if c := f.static[dns.TypeCNAME]; c != nil {
		q.answerStatic(c) // any of the sets will do, and beside this one stands no other
		return
	}
	q.m.Answer = append(q.m.Answer, &dns.HINFO{Hdr: q.header(dns.TypeHINFO, 3600), Cpu: "RFC8482"})
}

// answerStatic appends a record set of the zone file, with the name that was asked:
// a wildcard's owner is another.
func (q *query) answerStatic(set []dns.RR) {
	for _, rr := range set {
		rr = dns.Copy(rr)
		rr.Header().Name = q.Name
		q.m.Answer = append(q.m.Answer, rr)
	}
}

func (q *query) answerName(f found) {
	if set := f.static[q.Qtype]; set != nil {
		q.answerStatic(set)
		return
	}
	switch q.Qtype {
	case dns.TypeSOA:
		if f.apex != nil {
			q.m.Answer = append(q.m.Answer, q.soa(seconds(q.z.opts.HostTTL)))
		}
	case dns.TypeNS:
		if f.apex != nil {
			q.answerNS()
		}
	case dns.TypeA, dns.TypeAAAA:
		if f.service {
			q.answerBest()
			return
		}
		ttl := q.z.opts.HostTTL
		if f.nsHost {
			ttl = q.z.opts.NSTTL
		}
		for _, a := range f.addresses {
			if rr := addressRR(q.header(q.Qtype, seconds(ttl)), a); rr != nil {
				q.m.Answer = append(q.m.Answer, rr)
			}
		}
	case dns.TypeNAPTR:
		if f.service {
			q.answerNAPTR()
		}
	}
}

// familyOf returns which addresses a question is about.
func familyOf(qtype uint16) selection.Family {
	switch qtype {
	case dns.TypeA:
		return selection.IPv4
	case dns.TypeAAAA:
		return selection.IPv6
	}
	return selection.AnyFamily
}

// answerBest gives one address of the best node that has one of the family; the answer is
// empty only when no node has. Several brands of phones shuffle what they get, or keep
// the first, so there is never a second address.
func (q *query) answerBest() {
	d := q.decide()
	if len(d.Nodes) == 0 {
		return
	}
	for _, a := range q.mesh.Nodes[d.Nodes[0]].Addresses {
		if rr := addressRR(q.header(q.Qtype, q.ttl()), a); rr != nil {
			q.m.Answer = append(q.m.Answer, rr)
			return
		}
	}
}

// offering returns the best nodes that offer t, at most srvAnswers.
func (q *query) offering(t *transport) []pbxmesh.NodeID {
	var nodes []pbxmesh.NodeID
	for _, id := range q.decide().Nodes {
		if t.port(q.mesh.Nodes[id].Ports) != 0 && len(nodes) < srvAnswers {
			nodes = append(nodes, id)
		}
	}
	return nodes
}

// answerSRV gives the best nodes with priorities of their own: phones that split
// load by weight would take no account of distance. The targets' addresses go
// along, which saves the phone a query.
func (q *query) answerSRV(t *transport) {
	for i, id := range q.offering(t) {
		n := q.mesh.Nodes[id]
		q.m.Answer = append(q.m.Answer, &dns.SRV{
			Hdr:      q.header(dns.TypeSRV, q.ttl()),
			Priority: uint16(10 * (i + 1)),
			Port:     t.port(n.Ports),
			Target:   q.z.NodeName(id),
		})
		f := q.z.lookupHost(q.view, q.z.apexes[q.z.origin], q.z.NodeName(id))
		q.additional(q.z.NodeName(id), f.addresses, q.z.opts.HostTTL)
	}
}

// answerNAPTR lists the transports that at least one of the nodes offers, each
// with an order of its own (RFC 3263 section 4.1).
func (q *query) answerNAPTR() {
	for i, t := range q.z.naptr {
		target := t.label + q.name
		if _, fits := dns.IsDomainName(target); !fits || len(q.offering(t)) == 0 {
			continue // below a tenant's name of 250 bytes there is no room
		}
		q.m.Answer = append(q.m.Answer, &dns.NAPTR{
			Hdr:         q.header(dns.TypeNAPTR, q.ttl()),
			Order:       uint16(10 * (i + 1)),
			Preference:  10,
			Flags:       "s",
			Service:     t.service,
			Replacement: target,
		})
	}
}

func (q *query) answerNS() {
	for _, ns := range q.z.opts.NameServers {
		q.m.Answer = append(q.m.Answer, &dns.NS{Hdr: q.header(dns.TypeNS, seconds(q.z.opts.NSTTL)), Ns: ns.Name})
		q.additional(ns.Name, q.z.names[ns.Name].addresses, q.z.opts.NSTTL)
	}
}

// additional appends the addresses of a host that an answer names.
func (q *query) additional(name string, addresses []netip.Addr, ttl time.Duration) {
	for _, a := range addresses {
		h := dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: seconds(ttl)}
		if !a.Unmap().Is4() {
			h.Rrtype = dns.TypeAAAA
		}
		q.m.Extra = append(q.m.Extra, addressRR(h, a))
	}
}

// decide chooses the nodes, once per query.
func (q *query) decide() *selection.Decision {
	if q.decision == nil {
		q.decision, q.block = q.choices.For(q.client, familyOf(q.Qtype))
		q.tailored = true
		if q.decision.Panic {
			q.z.warnPanic(q.mesh)
		}
	}
	return q.decision
}

// ttl is that of answers that depend on the client, in seconds: half while a node
// is down or draining, when the next change is likely to be near.
func (q *query) ttl() uint32 {
	ttl := seconds(q.z.opts.TTL)
	for id := range q.mesh.Nodes {
		switch q.mesh.States[id].Effective() {
		case pbxmesh.EffectiveDown, pbxmesh.EffectiveDraining:
			return max(1, ttl/2)
		}
	}
	return ttl
}

// header is that of a record at the queried name, in the case it was asked in:
// resolvers check it (draft-vixie-dnsext-dns0x20).
func (q *query) header(rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func (q *query) soa(ttl uint32) dns.RR {
	soa := q.apex.soa
	soa.Hdr = q.header(dns.TypeSOA, ttl)
	soa.Hdr.Name = q.Name[len(q.Name)-len(q.apex.name):]
	return &soa
}

// addressRR returns a as the record that h asks for; nil for the other family.
func addressRR(h dns.RR_Header, a netip.Addr) dns.RR {
	a = a.Unmap()
	switch {
	case h.Rrtype == dns.TypeA && a.Is4():
		return &dns.A{Hdr: h, A: a.AsSlice()}
	case h.Rrtype == dns.TypeAAAA && a.Is6():
		return &dns.AAAA{Hdr: h, AAAA: a.AsSlice()}
	}
	return nil
}

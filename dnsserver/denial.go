package dnsserver

import (
	"slices"

	"github.com/miekg/dns"
)

// deny says that there is no such type, or name, with the proof when it is wanted: one
// NSEC record at the name itself, made for the question (compact denial of existence,
// RFC 9824). A name that is not there gets one too, and its only type is NXNAME.
func (q *query) deny(f *found) {
	q.m.Ns = []dns.RR{q.soa(seconds(q.z.opts.NegativeTTL))}
	if !f.exists {
		q.m.Rcode = dns.RcodeNameError
	}
	if !q.signed() {
		return
	}
	q.m.Ns = append(q.m.Ns, q.nsec(f))
	if !f.exists && !q.co {
		// The proof shows a name that exists, and a validator believes the proof. Who
		// knows NXNAME says so by the CO flag (RFC 9824 section 5.1).
		q.m.Rcode = dns.RcodeSuccess
	}
}

// signed reports whether the records of the name's zone go out with signatures.
func (q *query) signed() bool { return q.do && q.view.signer.zone(q.apex) != nil }

// nsec is the record that says what is there at the name.
func (q *query) nsec(f *found) *dns.NSEC {
	return &dns.NSEC{
		Hdr:        q.header(dns.TypeNSEC, seconds(q.z.opts.NegativeTTL)), // RFC 9077
		NextDomain: successor(q.name),
		TypeBitMap: q.types(f),
	}
}

// types lists the types that stand at the name, the queried one left out: this is for
// an answer that has none. What depends on the client is listed when any client may get
// it, since resolvers may conclude from the list (RFC 8198).
func (q *query) types(f *found) []uint16 {
	if !f.exists {
		return []uint16{dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNXNAME}
	}
	types := []uint16{dns.TypeRRSIG, dns.TypeNSEC}
	for t := range f.static {
		types = append(types, t)
	}
	switch {
	case q.cut:
		types = []uint16{dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNS}
	case f.service:
		types = append(types, dns.TypeA, dns.TypeAAAA, dns.TypeNAPTR)
	case f.srv != nil:
		types = append(types, dns.TypeSRV)
	}
	if f.apex != nil && !q.cut {
		types = append(types, dns.TypeSOA, dns.TypeNS, dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY)
	}
	for _, a := range f.addresses {
		if a.Unmap().Is4() {
			types = append(types, dns.TypeA)
		} else {
			types = append(types, dns.TypeAAAA)
		}
	}
	slices.Sort(types)
	types = slices.Compact(types)
	return slices.DeleteFunc(types, func(t uint16) bool {
		return t == q.Qtype && t != dns.TypeRRSIG && t != dns.TypeNSEC
	})
}

// answerDNSSEC answers for the types that a signed zone has beside its records; false
// when the type is none of them, or the zone is not signed.
func (q *query) answerDNSSEC(f *found) bool {
	keys := q.view.signer.zone(q.apex)
	if keys == nil || q.cut {
		return false
	}
	var set []dns.RR
	switch q.Qtype {
	case dns.TypeNSEC:
		q.m.Answer = append(q.m.Answer, q.nsec(f))
		return true
	case dns.TypeRRSIG:
		// One of the signatures will do, as with ANY (RFC 8482 section 4.1).
		if sigs, err := q.view.signer.signatures(keys, []dns.RR{q.nsec(f)}); err == nil {
			q.m.Answer = append(q.m.Answer, sigs...)
		}
		return true
	case dns.TypeDNSKEY:
		set = keys.dnskey
	case dns.TypeCDS:
		set = keys.cds
	case dns.TypeCDNSKEY:
		set = keys.cdnskey
	default:
		return false
	}
	if f.apex == nil {
		return false
	}
	q.answerStatic(set)
	return true
}

// answerCut answers for the DS record of a zone of ours whose parent is ours too: it
// stands in the parent (RFC 4035 section 2.4).
func (q *query) answerCut(f *found) {
	if child := q.view.signer.zone(f.apex); child != nil {
		q.answerStatic(child.ds)
	}
}

// successor returns the next name after name (canonical) in the order of RFC 4034
// section 6.1, or one so close behind it that none of ours lies between (RFC 4471).
func successor(name string) string {
	if len(name) < 240 {
		return `\000.` + name
	}
	wire := make([]byte, 256)
	n, err := dns.PackDomainName(name, wire, 0, nil, false)
	if err != nil {
		return name
	}
	wire = wire[:n]
	switch first := int(wire[0]); {
	case n <= 253:
		wire = append([]byte{1, 0}, wire...)
	case n == 254 && first < 63:
		wire = slices.Insert(wire, 1+first, 0)
		wire[0]++
	default:
		wire = increment(wire)
	}
	next, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil {
		return name
	}
	return next
}

// increment counts the first label up. Bytes that are at their end are dropped.
func increment(wire []byte) []byte {
	for len(wire) > 1 {
		first := int(wire[0])
		for i := first; i > 0; i-- {
			if wire[i] == 0xff {
				continue
			}
			if wire[i]++; wire[i] == 'A' {
				wire[i] = 'Z' + 1 // upper case counts as lower case
			}
			wire[0] = byte(i)
			return slices.Delete(wire, 1+i, 1+first)
		}
		wire = wire[1+first:]
	}
	return wire
}

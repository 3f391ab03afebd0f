package dnsserver

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// ErrNotReady says that no node is known yet: any answer would be a guess.
var ErrNotReady = errors.New("no node is known yet")

// Record is a record for another name server that answers in our place.
type Record struct {
	RR dns.RR

	// Tailored says that other clients may get another one. Block is then the set of
	// clients that get the same; it has no address for a client that is not known.
	Tailored bool
	Block    netip.Prefix
}

// Apex is a zone that is served.
type Apex struct {
	Name   string // canonical
	Serial uint32
}

// Apexes returns the zones, in no order.
func (z *Zone) Apexes() []Apex {
	list := make([]Apex, 0, len(z.apexes))
	for name, a := range z.apexes {
		list = append(list, Apex{name, a.soa.Serial})
	}
	return list
}

// Records returns every record at name, a full name in any case, for client (the zero
// Addr is not known): what Answer gives for each type, without signatures, and a CNAME
// not followed. None: nothing stands there. ErrNotReady: ask again later.
func (z *Zone) Records(name string, client netip.Addr) ([]Record, error) {
	q := &query{z: z, m: new(dns.Msg), client: client, view: z.view()}
	q.Name, q.name, q.Qclass = strings.ToLower(name), strings.ToLower(name), dns.ClassINET
	if _, ok := dns.IsDomainName(q.Name); !ok {
		return nil, nil
	}
	if q.apex = z.zoneOf(q.name); q.apex == nil {
		return nil, nil
	}
	q.choices, q.mesh = q.view.choices, q.view.mesh
	f := z.lookup(q.view, q.apex, q.name)
	if !q.known() && (f.service || f.srv != nil || !f.exists && q.dynamic(f)) {
		return nil, ErrNotReady
	}
	if !f.exists {
		return nil, nil
	}
	var records []Record
	for _, t := range q.types(&f) {
		q.Qtype, q.m.Answer, q.decision, q.tailored = t, nil, nil, false
		switch {
		case t == dns.TypeNSEC || t == dns.TypeRRSIG || t == dns.TypeDNSKEY || t == dns.TypeCDS || t == dns.TypeCDNSKEY:
			continue // who answers signs
		case f.srv != nil && t == dns.TypeSRV:
			q.answerSRV(f.srv)
		default:
			q.answerName(f)
		}
		for _, rr := range q.m.Answer {
			records = append(records, Record{RR: rr, Tailored: q.tailored, Block: q.block})
		}
	}
	return records, nil
}

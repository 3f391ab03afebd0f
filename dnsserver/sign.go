package dnsserver

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Signatures are made when an answer needs them, and are the same for six hours: from
// an hour before these began (a validator's clock may be behind) until a fortnight
// after, twice the longest TTL there is. Nothing expires while a name server stands,
// and all records may change their signature at one moment, because each is signed by
// itself when it is asked for.
const (
	signSlot = 6 * time.Hour
	signBack = time.Hour
	signFor  = 14 * 24 * time.Hour
)

// maxSignatures bounds each of the two generations of kept signatures. Those of clients
// that ask for the usual names are few; random names below a wildcard are what fills it,
// and push out what nobody asked for since.
const maxSignatures = 8192

// keyring are the keys of all zones at one moment, immutable.
type keyring struct {
	zones map[string]*zoneKeys
	until time.Time // when one of their times comes; zero is never
}

// zoneKeys are the keys of one zone that stand in it or sign.
type zoneKeys struct {
	apex                     string
	dnskey, cds, cdnskey, ds []dns.RR
	forKeys, forRest         []*Key // who signs DNSKEY, CDS and CDNSKEY, and who the rest
}

// newZoneKeys sorts keys by what they do at now.
func newZoneKeys(apex string, keys []*Key, now time.Time) (*zoneKeys, error) {
	z := &zoneKeys{apex: apex}
	for _, k := range keys {
		if !k.Published(now) {
			continue
		}
		z.dnskey = append(z.dnskey, k.DNSKEY)
		if k.SEP() && (k.Inactive.IsZero() || now.Before(k.Inactive)) {
			ds := k.DS()
			z.ds = append(z.ds, ds)
			z.cds = append(z.cds, ds.ToCDS())
			z.cdnskey = append(z.cdnskey, k.DNSKEY.ToCDNSKEY())
			z.cds[len(z.cds)-1].Header().Ttl, z.cdnskey[len(z.cdnskey)-1].Header().Ttl = keyTTL, keyTTL
		}
		if !k.Active(now) {
			continue
		}
		if k.SEP() {
			z.forKeys = append(z.forKeys, k)
		} else {
			z.forRest = append(z.forRest, k)
		}
	}
	if len(z.forKeys) == 0 {
		return nil, fmt.Errorf("%w %s: run pbxmesh dns keygen, or copy the key files from another name server of the zone", ErrNoKey, apex)
	}
	if len(z.forRest) == 0 {
		z.forRest = z.forKeys
	}
	return z, nil
}

// nextKeyTime returns the first time of keys after now; zero when there is none.
func nextKeyTime(keys []*Key, now time.Time) (next time.Time) {
	for _, k := range keys {
		for _, t := range []time.Time{k.Publish, k.Activate, k.Inactive, k.Delete} {
			if t.After(now) && (next.IsZero() || t.Before(next)) {
				next = t
			}
		}
	}
	return next
}

// signer signs with one keyring for one slot of time, and keeps what it signed.
type signer struct {
	keys                  *keyring
	inception, expiration uint32
	until                 time.Time

	mu       sync.Mutex
	new, old map[string][]dns.RR
}

func newSigner(keys *keyring, now time.Time) *signer {
	slot := now.Truncate(signSlot)
	return &signer{
		keys:       keys,
		inception:  uint32(slot.Add(-signBack).Unix()), // serial arithmetic, RFC 4034 section 3.1.5
		expiration: uint32(slot.Add(signFor).Unix()),
		until:      slot.Add(signSlot),
		new:        make(map[string][]dns.RR),
	}
}

// zone returns the keys of a zone; nil when it is not signed.
func (s *signer) zone(a *apex) *zoneKeys {
	if s == nil || a == nil {
		return nil
	}
	return s.keys.zones[a.name]
}

// signatures returns the RRSIG records of one record set, whose records have one owner,
// type and TTL. It is a pure function of the set, the keys and the slot: the signature
// of a name below a wildcard is that of the name itself, so no proof goes with it that
// the name is not there (RFC 4035 section 3.1.3.3 asks for one where the label count is
// lower).
func (s *signer) signatures(z *zoneKeys, set []dns.RR) ([]dns.RR, error) {
	h := set[0].Header()
	key, err := setKey(set)
	if err != nil {
		return nil, err
	}
	kept, ok := s.kept(key)
	if !ok {
		if kept, err = s.sign(z, set); err != nil {
			return nil, err
		}
		s.keep(key, kept)
	}
	out := make([]dns.RR, len(kept))
	for i, rr := range kept {
		sig := *rr.(*dns.RRSIG)
		sig.Hdr.Name = h.Name // in the case of the answer
		out[i] = &sig
	}
	return out, nil
}

func (s *signer) sign(z *zoneKeys, set []dns.RR) ([]dns.RR, error) {
	h := set[0].Header()
	keys := z.forRest
	switch h.Rrtype {
	case dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY:
		keys = z.forKeys
	}
	out := make([]dns.RR, 0, len(keys))
	for _, k := range keys {
		sig := &dns.RRSIG{
			Hdr: dns.RR_Header{Ttl: h.Ttl}, Algorithm: k.DNSKEY.Algorithm, KeyTag: k.Tag, SignerName: z.apex,
			Inception: s.inception, Expiration: s.expiration,
		}
		if err := sig.Sign(k.signer, set); err != nil {
			return nil, fmt.Errorf("sign %s %s: %w", h.Name, dns.TypeToString[h.Rrtype], err)
		}
		out = append(out, sig)
	}
	return out, nil
}

func (s *signer) kept(key string) ([]dns.RR, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sigs, ok := s.new[key]; ok {
		return sigs, true
	}
	sigs, ok := s.old[key]
	if ok {
		s.put(key, sigs)
	}
	return sigs, ok
}

func (s *signer) keep(key string, sigs []dns.RR) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(key, sigs)
}

func (s *signer) put(key string, sigs []dns.RR) {
	if len(s.new) >= maxSignatures {
		s.old, s.new = s.new, make(map[string][]dns.RR)
	}
	s.new[key] = sigs
}

// setKey names a record set by what is signed of it: owner without case, and type,
// class, TTL and data of each record.
func setKey(set []dns.RR) (string, error) {
	size := 0
	for _, rr := range set {
		size += dns.Len(rr)
	}
	key := append(make([]byte, 0, size+256), strings.ToLower(set[0].Header().Name)...)
	scratch := make([]byte, size+256)
	for _, rr := range set {
		n, err := dns.PackRR(rr, scratch, 0, nil, false)
		if err != nil {
			return "", err
		}
		key = append(key, scratch[skipName(scratch[:n], 0):n]...)
	}
	return string(key), nil
}

// sign puts the signatures into the answer.
func (q *query) sign() error {
	for _, section := range []*[]dns.RR{&q.m.Answer, &q.m.Ns, &q.m.Extra} {
		signed, err := q.signSection(*section)
		if err != nil {
			return err
		}
		*section = signed
	}
	return nil
}

// signSection returns the records set by set, each with its signatures behind it.
// Record sets of zones without keys, and signatures that stand there already, stay as
// they are.
func (q *query) signSection(rrs []dns.RR) ([]dns.RR, error) {
	out := make([]dns.RR, 0, 2*len(rrs))
	done := make([]bool, len(rrs))
	for i, rr := range rrs {
		if done[i] {
			continue
		}
		h := rr.Header()
		set := make([]dns.RR, 0, len(rrs)-i)
		for j := i; j < len(rrs); j++ {
			if o := rrs[j].Header(); o.Rrtype == h.Rrtype && o.Name == h.Name {
				set = append(set, rrs[j])
				done[j] = true
			}
		}
		out = append(out, set...)
		a := q.z.zoneOf(strings.ToLower(h.Name))
		if q.cut {
			a = q.apex // of the parent
		}
		keys := q.view.signer.zone(a)
		if keys == nil || h.Rrtype == dns.TypeRRSIG {
			continue
		}
		sigs, err := q.view.signer.signatures(keys, set)
		if err != nil {
			return nil, err
		}
		out = append(out, sigs...)
	}
	return out, nil
}

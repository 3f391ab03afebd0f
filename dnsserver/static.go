package dnsserver

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Bounds of a zone file.
const (
	maxZoneFile    = 4 << 20 // bytes
	maxZoneRecords = 20_000
	maxRRset       = 16 << 10 // bytes of one record set on the wire, so that it fits into any answer
	maxStaticTTL   = 7 * 24 * time.Hour
	maxZoneErrors  = 10 // told at once

	// maxChain bounds the CNAMEs that are followed in one answer.
	maxChain = 8
)

// staticTTL is that of a record without one, in seconds, when no $TTL stands above it.
const staticTTL = 3600

// static is the content of a zone file, immutable.
type static struct {
	// names holds the record sets by canonical owner; an empty non-terminal has none.
	names   map[string]rrsets
	records int
	loaded  time.Time
	err     error // why the file as it is now is not in force
}

// rrsets are the record sets of one name, by type.
type rrsets map[uint16][]dns.RR

// takesAddress reports whether the records leave no room for a node's addresses.
func (s rrsets) takesAddress() bool {
	return s[dns.TypeA] != nil || s[dns.TypeAAAA] != nil || s[dns.TypeCNAME] != nil
}

func (s rrsets) cname() *dns.CNAME {
	if set := s[dns.TypeCNAME]; set != nil {
		return set[0].(*dns.CNAME)
	}
	return nil
}

// staticTypes are what a zone file may hold. What is missing is either made here (SOA,
// NS, everything of DNSSEC), or never asked for by name.
var staticTypes = map[uint16]bool{
	dns.TypeA: true, dns.TypeAAAA: true, dns.TypeCNAME: true, dns.TypeMX: true, dns.TypeTXT: true, dns.TypeCAA: true,
	dns.TypeSRV: true, dns.TypeNAPTR: true, dns.TypeTLSA: true, dns.TypeSSHFP: true, dns.TypeURI: true,
	dns.TypeHTTPS: true, dns.TypeSVCB: true, dns.TypePTR: true, dns.TypeLOC: true, dns.TypeRP: true,
	dns.TypeSMIMEA: true, dns.TypeOPENPGPKEY: true,
}

var refusedTypes = map[uint16]string{
	dns.TypeSOA: "the SOA record is made from dns.zone and dns.hostmaster: remove it",
	dns.TypeNS:  "NS records are those of dns.nameservers, and parts of the zone are not delegated: remove it; delegate beside the zone, in its parent",
	dns.TypeDS:  "parts of the zone are not delegated: remove it",
}

// positioned is where miekg/dns tells the place of a mistake.
var positioned = regexp.MustCompile(`^(?:.*?: )?dns: (.*) at line: (\d+):\d+$`)

// lineReader counts the lines that the parser has taken.
type lineReader struct {
	bytes.Reader
	line int
}

// ReadByte makes the parser read byte by byte, so that line is where it stands.
func (r *lineReader) ReadByte() (byte, error) {
	b, err := r.Reader.ReadByte()
	if b == '\n' {
		r.line++
	}
	return b, err
}

// zoneReader collects the records of one zone file, and what is wrong with them.
type zoneReader struct {
	z    *Zone
	file string
	out  *static
	line map[string]int // where a name first stood
	errs []error
}

// parseStatic reads a zone file (RFC 1035 section 5.1) for z. Relative names stand
// under the origin. It is all or nothing: the error names every line that is wrong, at
// most ten, each with file and line. A record of several lines has the number of its
// last one.
func (z *Zone) parseStatic(src []byte, file string) (*static, error) {
	if len(src) > maxZoneFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: this is no zone file", file, maxZoneFile)
	}
	r := &zoneReader{z: z, file: file, out: &static{names: make(map[string]rrsets)}, line: make(map[string]int)}
	in := &lineReader{line: 1}
	if n := len(src); n > 0 && src[n-1] != '\n' {
		src = append(src[:n:n], '\n')
	}
	in.Reset(src)
	p := dns.NewZoneParser(in, z.origin, "")
	p.SetDefaultTTL(staticTTL)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if r.out.records++; r.out.records > maxZoneRecords {
			r.wrong(in.line-1, "more than %d records", maxZoneRecords)
			break
		}
		r.add(rr, in.line-1)
	}
	if err := p.Err(); err != nil {
		r.parseError(err)
	}
	if len(r.errs) == 0 {
		r.finish()
	}
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return r.out, nil
}

func (r *zoneReader) wrong(line int, format string, args ...any) {
	if len(r.errs) < maxZoneErrors {
		r.errs = append(r.errs, fmt.Errorf("%s:%d: "+format, append([]any{r.file, line}, args...)...))
	}
}

func (r *zoneReader) parseError(err error) {
	m := positioned.FindStringSubmatch(err.Error())
	if m == nil {
		r.errs = append(r.errs, fmt.Errorf("%s: %w", r.file, err))
		return
	}
	line, _ := strconv.Atoi(m[2])
	what := m[1]
	if strings.Contains(what, "$INCLUDE") {
		what = "$INCLUDE is not read: write the records themselves"
	}
	r.wrong(line, "%s", what)
}

// add checks one record and puts it in.
func (r *zoneReader) add(rr dns.RR, line int) {
	h := rr.Header()
	h.Name = strings.ToLower(h.Name)
	name, kind := h.Name, dns.TypeToString[h.Rrtype]
	if why := r.refused(rr); why != "" {
		r.wrong(line, "%s %s: %s", name, kind, why)
		return
	}
	if _, ok := r.line[name]; !ok {
		r.line[name] = line
	}
	sets := r.out.names[name]
	if sets == nil {
		sets = make(rrsets)
		r.out.names[name] = sets
	}
	if h.Rrtype != dns.TypeCNAME && sets[dns.TypeCNAME] != nil || h.Rrtype == dns.TypeCNAME && len(sets) > 0 {
		r.wrong(line, "%s %s: a CNAME stands alone at its name; the first record there is in line %d", name, kind, r.line[name])
		return
	}
	for _, other := range sets[h.Rrtype] {
		if dns.IsDuplicate(rr, other) {
			r.out.records--
			return
		}
		if other.Header().Ttl != h.Ttl {
			r.wrong(line, "%s %s: the TTL is %d, another record of the set has %d: make them equal (RFC 2181 section 5.2)", name, kind, h.Ttl, other.Header().Ttl)
			return
		}
	}
	sets[h.Rrtype] = append(sets[h.Rrtype], rr)
	size := 0
	for _, other := range sets[h.Rrtype] {
		size += dns.Len(other)
	}
	if size > maxRRset {
		r.wrong(line, "%s %s: the set has more than %d bytes", name, kind, maxRRset)
	}
}

// refused says why a record cannot stand in the file; "" when it can.
func (r *zoneReader) refused(rr dns.RR) string {
	h := rr.Header()
	apex := r.z.zoneOf(h.Name)
	service := r.z.names[h.Name].service
	switch {
	case h.Class != dns.ClassINET:
		return "its class is not IN"
	case apex == nil:
		return "the name is in none of the zones; it needs its final dot only when it is a full name"
	case refusedTypes[h.Rrtype] != "":
		return refusedTypes[h.Rrtype]
	case !staticTypes[h.Rrtype]:
		return "records of this type are not served"
	case time.Duration(h.Ttl)*time.Second > maxStaticTTL:
		return fmt.Sprintf("the TTL is longer than %v", maxStaticTTL)
	case !plainOwner(h.Name):
		return "the name has other characters than letters, digits, '-', '_' and a leading '*'"
	case dns.Len(rr) > maxRRset:
		return fmt.Sprintf("the record has more than %d bytes", maxRRset)
	}
	switch h.Rrtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeNAPTR:
		if service {
			return "the name is a service name, whose answers come from the nodes"
		}
		if r.z.names[h.Name].host && h.Rrtype != dns.TypeNAPTR {
			return "the name is a name server's, whose addresses stand in dns.nameservers"
		}
	}
	if h.Rrtype == dns.TypeSRV || h.Rrtype == dns.TypeCNAME {
		if r.z.lookupService(&view{static: &static{}}, apex, h.Name).srv != nil {
			return "SRV records of a service name come from the nodes"
		}
	}
	return ""
}

// finish puts the empty non-terminals in, and checks what takes the whole file.
func (r *zoneReader) finish() {
	owners := make([]string, 0, len(r.out.names))
	for name := range r.out.names {
		owners = append(owners, name)
	}
	for _, name := range owners {
		a := r.z.zoneOf(name)
		for up := parent(name); len(up) > len(a.name); up = parent(up) {
			if _, ok := r.out.names[up]; !ok {
				r.out.names[up] = nil
			}
		}
	}
	v := &view{static: r.out, mesh: r.z.opts.Source.Mesh()}
	for _, name := range owners {
		r.nodeName(v, name)
		r.chain(v, name)
	}
}

// nodeName refuses an address at the host name of a node that is known.
func (r *zoneReader) nodeName(v *view, name string) {
	if parent(name) != r.z.origin || !r.out.names[name].takesAddress() || v.mesh == nil {
		return
	}
	for id, n := range v.mesh.Nodes {
		if r.z.NodeName(id) == name && len(n.Addresses) > 0 {
			r.wrong(r.line[name], "%s is the host name of a node, whose addresses it announces itself", name)
		}
	}
}

// chain follows the CNAME of name as an answer would.
func (r *zoneReader) chain(v *view, name string) {
	target := name
	for hops := 0; ; hops++ {
		a := r.z.zoneOf(target)
		if a == nil {
			return
		}
		f := r.z.lookup(v, a, target)
		c := f.static.cname()
		if c == nil {
			return
		}
		if hops == maxChain {
			r.wrong(r.line[name], "%s: its CNAME leads on more than %d times, or in a circle", name, maxChain)
			return
		}
		target = strings.ToLower(c.Target)
	}
}

// plainOwner reports whether name needs no escaping anywhere.
func plainOwner(name string) bool {
	name = strings.TrimPrefix(name, "*.")
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

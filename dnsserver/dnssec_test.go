package dnsserver

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// signedZone is staticZone with a key for each zone in its KeyDir.
func signedZone(t testing.TB, change ...func(*ZoneOptions)) *Zone {
	t.Helper()
	dir := t.TempDir()
	change = append([]func(*ZoneOptions){func(o *ZoneOptions) { o.KeyDir, o.GenerateKeys = dir, true }}, change...)
	z, _ := staticZone(t, fixtures.ThreeTowns(nil), testZoneFile, change...)
	return z
}

func withDO(m *dns.Msg) { m.SetEdns0(1232, true) }

func withCO(m *dns.Msg) {
	withDO(m)
	m.IsEdns0().SetCo()
}

func dnskeys(t testing.TB, z *Zone) map[string][]*dns.DNSKEY {
	t.Helper()
	keys := make(map[string][]*dns.DNSKEY)
	for apex := range z.apexes {
		for _, rr := range ask(t, z, defaultClient, apex, dns.TypeDNSKEY).Answer {
			keys[apex] = append(keys[apex], rr.(*dns.DNSKEY))
		}
	}
	return keys
}

// checkSignatures reports what is not signed, or wrongly, in one section. It knows
// nothing of how signatures are made here: it verifies them with the published keys.
func checkSignatures(t testing.TB, z *Zone, keys map[string][]*dns.DNSKEY, section []dns.RR) {
	t.Helper()
	type set struct {
		name  string
		qtype uint16
	}
	sets := make(map[set][]dns.RR)
	sigs := make(map[set][]*dns.RRSIG)
	for _, rr := range section {
		h := rr.Header()
		switch rr := rr.(type) {
		case *dns.OPT:
		case *dns.RRSIG:
			k := set{h.Name, rr.TypeCovered}
			sigs[k] = append(sigs[k], rr)
		default:
			k := set{h.Name, h.Rrtype}
			sets[k] = append(sets[k], rr)
		}
	}
	for k, rrs := range sets {
		good := false
		for _, sig := range sigs[k] {
			for _, key := range keys[sig.SignerName] {
				if key.KeyTag() != sig.KeyTag || !sig.ValidityPeriod(z.now()) || int(sig.Labels) != dns.CountLabel(strings.TrimPrefix(k.name, "*.")) {
					continue
				}
				if err := sig.Verify(key, rrs); err != nil {
					t.Errorf("%s %s: %v", k.name, dns.Type(k.qtype), err)
				} else {
					good = true
				}
			}
		}
		if !good {
			t.Errorf("%s %s has no good signature among %v", k.name, dns.Type(k.qtype), sigs[k])
		}
	}
}

func TestSignedAnswers(t *testing.T) {
	t.Parallel()
	z := signedZone(t)
	keys := dnskeys(t, z)
	for _, tt := range []struct {
		name    string
		qtype   uint16
		answers int    // records without signatures
		types   string // of the NSEC record; "" is none
		nx      bool
	}{
		{name: "pbx.example.com.", qtype: dns.TypeA, answers: 1},
		{name: "PBX.Example.com.", qtype: dns.TypeAAAA, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeSOA, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeNS, answers: 3},
		{name: "pbx.example.com.", qtype: dns.TypeDNSKEY, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeCDS, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeCDNSKEY, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeNAPTR, answers: 5},
		{name: "pbx.example.com.", qtype: dns.TypeANY, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeMX, answers: 1},
		{name: "_sip._udp.pbx.example.com.", qtype: dns.TypeSRV, answers: 3},
		{name: "Tenant.pbx.example.com.", qtype: dns.TypeA, answers: 1},
		{name: "*.pbx.example.com.", qtype: dns.TypeA, answers: 1},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeTXT, answers: 1},
		{name: "one.dev.pbx.example.com.", qtype: dns.TypeA, answers: 1},
		{name: "london.pbx.example.com.", qtype: dns.TypeA, answers: 1},
		{name: "chain.pbx.example.com.", qtype: dns.TypeA, answers: 3},
		{name: "phones.customer.example.", qtype: dns.TypeA, answers: 1},
		{name: "phones.customer.example.", qtype: dns.TypeDNSKEY, answers: 1},
		{name: "pbx.example.com.", qtype: dns.TypeNSEC, answers: 1},

		{name: "pbx.example.com.", qtype: dns.TypeDS, types: "A NS SOA MX TXT AAAA NAPTR RRSIG NSEC DNSKEY CDS CDNSKEY CAA"},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeMX, types: "A TXT AAAA NAPTR RRSIG NSEC"},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeDNSKEY, types: "A TXT AAAA NAPTR RRSIG NSEC"},
		{name: "london.pbx.example.com.", qtype: dns.TypeAAAA, types: "A SSHFP RRSIG NSEC"},
		{name: "London.pbx.example.com.", qtype: dns.TypeTXT, types: "A SSHFP RRSIG NSEC"},
		{name: "_sip._udp.pbx.example.com.", qtype: dns.TypeA, types: "TXT SRV RRSIG NSEC"},
		{name: "_udp.pbx.example.com.", qtype: dns.TypeSRV, types: "RRSIG NSEC"},
		{name: "x.london.pbx.example.com.", qtype: dns.TypeA, types: "RRSIG NSEC NXNAME", nx: true},
		{name: "_nothing.pbx.example.com.", qtype: dns.TypeANY, types: "RRSIG NSEC NXNAME", nx: true},
		{name: "x.london.pbx.example.com.", qtype: dns.TypeNSEC, types: "RRSIG NSEC NXNAME", nx: true},
		{name: "gone.pbx.example.com.", qtype: dns.TypeA, answers: 1, types: "RRSIG NSEC NXNAME", nx: true},
	} {
		t.Run(fmt.Sprintf("%s %s", tt.name, dns.Type(tt.qtype)), func(t *testing.T) {
			t.Parallel()
			m := ask(t, z, defaultClient, tt.name, tt.qtype, withDO)
			for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
				checkSignatures(t, z, keys, section)
			}
			if n := len(withoutSignatures(m.Answer)); n != tt.answers {
				t.Errorf("%d records, want %d: %v", n, tt.answers, m.Answer)
			}
			if m.Rcode != dns.RcodeSuccess || m.IsEdns0().Co() {
				t.Errorf("%v", m)
			}
			checkNSEC(t, m, tt.types)

			// Who understands NXNAME gets the response code too.
			co := ask(t, z, defaultClient, tt.name, tt.qtype, withCO)
			if (co.Rcode == dns.RcodeNameError) != tt.nx || !co.IsEdns0().Co() || len(co.Ns) != len(m.Ns) {
				t.Errorf("with CO: %v", co)
			}

			// Who does not ask for signatures gets none, and the usual code.
			plain := ask(t, z, defaultClient, tt.name, tt.qtype, func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetCo() })
			if (plain.Rcode == dns.RcodeNameError) != tt.nx || plain.IsEdns0().Co() {
				t.Errorf("without DO: %v", plain)
			}
			for _, rr := range slices.Concat(plain.Answer, plain.Ns, plain.Extra) {
				if rr.Header().Rrtype == dns.TypeRRSIG || rr.Header().Rrtype == dns.TypeNSEC && tt.qtype != dns.TypeNSEC {
					t.Errorf("without DO: %v", rr)
				}
			}
		})
	}
}

func withoutSignatures(rrs []dns.RR) []dns.RR {
	return slices.DeleteFunc(slices.Clone(rrs), func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeRRSIG })
}

func checkNSEC(t *testing.T, m *dns.Msg, types string) {
	t.Helper()
	for _, rr := range m.Ns {
		nsec, ok := rr.(*dns.NSEC)
		if !ok {
			continue
		}
		var list []string
		for _, b := range nsec.TypeBitMap {
			list = append(list, dns.Type(b).String())
		}
		if got := strings.Join(list, " "); got != types {
			t.Errorf("types %s, want %s", got, types)
		}
		if strings.ToLower(nsec.NextDomain) != `\000.`+strings.ToLower(nsec.Hdr.Name) || nsec.Hdr.Ttl != 10 {
			t.Errorf("%v", nsec)
		}
		return
	}
	if types != "" {
		t.Errorf("no proof in %v", m)
	}
}

func TestSignedEdges(t *testing.T) {
	t.Parallel()
	z := signedZone(t)
	m := ask(t, z, defaultClient, "x.pbx.example.com.", dns.TypeNXNAME, withDO)
	if ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE); m.Rcode != dns.RcodeFormatError || !ok || ede.InfoCode != dns.ExtendedErrorCodeInvalidQueryType {
		t.Errorf("a question for NXNAME: %v", m)
	}
	if m := ask(t, z, defaultClient, "tenant.pbx.example.com.", dns.TypeRRSIG, withDO); len(m.Answer) != 1 || m.Answer[0].Header().Rrtype != dns.TypeRRSIG {
		t.Errorf("a question for RRSIG: %v", m)
	}
	if m := ask(t, z, defaultClient, "example.org.", dns.TypeA, withDO); m.Rcode != dns.RcodeRefused || len(m.Ns) != 0 {
		t.Errorf("not ours: %v", m)
	}
	// A signed answer fits what the path carries, or is cut by the rules.
	req := new(dns.Msg)
	req.SetQuestion("_sip._udp.pbx.example.com.", dns.TypeSRV)
	withDO(req)
	packet, _ := req.Pack()
	out := z.Respond(packet, defaultClient, true)
	if err := m.Unpack(out); err != nil || m.Truncated || len(out) > MaxUDPSize || len(m.Answer) != 4 {
		t.Errorf("SRV over UDP: %d bytes, %v %v", len(out), err, m)
	}
	// Kept answers are not for who sets other flags.
	_, addr := startServer(t, z)
	for range 4 {
		for _, form := range []struct {
			change func(*dns.Msg)
			rcode  int
		}{{func(*dns.Msg) {}, dns.RcodeNameError}, {withDO, dns.RcodeSuccess}, {withCO, dns.RcodeNameError}} {
			req := new(dns.Msg)
			req.SetQuestion("x.london.pbx.example.com.", dns.TypeA)
			form.change(req)
			m, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(req, addr)
			if err != nil || m.Rcode != form.rcode || (len(m.Ns) > 1) != (req.IsEdns0() != nil) {
				t.Errorf("%v %v", err, m)
			}
		}
	}
	// Long names have successors too.
	label := strings.Repeat("x", 63) + "."
	for _, first := range []string{"y", strings.Repeat("y", 41), strings.Repeat("y", 42), strings.Repeat("y", 43), strings.Repeat("y", 44)} {
		name := first + "." + label + label + label + "london.pbx.example.com."
		if _, ok := dns.IsDomainName(name); !ok {
			name = first + "." + label + label + "london.pbx.example.com."
		}
		m := ask(t, z, defaultClient, name, dns.TypeA, withDO)
		checkSignatures(t, z, dnskeys(t, z), m.Ns)
	}
}

func TestSuccessor(t *testing.T) {
	t.Parallel()
	x63 := strings.Repeat("x", 63) + "."
	for name, want := range map[string]string{
		"a.example.": `\000.a.example.`,
		strings.Repeat("a", 59) + "." + x63 + x63 + x63:        `\000.` + strings.Repeat("a", 59) + "." + x63 + x63 + x63, // 253 bytes
		strings.Repeat("a", 60) + "." + x63 + x63 + x63:        strings.Repeat("a", 60) + `\000.` + x63 + x63 + x63,       // 254
		strings.Repeat("a", 61) + "." + x63 + x63 + x63:        strings.Repeat("a", 60) + "b." + x63 + x63 + x63,          // 255
		strings.Repeat("a", 60) + "@." + x63 + x63 + x63:       strings.Repeat("a", 60) + "[." + x63 + x63 + x63,          // past upper case
		strings.Repeat("a", 60) + `\255.` + x63 + x63 + x63:    strings.Repeat("a", 59) + "b." + x63 + x63 + x63,          // carry
		strings.Repeat(`\255`, 61) + "." + x63 + x63 + x63:     strings.Repeat("x", 62) + "y." + x63 + x63,                // into the next label
		strings.Repeat("a", 61) + "." + x63 + x63 + "x." + x63: "",
	} {
		if want == "" {
			continue
		}
		if got := strings.ReplaceAll(successor(name), `\@`, "@"); got != want {
			t.Errorf("after %.20s… (%d bytes): %q, want %q", name, len(name)+1, got, want)
		}
	}
}

// Two name servers with the same keys make the same signatures, and each goes on with
// one for a while.
func TestSignaturesAreShared(t *testing.T) {
	t.Parallel()
	a := signedZone(t)
	b := signedZone(t, func(o *ZoneOptions) { o.KeyDir, o.GenerateKeys = a.opts.KeyDir, false })
	now := time.Date(2026, 11, 26, 12, 0, 1, 0, time.UTC)
	a.now, b.now = func() time.Time { return now }, func() time.Time { return now.Add(5 * time.Hour) }
	text := func(z *Zone, name string, qtype uint16) string {
		return ask(t, z, defaultClient, name, qtype, withDO, func(m *dns.Msg) { m.Id = 1 }).String()
	}
	for _, q := range []dns.Question{{Name: "pbx.example.com.", Qtype: dns.TypeA}, {Name: "pbx.example.com.", Qtype: dns.TypeDNSKEY}, {Name: "x.london.pbx.example.com.", Qtype: dns.TypeA}} {
		if x, y := text(a, q.Name, q.Qtype), text(b, q.Name, q.Qtype); x != y {
			t.Errorf("differ:\n%s\n%s", x, y)
		}
	}
	sig := func() *dns.RRSIG {
		return ask(t, a, defaultClient, "pbx.example.com.", dns.TypeA, withDO).Answer[1].(*dns.RRSIG)
	}
	first := sig()
	if from, to := time.Unix(int64(first.Inception), 0).UTC(), time.Unix(int64(first.Expiration), 0).UTC(); from != now.Truncate(signSlot).Add(-signBack) || to != now.Truncate(signSlot).Add(signFor) {
		t.Errorf("valid from %v to %v", from, to)
	}
	edition := a.edition.Load()
	now = now.Add(signSlot - 2*time.Second)
	if sig().Signature != first.Signature || a.edition.Load() != edition {
		t.Error("another signature within the slot")
	}
	now = now.Add(2 * time.Second)
	if second := sig(); second.Signature == first.Signature || !second.ValidityPeriod(now) || a.edition.Load() == edition {
		t.Error("the signature of the slot before is still given")
	}
}

func TestSignatureCacheIsBounded(t *testing.T) {
	t.Parallel()
	z := signedZone(t)
	s := z.view().signer
	keys := s.zone(z.apexes[z.origin])
	for i := range 2*maxSignatures + 10 {
		s.keep(fmt.Sprint(i), nil)
		if i%1000 == 0 {
			if _, ok := s.kept("0"); !ok {
				t.Fatal("what is asked for again and again is forgotten")
			}
		}
	}
	if n := len(s.new) + len(s.old); n > 2*maxSignatures {
		t.Errorf("%d kept", n)
	}
	if _, err := s.signatures(keys, []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA, Class: 1}, A: []byte{1}}}); err == nil {
		t.Error("a record that cannot be packed was signed")
	}
}

func keyFile(t *testing.T, dir, ext string) string {
	t.Helper()
	m, err := filepath.Glob(filepath.Join(dir, "Kpbx.example.com.*"+ext))
	if err != nil || len(m) != 1 {
		t.Fatal(m, err)
	}
	return m[0]
}

func rewrite(t *testing.T, file string, f func(string) string) {
	t.Helper()
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := os.Stat(file)
	if err := os.WriteFile(file, []byte(f(string(old))), info.Mode()); err != nil {
		t.Fatal(err)
	}
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name, want string
		change     func(dir string)
	}{
		{"whole", "", func(string) {}},
		{"no folder", "no such file", func(dir string) { _ = os.RemoveAll(dir) }},
		{"open to all", "chmod o-rwx", func(dir string) { _ = os.Chmod(keyFile(t, dir, ".private"), 0o604) }},
		{"no private part", ErrNoKey.Error(), func(dir string) { _ = os.Remove(keyFile(t, dir, ".private")) }},
		{"no public part", ErrNoKey.Error(), func(dir string) { _ = os.Remove(keyFile(t, dir, ".key")) }},
		{"nonsense", "no DNSKEY record", func(dir string) { rewrite(t, keyFile(t, dir, ".key"), func(string) string { return "hello\n" }) }},
		{"nonsense inside", ".private", func(dir string) { rewrite(t, keyFile(t, dir, ".private"), func(string) string { return "hello\n" }) }},
		{"other zone", "not of pbx.example.com.", func(dir string) {
			rewrite(t, keyFile(t, dir, ".key"), func(s string) string { return strings.ReplaceAll(s, "pbx.example.com.", "pbx.example.net.") })
		}},
		{"other algorithm", "only 13", func(dir string) {
			rewrite(t, keyFile(t, dir, ".key"), func(s string) string { return strings.Replace(s, " 3 13 ", " 3 14 ", 1) })
		}},
		{"revoked", "no key that signs", func(dir string) {
			rewrite(t, keyFile(t, dir, ".key"), func(s string) string { return strings.Replace(s, "257 3 13 ", "385 3 13 ", 1) })
		}},
		{"pair of two", "does not belong", func(dir string) {
			k, err := GenerateKey(t.TempDir(), "pbx.example.com", now, now)
			if err != nil {
				t.Fatal(err)
			}
			other, _ := os.ReadFile(k.File + ".private")
			rewrite(t, keyFile(t, dir, ".private"), func(string) string { return string(other) })
		}},
		{"time", "YYYYMMDDHHMMSS", func(dir string) {
			rewrite(t, keyFile(t, dir, ".private"), func(s string) string { return s + "Inactive: tomorrow\n" })
		}},
		{"over", ErrNoKey.Error(), func(dir string) {
			rewrite(t, keyFile(t, dir, ".private"), func(s string) string { return s + "Inactive: 20200101000000\n" })
		}},
		{"too many", "at most 8", func(dir string) {
			for range maxKeys {
				if _, err := GenerateKey(dir, "pbx.example.com", now, now); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, zone := range []string{"pbx.example.com", "phones.customer.example", "elsewhere.example"} {
				if _, err := GenerateKey(dir, zone, now.Add(-time.Hour), now.Add(-time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			if info, err := os.Stat(keyFile(t, dir, ".private")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info.Mode(), err)
			}
			tt.change(dir)
			s := &source{}
			o := testZoneOptions(t, s)
			o.KeyDir = dir
			_, err := NewZone(o)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// A rollover: the new key is published, both sign, the old one goes. At each step every
// answer validates with every key that a cache may hold from the step before.
func TestKeyRollover(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	z := signedZone(t, func(o *ZoneOptions) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	now := time.Now().UTC().Truncate(time.Second)
	z.now = func() time.Time { return now }
	poll := func() {
		for range 2 {
			now = now.Add(pollFiles)
			z.pollKeys()
		}
	}
	signers := func() (tags []uint16) {
		for _, rr := range ask(t, z, defaultClient, "pbx.example.com.", dns.TypeA, withDO).Answer[1:] {
			tags = append(tags, rr.(*dns.RRSIG).KeyTag)
		}
		return tags
	}
	first := signers()[0]
	old, err := ReadKeys(z.opts.KeyDir, "pbx.example.com")
	if err != nil {
		t.Fatal(err)
	}
	next, err := GenerateKey(z.opts.KeyDir, "pbx.example.com", now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	stamp := func(k *Key, field string, at time.Time) {
		rewrite(t, k.File+".private", func(s string) string { return fmt.Sprintf("%s%s: %s\n", s, field, at.Format(keyTime)) })
	}
	poll()
	if got := dnskeys(t, z)["pbx.example.com."]; len(got) != 2 || !slices.Equal(signers(), []uint16{first}) {
		t.Errorf("published: %v, signed by %v", got, signers())
	}
	if m := ask(t, z, defaultClient, "pbx.example.com.", dns.TypeCDS); len(m.Answer) != 2 {
		t.Errorf("CDS: %v", m.Answer)
	}
	now = now.Add(time.Hour)
	poll()
	if got := signers(); len(got) != 2 {
		t.Errorf("active: signed by %v", got)
	}
	checkSignatures(t, z, dnskeys(t, z), ask(t, z, defaultClient, "pbx.example.com.", dns.TypeDNSKEY, withDO).Answer)
	stamp(old[0], "Inactive", now)
	stamp(old[0], "Delete", now.Add(time.Hour))
	poll()
	if got := dnskeys(t, z)["pbx.example.com."]; len(got) != 2 || !slices.Equal(signers(), []uint16{next.Tag}) {
		t.Errorf("inactive: %v, signed by %v", got, signers())
	}
	if m := ask(t, z, defaultClient, "pbx.example.com.", dns.TypeCDS); len(m.Answer) != 1 || m.Answer[0].(*dns.CDS).KeyTag != next.Tag {
		t.Errorf("CDS: %v", m.Answer)
	}
	now = now.Add(time.Hour)
	poll()
	if got := dnskeys(t, z)["pbx.example.com."]; len(got) != 1 || got[0].KeyTag() != next.Tag {
		t.Errorf("deleted: %v", got)
	}
	// Keys that vanish, or whose time is over, do not leave the zone unsigned.
	stamp(next, "Inactive", now)
	poll()
	poll()
	if !slices.Equal(signers(), []uint16{next.Tag}) || strings.Count(log.String(), "the former ones go on signing") != 1 {
		t.Errorf("signed by %v\n%s", signers(), log.String())
	}
	if s := z.Stats(); s.KeyErrors != 1 || !s.KeysStale {
		t.Errorf("%d errors, stale %t", s.KeyErrors, s.KeysStale)
	}
	if _, err := GenerateKey(z.opts.KeyDir, "pbx.example.com", now, now); err != nil {
		t.Fatal(err)
	}
	poll()
	if s := z.Stats(); s.KeyErrors != 1 || s.KeysStale || slices.Equal(signers(), []uint16{next.Tag}) {
		t.Errorf("mended: %d errors, stale %t, signed by %v", s.KeyErrors, s.KeysStale, signers())
	}
}

// A zone of ours inside another one of ours has its DS record in that one.
func TestDSOfAnInnerZone(t *testing.T) {
	t.Parallel()
	z := signedZone(t, func(o *ZoneOptions) { o.TenantZones = append(o.TenantZones, "inner.phones.customer.example") })
	keys := dnskeys(t, z)
	m := ask(t, z, defaultClient, "inner.phones.customer.example.", dns.TypeDS, withDO)
	if len(m.Answer) != 2 || m.Answer[0].(*dns.DS).Digest != keys["inner.phones.customer.example."][0].ToDS(dns.SHA256).Digest || m.Answer[1].(*dns.RRSIG).SignerName != "phones.customer.example." {
		t.Errorf("%v", m)
	}
	checkSignatures(t, z, keys, m.Answer)
	if m := ask(t, z, defaultClient, "inner.phones.customer.example.", dns.TypeA, withDO); m.Answer[1].(*dns.RRSIG).SignerName != "inner.phones.customer.example." {
		t.Errorf("%v", m)
	}
}

// Signing changes no answer: without the signatures it is that of an unsigned zone.
func TestSignedAnswersAreTheSame(t *testing.T) {
	t.Parallel()
	signed := signedZone(t)
	plain, _ := staticZone(t, fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{}), testZoneFile)
	for i := range 50 {
		client := netip.AddrFrom4([4]byte{203, 0, 113, byte(5 * i)})
		for _, q := range []dns.Question{{Name: "pbx.example.com.", Qtype: dns.TypeA}, {Name: "_sip._udp.x.pbx.example.com.", Qtype: dns.TypeSRV}, {Name: "x.pbx.example.com.", Qtype: dns.TypeNAPTR}} {
			x := ask(t, signed, client, q.Name, q.Qtype, withDO)
			y := ask(t, plain, client, q.Name, q.Qtype, withDO)
			if a, b := brief(withoutSignatures(x.Answer)), brief(y.Answer); a != b || len(y.Answer) == 0 {
				t.Errorf("%v %v:\n%s\n%s", client, q.Name, a, b)
			}
		}
	}
}

func TestGenerateNeverOverwrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k, err := GenerateKey(dir, "pbx.example.com", time.Now(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(k.File + ".private")
	if err := writeNew(k.File+".private", 0o600, "x"); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	// A second start finds the key of the first.
	s := &source{}
	o := testZoneOptions(t, s)
	o.KeyDir, o.GenerateKeys = dir, true
	if _, err := NewZone(o); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(k.File + ".private"); !bytes.Equal(before, after) {
		t.Error("the key was overwritten")
	}
	if keys, err := ReadKeys(dir, "pbx.example.com."); err != nil || len(keys) != 1 {
		t.Error(keys, err)
	}
}

func BenchmarkSignedAnswer(b *testing.B) {
	z := signedZone(b)
	for name, fresh := range map[string]bool{"kept": false, "new": true} {
		b.Run(name, func(b *testing.B) {
			req := new(dns.Msg)
			req.SetQuestion("tenant.pbx.example.com.", dns.TypeA)
			withDO(req)
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if i++; fresh {
					req.Question[0].Name = fmt.Sprintf("t%d.pbx.example.com.", i)
				}
				if m := z.Answer(req, defaultClient); len(m.Answer) != 2 {
					b.Fatal(m)
				}
			}
		})
	}
}

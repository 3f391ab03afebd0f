package registry

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
)

func TestRegistrationRoundTrip(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*pbxmesh.Registration){
		"typical": func(*pbxmesh.Registration) {},
		"bare": func(r *pbxmesh.Registration) {
			*r = pbxmesh.Registration{AOR: r.AOR, Node: r.Node, CallID: "x", Expires: r.Expires}
		},
		"IPv6":        func(r *pbxmesh.Registration) { r.Source = netip.MustParseAddrPort("[2001:db8::1]:5061") },
		"odd Call-ID": func(r *pbxmesh.Registration) { r.CallID = `a|b "c" {} ` + "\u00e9<&>" },
		"longest": func(r *pbxmesh.Registration) {
			r.CallID, r.Contact = strings.Repeat("c", pbxmesh.MaxCallIDLen), strings.Repeat("\u2028", pbxmesh.MaxContactLen/3)
			r.UserAgent = strings.Repeat("<", pbxmesh.MaxUserAgentLen)
		},
	} {
		reg := device(t, "london", 1, epoch0.Add(time.Millisecond))
		change(&reg)
		rec := record(t, reg, 1)
		got, err := decodeRegistration("london", &rec)
		if err != nil || !reflect.DeepEqual(got, reg) {
			t.Errorf("%s: %+v came back as %+v, err %v", name, reg, got, err)
		}
	}
}

// Whatever a switch says of a phone: what a writer publishes, every reader reads, and as
// it was. What it refuses is refused before anybody else hears of it.
func TestPublishedIsReadable(t *testing.T) {
	t.Parallel()
	taken, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		odd := rapid.IntRange(0, 7).Draw(t, "odd") // the field that may be anything, 0 for all, 7 for none
		usual := func(field int) bool { return odd != 0 && odd != field }
		text := func(name string, field int) string {
			if usual(field) {
				return rapid.StringMatching(`[a-z0-9]{1,20}`).Draw(t, name)
			}
			return rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 300), func(b []byte) string { return string(b) }),
				rapid.StringMatching(`[ -~]{1,80}`)).Draw(t, name)
		}
		aor, err := pbxmesh.NewAOR(rapid.StringMatching(`[a-zA-Z0-9._+-]{1,20}`).Draw(t, "user"), "pbx.test")
		if err != nil {
			t.Skip(err)
		}
		reg := pbxmesh.Registration{
			AOR: aor, Node: "london", CallID: text("Call-ID", 1), Contact: text("contact", 2), UserAgent: text("user agent", 3),
			Profile: "internal", Transport: "udp",
			Since:   pbxmesh.Stamp(rapid.Int64Range(1, maxUnixMilli).Draw(t, "since")),
			Expires: time.UnixMilli(rapid.Int64Range(1, maxUnixMilli).Draw(t, "expires")).UTC(),
		}
		if !usual(4) {
			reg.Profile = rapid.SampledFrom([]string{"internal", "", "a b", "wss-1"}).Draw(t, "odd profile")
		}
		if !usual(5) {
			reg.Transport = rapid.SampledFrom([]string{"udp", "", "wss", "sctp"}).Draw(t, "odd transport")
		}
		if !usual(6) {
			reg.Since = pbxmesh.Stamp(rapid.Int64Range(-1, maxUnixMilli+1).Draw(t, "odd since"))
			reg.Expires = time.UnixMilli(rapid.Int64Range(-1, maxUnixMilli+1).Draw(t, "odd expires")).UTC()
		}
		rec, err := EncodeRegistration(&reg)
		if err != nil {
			refused++
			return
		}
		taken++
		got, err := DecodeRegistration("london", rec)
		if err != nil || !reflect.DeepEqual(got, reg) {
			t.Fatalf("%+v was published as %+v and read as %+v, err %v", reg, rec, got, err)
		}
	})
	if taken == 0 || refused == 0 {
		t.Errorf("%d taken, %d refused: not both were tried", taken, refused)
	}
}

func TestDecodeRegistrationRefuses(t *testing.T) {
	t.Parallel()
	good := record(t, device(t, "london", 1, epoch0), 1)
	value := func(old, replacement string) func(*Record) {
		return func(r *Record) {
			if !strings.Contains(r.Value, old) {
				t.Fatalf("%s has no %s", r.Value, old)
			}
			r.Value = strings.Replace(r.Value, old, replacement, 1)
		}
	}
	for name, change := range map[string]func(*Record){
		"later version":   value(`"v":1`, `"v":2`),
		"no version":      value(`"v":1,`, ``),
		"no JSON":         value(`}`, ``),
		"wrong type":      value(`"v":1`, `"v":"1"`),
		"other Call-ID":   value(`4c1b`, `4c1c`),
		"no expiry":       value(`"x":`, `"y":`),
		"negative expiry": value(`"x":`, `"x":-`),
		"endless expiry":  value(`"x":`, `"x":99999`),
		"transport":       value(`"t":"udp"`, `"t":"sip"`),
		"source":          value(`"s":"198`, `"s":"x198`),
		"zone":            value(`"s":"198.51.0.1:5060"`, `"s":"[fe80::1%e]:5060"`),
		"control":         value(`sip:`, `sip:\n`),
		"profile":         value(`internal`, `a/b`),
		"AOR":             func(r *Record) { r.Key = "1001,x@pbx.test" + r.Key[strings.Index(r.Key, "|"):] },
		"upper-case AOR":  func(r *Record) { r.Key = strings.Replace(r.Key, "tenant", "TENANT", 1) },
		"no digest":       func(r *Record) { r.Key = r.Key[:strings.Index(r.Key, "|")] },
		"space in key":    func(r *Record) { r.Key += " " },
		"too long":        func(r *Record) { r.Value += strings.Repeat(" ", MaxValueLen) },
	} {
		rec := good
		change(&rec)
		if _, err := decodeRegistration("london", &rec); !errors.Is(err, pbxmesh.ErrInvalidRecord) {
			t.Errorf("%s: got error %v, want %v", name, err, pbxmesh.ErrInvalidRecord)
		}
	}
}

func TestLeaseAndAnnouncementRefuse(t *testing.T) {
	t.Parallel()
	l := Lease{Node: "london", Owner: "host", Instance: "1", Epoch: "core", Term: 5, Seq: 6, TTL: time.Second}
	text, err := EncodeLease(&l)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"later version": {`"v":1`, `"v":2`}, "other node": {"london", "paris"}, "no TTL": {`"ttl":1`, `"ttl":-1`},
		"term": {`"term":5`, `"term":9007199254740992`}, "sessions": {`"sessions":0`, `"sessions":-1`},
		"idle": {`"idle_cpu":0`, `"idle_cpu":101`}, "owner": {"host", `ho\u0000st`}, "cut off": {"}}", "}"},
	} {
		if !strings.Contains(text, change[0]) {
			t.Fatalf("%s: %s has no %s", name, text, change[0])
		}
		if _, err := DecodeLease("london", strings.Replace(text, change[0], change[1], 1)); !errors.Is(err, pbxmesh.ErrInvalidRecord) {
			t.Errorf("lease, %s: got error %v", name, err)
		}
	}
	good := pbxmesh.Node{ID: "london", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Mesh: mustAddrPort("192.0.2.1:5090")}
	for name, change := range map[string]func(*pbxmesh.Node){
		"node":       func(n *pbxmesh.Node) { n.ID = "a}b" },
		"addresses":  func(n *pbxmesh.Node) { n.Addresses = make([]netip.Addr, maxAddresses+1) },
		"no address": func(n *pbxmesh.Node) { n.Addresses = []netip.Addr{{}} },
		"mesh":       func(n *pbxmesh.Node) { n.Mesh = mustAddrPort("[2001:db8::1]:5090") },
		"software":   func(n *pbxmesh.Node) { n.Software = "a\nb" },
	} {
		n := good
		change(&n)
		if _, err := EncodeAnnouncement(&Announcement{Node: n}); !errors.Is(err, pbxmesh.ErrInvalidRecord) {
			t.Errorf("announcement, %s: got error %v", name, err)
		}
	}
	if _, err := EncodeAnnouncement(&Announcement{Node: good}); err != nil {
		t.Error(err)
	}
}

package router

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"pbxmesh"
)

// bridgeGrammar is all a bridge string of ours may be: written by hand from the
// rules, on purpose not from the code. user and domain are one alphabet, and the
// only '{', '[', '$', '(', ',' and '|' are those that this grammar spells out.
var bridgeGrammar = func() *regexp.Regexp {
	const (
		domain  = `[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*`
		aor     = `[a-z0-9._+-]{1,64}@` + domain
		callee  = `presence_id=` + aor + `,sip_invite_domain=` + domain
		profile = `[A-Za-z0-9._-]{1,64}`
		octet   = `(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])`
		addr    = octet + `\.` + octet + `\.` + octet + `\.` + octet + `%3A[1-9][0-9]{0,4}`
		local   = `(?:\[` + callee + `\])?\$\{sofia_contact\(` + profile + `/` + aor + `\)\}`
		remote  = `sofia/` + profile + `/sip:` + aor + `;fs_path=sip%3A` + addr
		leg     = `(?:` + local + `|` + remote + `)`
	)
	return regexp.MustCompile(`\A(?:\{` + callee + `\})?` + leg + `(?:[,|]` + leg + `)*\z`)
}()

func TestBridgeString(t *testing.T) {
	t.Parallel()
	const (
		here   = "${sofia_contact(internal/1001@pbx.test)}"
		tls    = "${sofia_contact(tls/1001@pbx.test)}"
		london = "sofia/mesh/sip:1001@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"
		asia   = "sofia/mesh/sip:1001@pbx.test;fs_path=sip%3A192.0.2.3%3A5090"
		each   = "[presence_id=1001@pbx.test,sip_invite_domain=pbx.test]"
		all    = "{presence_id=1001@pbx.test,sip_invite_domain=pbx.test}"
	)
	suspect := observed("london", pbxmesh.ObservedSuspect, "")
	tests := []struct {
		name string
		plan Plan
		opt  BridgeOptions
		want string
	}{
		{name: "local", plan: decide(towns(), device("buffalo")), want: all + here},
		{name: "two local devices", plan: decide(towns(), device("buffalo"), device("buffalo")), want: all + here},
		{name: "two local profiles", plan: decide(towns(), device("buffalo"), device("buffalo", onProfile("tls"))), want: all + here + "," + tls},
		{name: "remote", plan: decide(towns(), device("london")), want: london},
		{name: "two remote", plan: decide(towns(), device("london"), device("singapore")), want: london + "," + asia},
		{name: "mixed", plan: decide(towns(), device("buffalo"), device("london")), want: each + here + "," + london},
		{
			name: "mixed with two profiles", plan: decide(towns(), device("buffalo"), device("buffalo", onProfile("tls")), device("london")),
			want: each + here + "," + each + tls + "," + london,
		},
		{
			name: "mixed with two devices on a profile", plan: decide(towns(), device("buffalo"), device("buffalo"), device("london")),
			want: all + here + "," + london,
		},
		{
			name: "groups", plan: decide(towns(suspect), device("buffalo"), device("london"), device("singapore")),
			want: each + here + "," + asia + "|" + london,
		},
		{name: "suspect alone", plan: decide(towns(suspect), device("london")), want: london},
		{
			name: "other profile names", plan: decide(towns(), device("buffalo", onProfile("")), device("london")),
			opt:  BridgeOptions{MeshProfile: "mesh-2", LocalProfile: "lan"},
			want: each + "${sofia_contact(lan/1001@pbx.test)}," + strings.Replace(london, "/mesh/", "/mesh-2/", 1),
		},
		{
			name: "an unnamed profile is not asked twice, and two devices stand behind it",
			plan: decide(towns(), device("buffalo", onProfile("")), device("buffalo"), device("london")), want: all + here + "," + london,
		},
		{name: "nobody", plan: decide(towns()), want: ""},
		{name: "unreachable", plan: decide(towns(), device("paris")), want: ""},
		{name: "the zero plan", want: ""},
		{name: "the mesh profile never rings local devices", plan: decide(towns(), device("buffalo", onProfile("mesh"))), want: ""},
		{name: "hostile mesh profile", plan: decide(towns(), device("london")), opt: BridgeOptions{MeshProfile: "mesh/x,"}, want: ""},
		{name: "hostile local profile", plan: decide(towns(), device("london")), opt: BridgeOptions{LocalProfile: "${x}"}, want: ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := tt.plan.BridgeString(tt.opt)
			if got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
			if got != "" && !bridgeGrammar.MatchString(got) {
				t.Errorf("%s is outside of the grammar", got)
			}
		})
	}
}

// TestBridgeStringForgedPlan: a Plan's fields are open, so somebody can fill
// them by hand or from JSON. What cannot stand in a bridge string gets no leg.
func TestBridgeStringForgedPlan(t *testing.T) {
	t.Parallel()
	good := Target{Node: "london", Mesh: netip.MustParseAddrPort("192.0.2.2:5090"), Devices: 1}
	for _, bad := range []Target{
		{Local: true, Profile: "internal/1002@pbx.test)}${system(id)}"},
		{Local: true, Profile: "internal,sofia/gateway/x"},
		{Local: true, Profile: strings.Repeat("a", pbxmesh.MaxProfileLen+1)},
		{Local: true, Profile: "mesh"},
		{Mesh: netip.AddrPort{}},
		{Mesh: netip.MustParseAddrPort("[fe80::1%,sofia/gateway/x]:5090")},
		{Mesh: netip.MustParseAddrPort("0.0.0.0:5090")},
		{Mesh: netip.MustParseAddrPort("224.0.0.1:5090")},
		{Mesh: netip.MustParseAddrPort("255.255.255.255:5090")},
	} {
		p := Plan{AOR: callee, Result: ResultRouted, Targets: [][]Target{{bad}}}
		if got := p.BridgeString(BridgeOptions{}); got != "" {
			t.Errorf("%+v alone gave %s", bad, got)
		}
		p.Targets = [][]Target{{bad, good}, {bad}, {bad, good}}
		const leg = "sofia/mesh/sip:1001@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"
		if got := p.BridgeString(BridgeOptions{}); got != leg+"|"+leg {
			t.Errorf("%+v among good ones gave %s", bad, got)
		}
	}
}

func TestBridgeOptionsValidate(t *testing.T) {
	t.Parallel()
	for _, o := range []BridgeOptions{{}, {MeshProfile: "mesh", LocalProfile: "internal"}, {MeshProfile: "m"}, {LocalProfile: "l"}} {
		if err := o.Validate(); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, o := range []BridgeOptions{
		{MeshProfile: "a b"}, {LocalProfile: "a|b"}, {MeshProfile: "x", LocalProfile: "x"}, {LocalProfile: "mesh"},
		{MeshProfile: "internal"}, {LocalProfile: strings.Repeat("x", 65)},
	} {
		var pe *ProfileError
		if err := o.Validate(); !errors.As(err, &pe) || pe.Error() == "" {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestBridgeStringAllocations(t *testing.T) {
	p := decide(towns(observed("london", pbxmesh.ObservedSuspect, "")), device("buffalo"), device("london"), device("singapore"))
	if got := testing.AllocsPerRun(100, func() { p.BridgeString(BridgeOptions{}) }); got > 2 {
		t.Errorf("%.0f allocations, at most 2", got)
	}
}

// FuzzBridgeString: whatever is dialled and whatever stands in a record, what
// comes out is nothing or a sentence of the grammar that names that one address.
func FuzzBridgeString(f *testing.F) {
	f.Add("1001", "pbx.test", "internal", "mesh", "sip:1001@192.0.2.7", uint8(0))
	f.Fuzz(func(t *testing.T, user, domain, profile, mesh, contact string, bits uint8) {
		aor, err := pbxmesh.NewAOR(user, domain)
		m := towns(observed("london", pbxmesh.Observed(bits&3), contact), wanted("singapore", pbxmesh.Wanted(bits>>2&3)))
		p := Decide(Input{AOR: aor, Local: buffalo, FromMesh: bits&0x80 != 0, Mesh: m, Now: now, Registrations: []*pbxmesh.Registration{
			{AOR: aor, Node: "buffalo", Profile: profile, Contact: contact, Expires: now.Add(1)},
			{AOR: aor, Node: "buffalo", Profile: "internal", Contact: contact, Expires: now.Add(1)},
			{AOR: aor, Node: "london", Profile: profile, Contact: contact, Expires: now.Add(1)},
			{AOR: aor, Node: "singapore", Profile: profile, Contact: contact, Expires: now.Add(1)},
			{AOR: aor, Node: pbxmesh.NodeID(profile), Profile: profile, Contact: contact, Expires: now.Add(1)},
		}})
		got := p.BridgeString(BridgeOptions{MeshProfile: mesh, LocalProfile: profile})
		if err != nil && got != "" {
			t.Fatalf("%q@%q is invalid and gave %q", user, domain, got)
		}
		if got == "" {
			return
		}
		if !bridgeGrammar.MatchString(got) {
			t.Fatalf("%q is outside of the grammar", got)
		}
		rest := got
		for _, part := range []string{"presence_id=" + aor.String() + ",sip_invite_domain=" + aor.Domain(), "/" + aor.String() + ")}", "/sip:" + aor.String() + ";fs_path="} {
			rest = strings.ReplaceAll(rest, part, "")
		}
		if strings.Contains(rest, "@") {
			t.Fatalf("%q names an address other than %s", got, aor)
		}
		for _, r := range p.Reasons {
			if strings.ContainsAny(r.String()[len(r.Node):], "\r\n\x1b") {
				t.Fatalf("reason %q has control characters", r)
			}
		}
	})
}

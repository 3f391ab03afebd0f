package pbxmesh

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var recordTime = time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)

func goodRegistration() Registration {
	a, _ := NewAOR("1001", "pbx.test")
	return Registration{
		AOR: a, Node: "buffalo", CallID: "aba2a72d@192.0.2.7", Contact: "sip:1001@192.0.2.7:5062", Profile: "internal",
		Transport: "udp", UserAgent: "Phone 1.0 (é)", Expires: recordTime,
	}
}

func TestRegistrationValidate(t *testing.T) {
	t.Parallel()
	good := goodRegistration()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Registration){
		"contact at its bound":    func(r *Registration) { r.Contact = strings.Repeat("c", MaxContactLen) },
		"call-id at its bound":    func(r *Registration) { r.CallID = strings.Repeat("c", MaxCallIDLen) },
		"profile at its bound":    func(r *Registration) { r.Profile = strings.Repeat("c", MaxProfileLen) },
		"agent at its bound":      func(r *Registration) { r.UserAgent = strings.Repeat("c", MaxUserAgentLen) },
		"nothing but the minimum": func(r *Registration) { *r = Registration{AOR: r.AOR, Node: r.Node, CallID: "x", Expires: recordTime} },
	} {
		r := goodRegistration()
		change(&r)
		if err := r.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Registration){
		"no address":               func(r *Registration) { r.AOR = AOR{} },
		"no node":                  func(r *Registration) { r.Node = "" },
		"upper-case node":          func(r *Registration) { r.Node = "Buffalo" },
		"node with a hash tag":     func(r *Registration) { r.Node = "{buffalo}" },
		"no Call-ID":               func(r *Registration) { r.CallID = "" },
		"no expiry":                func(r *Registration) { r.Expires = time.Time{} },
		"long Call-ID":             func(r *Registration) { r.CallID = strings.Repeat("c", MaxCallIDLen+1) },
		"long contact":             func(r *Registration) { r.Contact = strings.Repeat("c", MaxContactLen+1) },
		"long profile":             func(r *Registration) { r.Profile = strings.Repeat("c", MaxProfileLen+1) },
		"long agent":               func(r *Registration) { r.UserAgent = strings.Repeat("c", MaxUserAgentLen+1) },
		"long transport":           func(r *Registration) { r.Transport = "sctp" },
		"Call-ID with a line":      func(r *Registration) { r.CallID = "a\nb" },
		"contact with a line":      func(r *Registration) { r.Contact = "sip:x\r\n\r\napi x" },
		"agent with an escape":     func(r *Registration) { r.UserAgent = "\x1b[2J" },
		"contact with DEL":         func(r *Registration) { r.Contact = "sip:\x7f" },
		"profile with a comma":     func(r *Registration) { r.Profile = "internal,x" },
		"profile with a slash":     func(r *Registration) { r.Profile = "internal/x" },
		"profile with an app call": func(r *Registration) { r.Profile = "${x}" },
	} {
		r := goodRegistration()
		change(&r)
		if err := r.Validate(); !errors.Is(err, ErrInvalidRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRegistrationLive(t *testing.T) {
	t.Parallel()
	r := goodRegistration()
	for at, want := range map[time.Time]bool{
		recordTime.Add(-time.Hour): true, recordTime.Add(-1): true, recordTime: false, recordTime.Add(1): false,
		recordTime.Add(-1).In(time.FixedZone("tokyo", 9*3600)): true,
	} {
		if got := r.Live(at); got != want {
			t.Errorf("at %v: %v", at, got)
		}
	}
}

// TestRegistrationID: a refresh keeps the identity, another device or user is another.
func TestRegistrationID(t *testing.T) {
	t.Parallel()
	r, refreshed, other := goodRegistration(), goodRegistration(), goodRegistration()
	refreshed.Contact, refreshed.Expires = "sip:1001@192.0.2.7:5099", recordTime.Add(time.Hour)
	other.CallID = "another"
	if r.ID() != refreshed.ID() || r.ID() == other.ID() || r.ID().AOR != r.AOR {
		t.Errorf("%v, %v, %v", r.ID(), refreshed.ID(), other.ID())
	}
}

// FuzzRegistrationValidate: a record that passes has no control character anywhere,
// keeps its bounds, and its profile can stand in a bridge string.
func FuzzRegistrationValidate(f *testing.F) {
	f.Add("buffalo", "call", "sip:1001@192.0.2.7", "internal", "udp", "Phone")
	f.Fuzz(func(t *testing.T, node, callID, contact, profile, transport, agent string) {
		r := goodRegistration()
		r.Node, r.CallID, r.Contact, r.Profile, r.Transport, r.UserAgent = NodeID(node), callID, contact, profile, transport, agent
		if err := r.Validate(); err != nil {
			if !errors.Is(err, ErrInvalidRecord) || len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\r\n\x1b\x00") {
				t.Fatalf("error %q", err)
			}
			return
		}
		all := node + callID + contact + profile + transport + agent
		if strings.ContainsFunc(all, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			t.Fatalf("accepted a control character: %q", all)
		}
		if strings.ContainsAny(profile, ",|{}[]<>$()/\\'\":;@ ^=%") || len(profile) > MaxProfileLen {
			t.Fatalf("accepted profile %q", profile)
		}
		if id, err := ParseNodeID(node); err != nil || string(id) != node || callID == "" || len(contact) > MaxContactLen {
			t.Fatalf("accepted %+v", r)
		}
	})
}

package registry_test

import (
	"net/netip"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// TestStamps: whatever the clocks say, the registration that a phone made last is the
// newest, and nothing but a REGISTER makes one newer.
func TestStamps(t *testing.T) {
	t.Parallel()
	base := time.Now()
	node := func(id pbxmesh.NodeID, skew time.Duration) (*registry.Writer, *registry.Replica) {
		replica := registry.NewReplica(registry.ReplicaOptions{Local: id})
		w, err := registry.NewWriter(registry.WriterOptions{
			Node: pbxmesh.Node{ID: id, Mesh: netip.MustParseAddrPort("192.0.2.1:5090")}, Replica: replica, Backend: memory.New(memory.Options{}),
			Now: func() time.Time { return base.Add(skew) },
		})
		if err != nil {
			t.Fatal(err)
		}
		return w, replica
	}
	aor, err := pbxmesh.NewAOR("1001", "pbx.test")
	if err != nil {
		t.Fatal(err)
	}
	reg := func(id pbxmesh.NodeID, heard pbxmesh.Stamp) pbxmesh.Registration {
		return pbxmesh.Registration{
			AOR: aor, Node: id, CallID: "7f3a", Contact: "sip:1001@192.0.2.7:5060", Profile: "internal", Expires: base.Add(time.Hour), Since: heard,
		}
	}
	held := func(r *registry.Replica, id pbxmesh.NodeID) pbxmesh.Stamp {
		t.Helper()
		for _, x := range r.Lookup(aor) {
			if x.Node == id {
				return x.Since
			}
		}
		t.Fatalf("%s holds nothing", id)
		return 0
	}
	heard := func(skew time.Duration) pbxmesh.Stamp { return pbxmesh.StampOf(base.Add(skew)) }

	const behind = -10 * time.Minute // buffalo's clock
	london, lr := node("london", 0)
	buffalo, br := node("buffalo", behind)

	london.Put(reg("london", heard(0)))
	first := held(lr, "london")
	if first != heard(0) {
		t.Errorf("began at %d, want %d", first, heard(0))
	}
	registry.Show(br, lr)
	buffalo.Put(reg("buffalo", heard(behind)))
	second := held(br, "buffalo")
	if second <= first {
		t.Errorf("a clock that is behind: %d is not later than %d", second, first)
	}
	registry.Show(lr, br)
	london.Put(reg("london", heard(0)))
	third := held(lr, "london")
	if third <= second {
		t.Errorf("the phone came back: %d is not later than %d", third, second)
	}
	r := reg("london", heard(time.Second))
	r.Expires = r.Expires.Add(time.Minute)
	london.Put(r)
	if got := held(lr, "london"); got != third {
		t.Errorf("a refresh made it newer: %d, was %d", got, third)
	}
	r.Since, r.UserAgent = pbxmesh.StampUnknown, "put right by a snapshot"
	london.Put(r)
	london.Reset("another life", []pbxmesh.Registration{r})
	if got := held(lr, "london"); got != third {
		t.Errorf("a snapshot changed it: %d, was %d", got, third)
	}
	london.Remove(r.ID())
	london.Put(r)
	if got := held(lr, "london"); got != pbxmesh.StampFound {
		t.Errorf("found, not heard: %d", got)
	}
	r.Since = second - 1
	london.PutBack(r)
	if got := held(lr, "london"); got != second-1 {
		t.Errorf("put back as %d, was %d", got, second-1)
	}

	far := reg("buffalo", heard(48*time.Hour))
	buffalo.PutBack(far)
	registry.Show(lr, br)
	london.Remove(r.ID())
	london.Put(reg("london", heard(0)))
	if got := held(lr, "london"); got != heard(0) {
		t.Errorf("a clock two days ahead was followed: %d", got)
	}
}

// TestStampOfOneNode: what makes a registration a new one, and what does not.
func TestStampOfOneNode(t *testing.T) {
	t.Parallel()
	now := time.Now()
	aor, err := pbxmesh.NewAOR("1001", "pbx.test")
	if err != nil {
		t.Fatal(err)
	}
	reg := func(node pbxmesh.NodeID, since pbxmesh.Stamp, expires time.Duration) pbxmesh.Registration {
		return pbxmesh.Registration{
			AOR: aor, Node: node, CallID: "7f3a", Contact: "sip:1001@192.168.1.7:5060", Profile: "internal", UserAgent: "Desk", Expires: now.Add(expires), Since: since,
		}
	}
	at := func(d time.Duration) pbxmesh.Stamp { return pbxmesh.StampOf(now.Add(d)) }
	other := func(r pbxmesh.Registration) pbxmesh.Registration { r.CallID, r.UserAgent = "x", "Soft"; return r }
	for name, c := range map[string]struct {
		known []pbxmesh.Registration
		want  pbxmesh.Stamp
	}{
		"nothing is known":                       {nil, at(0)},
		"refreshed":                              {[]pbxmesh.Registration{reg("london", at(-time.Hour), time.Hour)}, at(-time.Hour)},
		"its time was over":                      {[]pbxmesh.Registration{reg("london", at(-time.Hour), -time.Second)}, at(0)},
		"found before, heard now":                {[]pbxmesh.Registration{reg("london", pbxmesh.StampFound, time.Hour)}, at(0)},
		"our clock was two days ahead":           {[]pbxmesh.Registration{reg("london", at(48*time.Hour), time.Hour)}, at(0)},
		"it has been elsewhere":                  {[]pbxmesh.Registration{reg("london", at(-time.Hour), time.Hour), reg("buffalo", at(time.Minute), time.Hour)}, at(time.Minute) + 1},
		"elsewhere its time was over":            {[]pbxmesh.Registration{reg("buffalo", at(time.Minute), -time.Second)}, at(0)},
		"another device is elsewhere":            {[]pbxmesh.Registration{other(reg("buffalo", at(time.Minute), time.Hour))}, at(0)},
		"another device is here":                 {[]pbxmesh.Registration{other(reg("london", at(-time.Minute), time.Hour))}, at(0)},
		"it was elsewhere before it came here":   {[]pbxmesh.Registration{reg("london", at(-time.Hour), time.Hour), reg("buffalo", at(-2*time.Hour), time.Hour)}, at(-time.Hour)},
		"elsewhere nobody knows when it started": {[]pbxmesh.Registration{reg("buffalo", pbxmesh.StampUnknown, time.Hour)}, at(0)},
	} {
		replica := registry.NewReplica(registry.ReplicaOptions{Local: "london"})
		w, err := registry.NewWriter(registry.WriterOptions{
			Node: pbxmesh.Node{ID: "london", Mesh: netip.MustParseAddrPort("192.0.2.1:5090")}, Replica: replica, Backend: memory.New(memory.Options{}),
			Now: func() time.Time { return now },
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.known {
			registry.Know(replica, r)
		}
		w.Put(reg("london", at(0), time.Hour))
		for _, r := range replica.Lookup(aor) {
			if r.Node == "london" && r.CallID == "7f3a" && r.Since != c.want {
				t.Errorf("%s: %d, want %d", name, r.Since, c.want)
			}
		}
	}
}

package registry

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var epoch0 = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// device returns registration n of a node: a typical one, so that its size is.
func device(t testing.TB, node pbxmesh.NodeID, n int, expires time.Time) pbxmesh.Registration {
	t.Helper()
	aor, err := pbxmesh.NewAOR(fmt.Sprintf("%d", 1000+n), fmt.Sprintf("tenant%d.pbx.test", n%200))
	if err != nil {
		t.Fatal(err)
	}
	source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}), 5060)
	return pbxmesh.Registration{
		AOR: aor, Node: node, CallID: fmt.Sprintf("%08x-%04x-4c1b-a1d2@198.51.100.7", n, n&0xffff),
		Contact: fmt.Sprintf("sip:%d@%s;transport=udp", 1000+n, source), Profile: "internal",
		Source: source, Transport: "udp", UserAgent: fmt.Sprintf("Yealink SIP-T46S 66.85.0.%d", n%20), Expires: expires,
	}
}

func record(t testing.TB, reg pbxmesh.Registration, seq uint64) Record {
	t.Helper()
	rec, err := EncodeRegistration(&reg)
	if err != nil {
		t.Fatal(err)
	}
	rec.Seq = seq
	return rec
}

func tombstone(reg *pbxmesh.Registration, seq uint64) Record {
	return Record{Kind: KindRegistration, Key: RegistrationKey(reg.ID()), Seq: seq}
}

// checkConsistent verifies what every operation must leave behind: index, cells,
// counters and digest describe the same entries.
func checkConsistent(t testing.TB, r *Replica) {
	t.Helper()
	held := 0
	for _, ns := range r.states() {
		ns.mu.Lock()
		var digest Digest
		for i, e := range ns.index {
			if int(e.at) != i || e.node != ns {
				t.Fatalf("%s: entry %d believes to be %d of %s", ns.id, i, e.at, e.node.id)
			}
			if found := r.find(ns, e.reg.ID()); found != e {
				t.Fatalf("%s: entry %d of %s is not found", ns.id, i, e.reg.AOR)
			}
			digest.add(e.hash)
		}
		if ns.term > 0 && ns.digests[KindRegistration] != digest {
			t.Fatalf("%s: digest %v, the entries add up to %v", ns.id, ns.digests, digest)
		}
		held += len(ns.index)
		ns.mu.Unlock()
	}
	walked, aors := 0, map[pbxmesh.AOR]bool{}
	r.Walk(func(reg *pbxmesh.Registration) bool {
		walked++
		aors[reg.AOR] = true
		return true
	})
	if s := r.Stats(); walked != held || s.Registrations != int64(held) || s.AORs != int64(len(aors)) {
		t.Fatalf("%d entries in the index, %d seen walking, counters %d and %d of %d AORs",
			held, walked, s.Registrations, s.AORs, len(aors))
	}
}

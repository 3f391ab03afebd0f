package router

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"pbxmesh"
)

// directory is a million registrations of 800,000 users, built once: every
// fourth user has a second device on another node.
var directory = sync.OnceValue(func() (d struct {
	byAOR map[pbxmesh.AOR][]*pbxmesh.Registration
	aors  []pbxmesh.AOR
},
) {
	const users = 800_000
	nodes := []pbxmesh.NodeID{"buffalo", "london", "singapore"}
	d.byAOR = make(map[pbxmesh.AOR][]*pbxmesh.Registration, users)
	for i := range users {
		a := mustAOR(fmt.Sprintf("%d@tenant%d.pbx.test", 1000+i%500, i/500))
		n := 1
		if i%4 == 0 {
			n = 2
		}
		for k := range n {
			d.byAOR[a] = append(d.byAOR[a], &pbxmesh.Registration{
				AOR: a, Node: nodes[(i+k)%3], CallID: fmt.Sprint(i, "-", k), Contact: "sip:phone", Profile: "internal", Expires: now.Add(time.Hour),
			})
		}
		d.aors = append(d.aors, a)
	}
	return d
})

// BenchmarkDecide looks a user up among 1,000,000 registrations and decides. The
// stride is a large prime, so that every look-up misses the caches.
func BenchmarkDecide(b *testing.B) {
	d, m := directory(), towns()
	b.ReportAllocs()
	i, routed := 0, 0
	for b.Loop() {
		a := d.aors[i]
		if i += 611_953; i >= len(d.aors) {
			i -= len(d.aors)
		}
		if p := Decide(Input{AOR: a, Local: buffalo, Registrations: d.byAOR[a], Mesh: m, Now: now}); p.Result == ResultRouted {
			routed++
		}
	}
	if routed == 0 {
		b.Fatal("nothing was routed")
	}
}

// BenchmarkDecideOnly leaves the look-up out: one local device, one remote.
func BenchmarkDecideOnly(b *testing.B) {
	in := Input{AOR: callee, Local: buffalo, Registrations: []*pbxmesh.Registration{device("buffalo"), device("london")}, Mesh: towns(), Now: now}
	b.ReportAllocs()
	for b.Loop() {
		if Decide(in).Result != ResultRouted {
			b.Fatal("not routed")
		}
	}
}

// BenchmarkDecideMoved is one phone on two nodes, one of which stands in for the other.
func BenchmarkDecideMoved(b *testing.B) {
	in := Input{AOR: callee, Local: buffalo, Registrations: []*pbxmesh.Registration{device("buffalo", moved(1)), device("london", moved(2))}, Mesh: towns(), Now: now}
	b.ReportAllocs()
	for b.Loop() {
		if Decide(in).Result != ResultRouted {
			b.Fatal("not routed")
		}
	}
}

func BenchmarkBridgeString(b *testing.B) {
	p := decide(towns(observed("singapore", pbxmesh.ObservedSuspect, "")), device("buffalo"), device("london"), device("singapore"))
	b.ReportAllocs()
	for b.Loop() {
		if p.BridgeString(BridgeOptions{}) == "" {
			b.Fatal("no bridge string")
		}
	}
}

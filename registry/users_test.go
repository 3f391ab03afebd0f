package registry

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"pbxmesh"
)

// TestUsersAgainstAMap adds and removes AORs whose hashes collide, wholly and in
// part, wrap around the end of the table and share a probe with others, and compares
// the table with a map after every step.
func TestUsersAgainstAMap(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var table users
		want := map[pbxmesh.AOR]*entry{}
		all := make([]pbxmesh.AOR, 40)
		hashes := make([]uint64, len(all))
		for i := range all {
			aor, err := pbxmesh.NewAOR(fmt.Sprint(1000+i), "pbx.test")
			if err != nil {
				t.Fatal(err)
			}
			all[i] = aor
			switch rnd.IntN(3) {
			case 0:
				hashes[i] = 0 // a hash of zero is one like any other
			case 1:
				hashes[i] = (1<<32 - 1) << hashShift // begins at the last slot of any table
			default:
				hashes[i] = uint64(rnd.IntN(16)) << hashShift
			}
		}
		for range 300 {
			i := rnd.IntN(len(all))
			if want[all[i]] == nil {
				e := &entry{reg: pbxmesh.Registration{AOR: all[i]}}
				table.add(hashes[i]).head = e
				want[all[i]] = e
			} else {
				table.remove(hashes[i], all[i])
				delete(want, all[i])
			}
			for k, aor := range all {
				slot := table.find(hashes[k], aor)
				if (slot == nil) != (want[aor] == nil) || slot != nil && (slot.head != want[aor] || slot.hash != hashes[k]) {
					t.Fatalf("seed %d: %s is found wrongly: %v, want %v", seed, aor, slot, want[aor])
				}
			}
			if table.used != len(want) || 4*table.used > 3*len(table.slots) {
				t.Fatalf("seed %d: %d of %d slots are used, want %d", seed, table.used, len(table.slots), len(want))
			}
		}
		table.remove(7, pbxmesh.AOR{}) // one that is not there changes nothing
		if table.used != len(want) {
			t.Fatalf("seed %d: removing nobody removed somebody", seed)
		}
	}
}

// TestEntryFitsItsSize holds the layout that a look-up's cost rests on.
func TestEntryFitsItsSize(t *testing.T) {
	t.Parallel()
	if size := entrySize(); size != 256 {
		t.Errorf("an entry has %d bytes, want 256: with any other size it does not begin at a cache line", size)
	}
	if size := shardSize(); size != 64 {
		t.Errorf("a shard has %d bytes, want 64: two would share a cache line", size)
	}
	if size := hotBytes(); size > 128 {
		t.Errorf("what a call reads ends at byte %d of an entry, want 128 at most", size)
	}
}

package registry

import "pbxmesh"

// users finds the entries of an AOR: a hash table with linear probing, the whole hash
// in the slot. A look-up among a million users reads memory that no cache holds, and
// waits for each cache line that it learns of only from the one before. Here these
// are three: the slot, the entry, and the text of its AOR. A map of Go has its
// control bytes, the key and its text before it gets there.
//
// The shard's lock guards it.
type users struct {
	slots []slot // a power of two of them; nil until the first user
	used  int
}

// slot holds one AOR; head is nil when it is free.
type slot struct {
	hash uint64
	head *entry
}

const (
	firstSlots = 8
	// hashShift skips the bits of a hash that choose the shard.
	hashShift = 8
)

// find returns the slot of aor, nil when it has none.
func (u *users) find(hash uint64, aor pbxmesh.AOR) *slot {
	mask := uint64(len(u.slots)) - 1
	if u.used == 0 {
		return nil
	}
	for i := hash >> hashShift; ; i++ {
		s := &u.slots[i&mask]
		if s.head == nil {
			return nil
		}
		if s.hash == hash && s.head.reg.AOR == aor {
			return s
		}
	}
}

// add returns a free slot for an AOR that has none. The caller fills it at once.
func (u *users) add(hash uint64) *slot {
	if u.used >= len(u.slots)/4*3 {
		u.grow()
	}
	u.used++
	return u.free(hash)
}

// free returns the first free slot for hash; there is one.
func (u *users) free(hash uint64) *slot {
	mask := uint64(len(u.slots)) - 1
	for i := hash >> hashShift; ; i++ {
		if s := &u.slots[i&mask]; s.head == nil {
			s.hash = hash
			return s
		}
	}
}

func (u *users) grow() {
	old := u.slots
	u.slots = make([]slot, max(firstSlots, 2*len(old)))
	for _, s := range old {
		if s.head != nil {
			*u.free(s.hash) = s
		}
	}
}

// remove frees the slot of aor. What stands behind it moves up, so that no probe
// ends at the hole: a table that many users came to and left is as fast as a new one.
func (u *users) remove(hash uint64, aor pbxmesh.AOR) {
	gone := u.find(hash, aor)
	if gone == nil {
		return
	}
	mask := uint64(len(u.slots)) - 1
	hole := hash >> hashShift & mask
	for &u.slots[hole] != gone {
		hole = (hole + 1) & mask
	}
	for i := (hole + 1) & mask; u.slots[i].head != nil; i = (i + 1) & mask {
		// A slot may move to the hole unless its probe begins behind the hole.
		if begin := u.slots[i].hash >> hashShift; (i-begin)&mask >= (i-hole)&mask {
			u.slots[hole] = u.slots[i]
			hole = i
		}
	}
	u.slots[hole] = slot{}
	u.used--
}

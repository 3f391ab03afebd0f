package registry

import (
	"unsafe"

	"pbxmesh"
)

// Mutations are bugs that tests seed to prove that they would be found.
const (
	BlindToDigests = 1 << iota // no digest is ever compared
	BlindToGaps                // a missing batch is not noticed
	BlindToEpochs              // a full publication is applied on top of what was there
	BlindToUnread              // what cannot be read does not count in the digest
	KeepsFormer                // what can no longer be read leaves in what was known under its key
	BlindToOrder               // what is told again counts as new
	BuriesSilent               // a node without a lease is taken for dead
	Older                      // no bug: a reader that cannot read a contact with LaterMark
)

// LaterMark stands in what only a later version can read.
const LaterMark = laterMark

// Mutate seeds bugs into r before it is used.
func (r *Replica) Mutate(bugs int) {
	r.mutant.digests = bugs&BlindToDigests != 0
	r.mutant.gaps = bugs&BlindToGaps != 0
	r.mutant.epochs = bugs&BlindToEpochs != 0
	r.mutant.unread = bugs&BlindToUnread != 0
	r.mutant.former = bugs&KeepsFormer != 0
	r.mutant.order = bugs&BlindToOrder != 0
	r.mutant.silent = bugs&BuriesSilent != 0
	r.mutant.older = bugs&Older != 0
}

func entrySize() uintptr { return unsafe.Sizeof(entry{}) }
func shardSize() uintptr { return unsafe.Sizeof(shard{}) }

// hotBytes returns where in an entry the last field ends that a decision reads.
func hotBytes() uintptr {
	var e entry
	return unsafe.Offsetof(e.reg) + unsafe.Offsetof(e.reg.Contact)
}

// Show gives to what from holds of its local node, as a store would.
func Show(to, from *Replica) {
	from.WalkNode(from.Local(), func(reg *pbxmesh.Registration) bool {
		to.putLocal(reg)
		return true
	})
}

// Know puts reg into r as it is.
func Know(r *Replica, reg pbxmesh.Registration) { r.putLocal(&reg) }

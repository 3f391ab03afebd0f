package feed

import (
	"time"

	"pbxmesh"
)

// maxMarks bounds what is remembered of registrations that are gone. Beyond it a
// snapshot is asked for, which lets all of it be forgotten.
const maxMarks = 200_000

// expiryTolerance is the difference up to which an expiry computed from an event
// and one read from a snapshot are the same: events carry whole seconds and we see
// them a little late.
const expiryTolerance = 3 * time.Second

// table decides which registrations live. It is not safe for concurrent use.
type table struct {
	sink  Sink
	epoch string // Core-UUID
	live  bool   // the Sink was Reset to this epoch; before that nothing is told

	floor uint64 // events up to it are part of the snapshot
	high  uint64 // the highest sequence seen
	aors  map[pbxmesh.AOR]*devices
	marks int // entries of all devices' maps
	size  int // live registrations
}

// devices is what is known of one address of record.
type devices struct {
	alive []device // newest fact for its contact and for its Call-ID

	// Newest fact by contact and by Call-ID where that fact is no live device: a
	// removal, or a registration that was replaced.
	contacts, calls map[string]uint64
}

type device struct {
	reg pbxmesh.Registration
	seq uint64
}

func newTable(sink Sink, epoch string) *table {
	return &table{sink: sink, epoch: epoch, aors: make(map[pbxmesh.AOR]*devices)}
}

// accept notes a sequence and reports whether the event can still say something.
func (t *table) accept(seq uint64) bool {
	t.high = max(t.high, seq)
	return seq > t.floor
}

func (t *table) of(aor pbxmesh.AOR) *devices {
	d := t.aors[aor]
	if d == nil {
		d = &devices{}
		t.aors[aor] = d
	}
	return d
}

// known returns the live registration with this Call-ID, nil without one.
func (t *table) known(aor pbxmesh.AOR, callID string) *pbxmesh.Registration {
	if d := t.aors[aor]; d != nil {
		for i := range d.alive {
			if d.alive[i].reg.CallID == callID {
				return &d.alive[i].reg
			}
		}
	}
	return nil
}

// register applies a registration. second reports that it is a device not seen
// before and others of the same address live: on a switch without
// multiple-registrations they have just vanished silently.
func (t *table) register(seq uint64, reg pbxmesh.Registration) (second bool) {
	if !t.accept(seq) {
		return false
	}
	d := t.of(reg.AOR)
	lives := d.newest(reg.Contact, reg.CallID) < seq
	// Even one that is itself over already replaces what is older still.
	byContact, byCallID := t.end(d, reg.Contact, reg.CallID, seq, lives)
	if !lives {
		t.mark(d, reg.Contact, reg.CallID, seq)
		return false
	}
	// The live device itself is now the newest fact for both.
	t.unmark(d.contacts, reg.Contact)
	t.unmark(d.calls, reg.CallID)
	d.alive = append(d.alive, device{reg, seq})
	t.size++
	if t.live {
		t.sink.Put(reg)
	}
	return !byContact && !byCallID && len(d.alive) > 1
}

// unregister applies a removal: by contact or by Call-ID, either of which may be
// empty or unknown. exact reports whether a live registration with that contact
// ended, and no other.
func (t *table) unregister(seq uint64, aor pbxmesh.AOR, contact, callID string) (exact bool) {
	if !t.accept(seq) {
		return true // the snapshot knows
	}
	d := t.of(aor)
	byContact, byCallID := t.end(d, contact, callID, seq, false)
	t.mark(d, contact, callID, seq)
	return byContact && !byCallID
}

// end takes the devices out that are older than seq and have the contact or the
// Call-ID, and reports whether there were any with the contact, and any with the
// Call-ID alone. With put, the Sink is about to get a record under callID, so that
// one needs no removal.
func (t *table) end(d *devices, contact, callID string, seq uint64, put bool) (byContact, byCallID bool) {
	kept := d.alive[:0]
	for _, old := range d.alive {
		if old.seq >= seq || old.reg.Contact != contact && old.reg.CallID != callID {
			kept = append(kept, old)
			continue
		}
		if old.reg.Contact == contact {
			byContact = true
		} else {
			byCallID = true
		}
		t.size--
		t.mark(d, old.reg.Contact, old.reg.CallID, old.seq)
		if t.live && (!put || old.reg.CallID != callID) {
			t.sink.Remove(old.reg.ID())
		}
	}
	clear(d.alive[len(kept):])
	d.alive = kept
	return byContact, byCallID
}

// newest returns the highest sequence of a fact that names contact or callID.
func (d *devices) newest(contact, callID string) uint64 {
	n := max(d.contacts[contact], d.calls[callID])
	for i := range d.alive {
		if a := &d.alive[i]; a.seq > n && (a.reg.Contact == contact || a.reg.CallID == callID) {
			n = a.seq
		}
	}
	return n
}

func (t *table) mark(d *devices, contact, callID string, seq uint64) {
	t.markOne(&d.contacts, contact, seq)
	t.markOne(&d.calls, callID, seq)
}

func (t *table) markOne(m *map[string]uint64, key string, seq uint64) {
	if key == "" || (*m)[key] >= seq {
		return // an empty contact or Call-ID names nobody
	}
	if *m == nil {
		*m = make(map[string]uint64)
	}
	before := len(*m)
	(*m)[key] = seq
	t.marks += len(*m) - before
}

func (t *table) unmark(m map[string]uint64, key string) {
	before := len(m)
	delete(m, key)
	t.marks -= before - len(m)
}

// repairs counts what a snapshot put right.
type repairs struct{ added, changed, removed int }

func (r repairs) total() int { return r.added + r.changed + r.removed }

// snapshot makes rows the truth as of barrier, the highest sequence that had been
// seen before the switch was asked. Facts above it win.
func (t *table) snapshot(rows []pbxmesh.Registration, barrier uint64) repairs {
	t.floor = barrier
	old := t.aors
	t.aors = make(map[pbxmesh.AOR]*devices, len(old))
	t.marks, t.size = 0, 0
	for aor, d := range old { // keep the facts that came after the question
		n := &devices{}
		for _, a := range d.alive {
			if a.seq > barrier {
				n.alive = append(n.alive, a)
				t.size++
			}
		}
		t.keepMarks(&n.contacts, d.contacts)
		t.keepMarks(&n.calls, d.calls)
		if len(n.alive)+len(n.contacts)+len(n.calls) > 0 {
			t.aors[aor] = n
		}
	}
	for i := range rows {
		t.row(&rows[i], barrier, find(old[rows[i].AOR], rows[i].CallID))
	}
	if !t.live {
		t.live = true
		t.sink.Reset(t.epoch, t.all())
		return repairs{}
	}
	return t.tell(old)
}

func (t *table) keepMarks(to *map[string]uint64, from map[string]uint64) {
	for key, seq := range from {
		if seq > t.floor {
			t.markOne(to, key, seq)
		}
	}
}

// row adds one row of a snapshot unless a newer fact names its contact or Call-ID.
//
// Rows may share a Call-ID: with multiple-registrations=true the switch keeps the
// row of a phone's old port beside that of the new one, and rings both. A record is
// known by its Call-ID, so one stands for both: the later to expire, and within the
// tolerance the one that before, the record of the last events, was about.
func (t *table) row(reg *pbxmesh.Registration, barrier uint64, before *pbxmesh.Registration) {
	d := t.of(reg.AOR)
	if d.newest(reg.Contact, reg.CallID) > barrier {
		return
	}
	kept := make([]device, 0, len(d.alive)+1)
	for _, a := range d.alive {
		if a.reg.Contact != reg.Contact && a.reg.CallID != reg.CallID {
			kept = append(kept, a)
			continue
		}
		longer := a.reg.Expires.Sub(reg.Expires)
		if longer > expiryTolerance || longer >= -expiryTolerance && before != nil && a.reg.Contact == before.Contact {
			return
		}
	}
	t.size += len(kept) + 1 - len(d.alive)
	kept = append(kept, device{*reg, barrier})
	d.alive = kept
}

// all returns the live registrations.
func (t *table) all() []pbxmesh.Registration {
	out := make([]pbxmesh.Registration, 0, t.size)
	for _, d := range t.aors {
		for i := range d.alive {
			out = append(out, d.alive[i].reg)
		}
	}
	return out
}

// tell sends the Sink what differs from before.
func (t *table) tell(old map[pbxmesh.AOR]*devices) (r repairs) {
	for aor, d := range old {
		for i := range d.alive {
			if t.known(aor, d.alive[i].reg.CallID) == nil {
				t.sink.Remove(d.alive[i].reg.ID())
				r.removed++
			}
		}
	}
	for aor, d := range t.aors {
		for i := range d.alive {
			reg := &d.alive[i].reg
			before := find(old[aor], reg.CallID)
			switch {
			case before == nil:
				r.added++
			case !same(before, reg):
				r.changed++
			default:
				reg.Expires = before.Expires // what the Sink has been told
				continue
			}
			t.sink.Put(*reg)
		}
	}
	return r
}

func find(d *devices, callID string) *pbxmesh.Registration {
	if d == nil {
		return nil
	}
	for i := range d.alive {
		if d.alive[i].reg.CallID == callID {
			return &d.alive[i].reg
		}
	}
	return nil
}

// same compares all but the expiry exactly. A snapshot does not tell when a registration
// was heard.
func same(a, b *pbxmesh.Registration) bool {
	x, y := *a, *b
	x.Expires, y.Expires = time.Time{}, time.Time{}
	x.Since, y.Since = pbxmesh.StampUnknown, pbxmesh.StampUnknown
	return x == y && a.Expires.Sub(b.Expires).Abs() <= expiryTolerance
}

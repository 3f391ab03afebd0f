package feed

import (
	"slices"
	"strings"
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

// lag bounds how long the switch may still show a row whose end it has told: it
// queues what it deletes.
const lag = 10 * time.Second

// table decides which registrations live. It is not safe for concurrent use.
//
// A registration is known by its Call-ID, and replaces what has its Call-ID or its
// contact. The end of one counts by itself only when contact and Call-ID both fit;
// what fits by half is a question to the switch, whose answer decides.
type table struct {
	sink  Sink
	epoch string // Core-UUID
	live  bool   // the Sink was Reset to this epoch; before that nothing is told

	floor uint64 // events up to it are part of the snapshot
	high  uint64 // the highest sequence seen
	aors  map[pbxmesh.AOR]*devices
	marks int // what all devices remember of registrations that are gone
	size  int // live registrations

	// ended are the rows whose end the switch has told, as long as it may still show
	// them.
	ended map[rowOf]ended

	// owners says whose each contact is. A switch with multiple registrations deletes
	// every row with the contact of a new one, also those of other users.
	owners map[string]pbxmesh.AOR
}

// rowOf names a row of the switch's table: Call-IDs may be in several.
type rowOf struct {
	pbxmesh.RegistrationID
	contact string
}

func (b *binding) row() rowOf { return rowOf{b.reg.ID(), b.reg.Contact} }

// ended is an end that was told.
type ended struct {
	seq uint64
	at  time.Time
}

// devices is what is known of one address of record.
type devices struct {
	alive []device // newest registration of its contact and of its Call-ID
	floor uint64   // events up to it are part of the last answer
	seen  uint64   // the highest sequence of an event

	// Newest registration by contact and by Call-ID where that is no live device, but
	// one that was replaced.
	contacts, calls map[string]uint64
	ends            []end // above the floor
}

type device struct {
	binding
	seq uint64

	// heard says that an event told the user agent: the switch does not change it in
	// its table when a phone registers again with the same contact.
	heard bool
	// shares says that the switch may hold another row with the Call-ID.
	shares bool
}

// end is an end that an event told, kept for events that come late.
type end struct {
	callID, contact string
	row             bool // see endOf
	seq             uint64
}

func newTable(sink Sink, epoch string) *table {
	return &table{
		sink: sink, epoch: epoch, aors: make(map[pbxmesh.AOR]*devices),
		ended: make(map[rowOf]ended), owners: make(map[string]pbxmesh.AOR),
	}
}

// accept notes a sequence and reports whether the event can still say something.
func (t *table) accept(seq uint64) bool {
	t.high = max(t.high, seq)
	return seq > t.floor
}

// of returns what is known of aor for an event, nil when the last answer knows more.
func (t *table) of(aor pbxmesh.AOR, seq uint64) *devices {
	d := t.aors[aor]
	if d == nil {
		d = &devices{}
		t.aors[aor] = d
	}
	if seq <= d.floor {
		return nil
	}
	return d
}

// known returns the live device with this Call-ID, nil without one.
func (t *table) known(aor pbxmesh.AOR, callID string) *device { return find(t.aors[aor], callID) }

// register applies a registration. vague reports that the switch has to be asked
// whether the user's devices live: on a switch without multiple registrations another
// one has just vanished silently, and an end that was told may have meant this one.
// other is another user whose row with the same contact may be gone.
func (t *table) register(seq uint64, b binding) (vague bool, other pbxmesh.AOR) {
	if !t.accept(seq) {
		return false, other
	}
	aor, contact, callID := b.reg.AOR, b.reg.Contact, b.reg.CallID
	d := t.of(aor, seq)
	if d == nil {
		return false, other
	}
	// An event that comes late may have missed what it would have shown.
	vague = seq < d.seen
	d.seen = max(d.seen, seq)
	n := device{binding: b, seq: seq, heard: true}
	lives := d.newest(contact, callID) < seq
	for _, e := range d.ends {
		switch {
		case e.seq < seq:
		case e.contact == contact && e.callID == callID:
			lives = false
		case !e.row || e.callID == callID || e.contact == contact:
			vague = true
		}
	}
	// Even one that is itself over already replaces what is older still.
	var replaced []device
	d.alive = slices.DeleteFunc(d.alive, func(old device) bool {
		if old.seq >= seq || old.reg.Contact != contact && old.reg.CallID != callID {
			return false
		}
		n.shares = n.shares || old.shares || old.reg.Contact != contact
		replaced = append(replaced, old)
		return true
	})
	t.size -= len(replaced)
	for i := range replaced {
		// What shared the Call-ID of one that was replaced by contact is still there.
		vague = vague || replaced[i].shares && replaced[i].reg.CallID != callID
		t.mark(d, replaced[i].reg.Contact, replaced[i].reg.CallID, replaced[i].seq)
		t.disown(&replaced[i])
	}
	if lives {
		// The live device itself is now the newest registration of both.
		t.unmark(d.contacts, contact)
		t.unmark(d.calls, callID)
		if e, ok := t.ended[b.row()]; ok && e.seq < seq {
			delete(t.ended, b.row())
		}
		if owner := t.owners[contact]; owner != aor {
			other = owner
		}
		t.owners[contact] = aor
		d.alive = append(d.alive, n)
		t.size++
		vague = vague || len(replaced) == 0 && len(d.alive) > 1
		// Told before anything is taken away: nobody may find the user gone in between.
		if t.live {
			t.sink.Put(b.reg)
		}
	} else {
		vague = vague || len(d.alive) > 0
		t.mark(d, contact, callID, seq)
		d.shared(&b.reg)
	}
	for i := range replaced {
		if id := replaced[i].reg.ID(); t.live && (!lives || id.CallID != callID) {
			t.sink.Remove(id)
		}
	}
	return vague, other
}

// unregister applies an end at now. vague reports that the switch has to be asked,
// and that nothing was taken out.
func (t *table) unregister(seq uint64, aor pbxmesh.AOR, e endOf, now time.Time) (vague bool) {
	d := t.aors[aor]
	if !t.accept(seq) || d != nil && seq <= d.floor {
		// The last answer knows, but for a row that was still to be deleted.
		return (e.row || e.uri == "") && find(d, e.callID) != nil
	}
	d = t.of(aor, seq)
	exact, back := -1, false
	vague = e.uri == "" && !e.row || seq < d.seen // its registration may come later than its end
	d.seen = max(d.seen, seq)
	for i := range d.alive {
		dev := &d.alive[i]
		call, contact := dev.reg.CallID == e.callID, dev.reg.Contact == e.uri
		switch {
		case dev.seq >= seq:
			back = back || call && contact
		case dev.reg.Profile != e.profile:
		case call && contact && dev.name == e.name && !dev.shares:
			exact = i
		case call || contact || !e.row:
			// A row has one contact and one Call-ID. Any other end may be that of all
			// devices of the user.
			vague = true
		}
	}
	if exact >= 0 {
		old := d.alive[exact]
		d.alive = slices.Delete(d.alive, exact, exact+1)
		t.size--
		t.disown(&old)
		if t.live {
			t.sink.Remove(old.reg.ID())
		}
		vague = seq < d.seen
	}
	told := end{callID: strings.Clone(e.callID), contact: strings.Clone(e.uri), row: e.row, seq: seq}
	d.ends = append(d.ends, told)
	t.marks++
	if e.row && !back {
		t.ended[rowOf{pbxmesh.RegistrationID{AOR: aor, CallID: told.callID}, told.contact}] = ended{seq, now}
	}
	return vague
}

// disown forgets that a device's contact is its user's.
func (t *table) disown(d *device) {
	if t.owners[d.reg.Contact] == d.reg.AOR {
		delete(t.owners, d.reg.Contact)
	}
}

// newest returns the highest sequence of a registration with contact or callID.
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
	if (*m)[key] >= seq {
		return
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

func find(d *devices, callID string) *device {
	if d == nil {
		return nil
	}
	for i := range d.alive {
		if d.alive[i].reg.CallID == callID {
			return &d.alive[i]
		}
	}
	return nil
}

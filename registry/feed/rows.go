package feed

import (
	"time"

	"pbxmesh"
)

// repairs counts what an answer of the switch put right.
type repairs struct{ added, changed, removed int }

func (r repairs) total() int { return r.added + r.changed + r.removed }

func (r *repairs) add(o repairs) {
	r.added, r.changed, r.removed = r.added+o.added, r.changed+o.changed, r.removed+o.removed
}

// snapshot makes rows the truth as of barrier, the highest sequence that had been
// seen before the switch was asked at now. Facts above it win. doubted are the users
// about whom the switch has to be asked again.
func (t *table) snapshot(rows []binding, barrier uint64, now time.Time) (r repairs, doubted []pbxmesh.AOR) {
	for id, e := range t.ended {
		if now.Sub(e.at) >= lag {
			delete(t.ended, id)
		}
	}
	t.floor = barrier
	byAOR := make(map[pbxmesh.AOR][]*binding, len(t.aors))
	for i := range rows {
		byAOR[rows[i].reg.AOR] = append(byAOR[rows[i].reg.AOR], &rows[i])
	}
	for aor := range t.aors {
		if byAOR[aor] == nil {
			byAOR[aor] = nil
		}
	}
	live := t.live
	t.live = true
	for aor, of := range byAOR {
		one, again := t.replace(aor, of, barrier, live)
		r.add(one)
		if again {
			doubted = append(doubted, aor)
		}
	}
	if !live {
		t.sink.Reset(t.epoch, t.all())
		return repairs{}, doubted
	}
	return r, doubted
}

// answer makes rows the truth about one user, as of barrier.
func (t *table) answer(aor pbxmesh.AOR, rows []binding, barrier uint64, now time.Time) (r repairs, again bool) {
	of := make([]*binding, len(rows))
	for i := range rows {
		of[i] = &rows[i]
	}
	for i := range rows {
		if row := rows[i].row(); now.Sub(t.ended[row].at) >= lag {
			delete(t.ended, row)
		}
	}
	return t.replace(aor, of, barrier, t.live)
}

// replace makes rows the truth about aor as of barrier, and tells the Sink what
// differs from before: what is new first. again reports that the switch has to be asked
// once more: the end of a row was told, or events came while the question was under
// way and who was first cannot be known.
func (t *table) replace(aor pbxmesh.AOR, rows []*binding, barrier uint64, tell bool) (r repairs, again bool) {
	old := t.aors[aor]
	if old == nil {
		old = &devices{}
	}
	d := &devices{floor: barrier, seen: old.seen}
	t.size -= len(old.alive)
	t.marks -= len(old.contacts) + len(old.calls) + len(old.ends)
	for i := range old.alive {
		t.disown(&old.alive[i])
	}
	// Facts that came after the question.
	for _, a := range old.alive {
		if a.seq > barrier {
			d.alive = append(d.alive, a)
		}
	}
	t.keepMarks(&d.contacts, old.contacts, barrier)
	t.keepMarks(&d.calls, old.calls, barrier)
	for _, e := range old.ends {
		if e.seq > barrier {
			d.ends = append(d.ends, e)
			t.marks++
		}
	}
	for _, b := range rows {
		if _, ok := t.ended[b.row()]; ok {
			again = true
			continue
		}
		d.row(b, barrier, find(old, b.reg.CallID))
	}
	again = again || len(rows) > 0 && len(d.ends) > 0
	for i := range d.alive {
		again = again || d.alive[i].seq > barrier && len(d.alive) > 1
	}
	t.size += len(d.alive)
	for i := range d.alive {
		t.owners[d.alive[i].reg.Contact] = aor
	}
	if len(d.alive)+len(d.contacts)+len(d.calls)+len(d.ends) > 0 || barrier > t.floor {
		t.aors[aor] = d
	} else {
		delete(t.aors, aor)
	}
	if tell {
		r = t.tell(old, d)
	}
	return r, again
}

func (t *table) keepMarks(to *map[string]uint64, from map[string]uint64, floor uint64) {
	for key, seq := range from {
		if seq > floor {
			t.markOne(to, key, seq)
		}
	}
}

// row adds one row unless a newer fact names its contact or Call-ID.
//
// Rows may share a Call-ID: with multiple-registrations=true the switch keeps the
// row of a phone's old port beside that of the new one, and rings both. A record is
// known by its Call-ID, so one stands for both: the later to expire, and within the
// tolerance the one that before, the record of the last events, was about.
func (d *devices) row(b *binding, barrier uint64, before *device) {
	reg := &b.reg
	if d.newest(reg.Contact, reg.CallID) > barrier {
		d.shared(reg)
		return
	}
	for _, e := range d.ends {
		if e.callID == reg.CallID && e.contact == reg.Contact {
			return
		}
	}
	n := device{binding: *b, seq: barrier}
	if before != nil && before.heard && before.reg.Contact == reg.Contact {
		n.heard, n.reg.UserAgent, n.reg.Since = true, before.reg.UserAgent, before.reg.Since
	}
	kept := make([]device, 0, len(d.alive)+1)
	for i := range d.alive {
		a := &d.alive[i]
		if a.reg.Contact != reg.Contact && a.reg.CallID != reg.CallID {
			kept = append(kept, *a)
			continue
		}
		longer := a.reg.Expires.Sub(reg.Expires)
		if longer > expiryTolerance || longer >= -expiryTolerance && before != nil && a.reg.Contact == before.reg.Contact {
			a.shares = true
			return
		}
		n.shares = true
	}
	kept = append(kept, n)
	d.alive = kept
}

// shared notes that the switch has, or had, another row than a live device's with the
// Call-ID of reg.
func (d *devices) shared(reg *pbxmesh.Registration) {
	for i := range d.alive {
		if a := &d.alive[i]; a.reg.CallID == reg.CallID && a.reg.Contact != reg.Contact {
			a.shares = true
		}
	}
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

// tell sends the Sink what differs between old and d.
func (t *table) tell(old, d *devices) (r repairs) {
	for i := range d.alive {
		reg := &d.alive[i].reg
		before := find(old, reg.CallID)
		switch {
		case before == nil:
			r.added++
		case !same(&before.reg, reg):
			r.changed++
		default:
			reg.Expires, reg.Since = before.reg.Expires, before.reg.Since // what the Sink has been told
			continue
		}
		t.sink.Put(*reg)
	}
	for i := range old.alive {
		if find(d, old.alive[i].reg.CallID) == nil {
			t.sink.Remove(old.alive[i].reg.ID())
			r.removed++
		}
	}
	return r
}

// same compares all but the expiry exactly. A snapshot does not tell when a registration
// was heard.
func same(a, b *pbxmesh.Registration) bool {
	x, y := *a, *b
	x.Expires, y.Expires = time.Time{}, time.Time{}
	x.Since, y.Since = pbxmesh.StampUnknown, pbxmesh.StampUnknown
	return x == y && a.Expires.Sub(b.Expires).Abs() <= expiryTolerance
}

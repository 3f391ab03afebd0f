package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Questions about single users are asked after these pauses, as long as the switch
// may be about to delete what it still shows. It deletes within milliseconds, within
// seconds when it is busy.
var pauses = [...]time.Duration{
	0, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond,
	800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond, 6400 * time.Millisecond,
}

const (
	// maxAsked bounds the questions between two looks at everything else.
	maxAsked = 64

	// manyQuestions waiting, and more than a twentieth of all registrations, are
	// work like a snapshot, which answers all of them: it is asked for as well.
	manyQuestions = 500
)

// place is where the switch is asked about a user: its table compares the address
// with case.
type place struct{ profile, spelled string }

// question is a doubt about one user.
type question struct {
	at place // "" besides where the user's known devices are

	// lingers is a row that the switch may be about to delete; without a Call-ID one
	// answer is enough.
	lingers lingering
}

// lingering names rows: by Call-ID, and by contact unless that is empty.
type lingering struct{ callID, contact string }

func (l lingering) is(reg *pbxmesh.Registration) bool {
	return l.callID == reg.CallID && (l.contact == "" || l.contact == reg.Contact)
}

// doubt is a question that waits, or waits to be asked again.
type doubt struct {
	places  []place
	lingers []lingering
	seq     uint64 // of the newest event that raised it
	due     time.Time
	tries   int
	again   bool // the snapshot had a row whose end was told
}

// at notes where to ask.
func (d *doubt) at(p place) {
	if p != (place{}) && !slices.Contains(d.places, p) {
		d.places = append(d.places, p)
	}
}

// wonder notes a doubt about a user; the switch is asked soon. f.mu is held.
func (f *Feed) wonder(aor pbxmesh.AOR, q question) {
	d := f.doubts[aor]
	if d == nil {
		d = &doubt{}
		f.doubts[aor] = d
	}
	d.at(q.at)
	if q.lingers.callID != "" && !slices.Contains(d.lingers, q.lingers) {
		d.lingers = append(d.lingers, q.lingers)
	}
	d.seq, d.due, d.tries = f.table.high, time.Now(), 0
	if len(f.doubts) > max(manyQuestions, f.table.size/20) {
		f.askSnapshot()
	}
	select {
	case f.doubted <- struct{}{}:
	default:
	}
}

// nextDoubt returns when the next question is due.
func (f *Feed) nextDoubt() (at time.Time, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.doubts {
		if !ok || d.due.Before(at) {
			at, ok = d.due, true
		}
	}
	return at, ok
}

// asker is what a question goes to: a connection to the switch.
type asker interface {
	API(ctx context.Context, command string) (string, error)
}

// resolve asks the switch about users in doubt, at most maxAsked. An error is the
// connection's.
func (f *Feed) resolve(ctx context.Context, conn asker) error {
	f.mu.Lock()
	now := time.Now()
	var due []pbxmesh.AOR
	for aor, d := range f.doubts {
		if len(due) < maxAsked && !d.due.After(now) {
			due = append(due, aor)
		}
	}
	f.mu.Unlock()
	for _, aor := range due {
		if err := f.resolveOne(ctx, conn, aor); err != nil {
			return err
		}
	}
	return nil
}

// resolveOne asks about one user wherever it is known.
func (f *Feed) resolveOne(ctx context.Context, conn asker, aor pbxmesh.AOR) error {
	f.mu.Lock()
	table, barrier, d := f.table, f.table.high, f.doubts[aor]
	if d == nil {
		f.mu.Unlock()
		return nil
	}
	places := slices.Clone(d.places)
	if known := table.aors[aor]; known != nil {
		for i := range known.alive {
			if at := (place{known.alive[i].reg.Profile, known.alive[i].spelled}); !slices.Contains(places, at) {
				places = append(places, at)
			}
		}
	}
	f.mu.Unlock()
	var rows []binding
	for _, at := range places {
		reply, err := conn.API(ctx, "sofia xmlstatus profile "+at.profile+" user "+at.spelled)
		var refused *esl.ReplyError
		if err != nil && !errors.As(err, &refused) {
			return fmt.Errorf("ask the switch about %s: %w", aor, err)
		}
		of := readAt{at.profile, f.opts.Now()}
		err = parseRows(reply, at.profile, func(row fields, host string, cut bool) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if b, ok := f.fromRow(row, host, cut, of); ok && b.reg.AOR == aor {
				rows = append(rows, b)
			}
		})
		if err != nil && !errors.Is(err, ErrProfile) {
			f.mu.Lock() // not understood: the snapshot will tell
			delete(f.doubts, aor)
			f.mu.Unlock()
			f.askSnapshot()
			return nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table != table || !table.live {
		return nil
	}
	f.status.Questions++
	r, again := table.answer(aor, rows, barrier, f.opts.Now())
	f.status.Answered += uint64(r.total())
	f.answered(aor, rows, again, barrier)
	return nil
}

// answered decides whether a doubt is over. f.mu is held.
func (f *Feed) answered(aor pbxmesh.AOR, rows []binding, again bool, barrier uint64) {
	d := f.doubts[aor]
	if d == nil || d.seq > barrier {
		return // none, or raised since
	}
	for i := range rows {
		again = again || slices.ContainsFunc(d.lingers, func(l lingering) bool { return l.is(&rows[i].reg) })
	}
	now := time.Now()
	early := now.Before(d.due) // a snapshot may have come before its time
	if !early {
		d.tries++
	}
	if !again || d.tries == len(pauses) {
		delete(f.doubts, aor)
		return
	}
	if !early {
		d.due = now.Add(pauses[d.tries])
	}
}

// settle takes a snapshot for the answer to every doubt. doubted are the users with
// rows whose end was told. f.mu is held.
func (f *Feed) settle(rows []binding, doubted []pbxmesh.AOR, barrier uint64) {
	for _, aor := range doubted {
		if f.doubts[aor] == nil {
			f.doubts[aor] = &doubt{}
		}
		f.doubts[aor].again = true
	}
	if len(f.doubts) == 0 {
		return
	}
	byAOR := make(map[pbxmesh.AOR][]binding, len(f.doubts))
	for i := range rows {
		if aor := rows[i].reg.AOR; f.doubts[aor] != nil {
			byAOR[aor] = append(byAOR[aor], rows[i])
		}
	}
	for aor, d := range f.doubts {
		again := d.again
		d.again = false
		for i := range byAOR[aor] { // a user without a live device is known nowhere else
			d.at(place{byAOR[aor][i].reg.Profile, byAOR[aor][i].spelled})
		}
		f.answered(aor, byAOR[aor], again, barrier)
	}
}

package registry

import (
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
)

const (
	// holdFrom is the shortest lifetime of a registration whose refreshes are held
	// back for longer than the bulk of one second: shorter ones leave no room for
	// clocks and a store that is slow.
	holdFrom = 30 * time.Second

	// holdEnds is how long before the published expiry passes nothing is held back
	// any more, not even for the bulk of one second.
	holdEnds = 10 * time.Second
)

// heldBack holds refreshes that move nothing but the expiry of a registration, by the
// second from which on they are worth publishing. Until then other nodes hold an expiry
// that is too early and well ahead of now; the local replica is exact.
//
// A refresh is worth publishing when between half and two thirds of the published
// lifetime are over: at least a third is left for a store that is away, and a storm of
// registrations, which all have the same lifetime, is not passed on as one. What is due
// goes out together once a second.
//
// A registration that is refreshed again stays where it is: only what is published
// moves its time.
type heldBack struct {
	seconds map[int64][]*own // some were published meanwhile: their heldFor differs
	count   int
	entries int // of all seconds, those included that do not count any more
}

func (h *heldBack) add(o *own, second int64) {
	if o.heldFor == second {
		return
	}
	h.drop(o)
	o.heldFor = second
	h.seconds[second] = append(h.seconds[second], o)
	h.count++
	if h.entries++; h.entries > 2*h.count+1024 {
		h.compact()
	}
}

// compact drops what does not count any more: a phone that changes with every refresh
// leaves an entry each time.
func (h *heldBack) compact() {
	h.entries = 0
	for second, list := range h.seconds {
		list = slices.DeleteFunc(list, func(o *own) bool { return o.heldFor != second })
		if h.entries += len(list); len(list) == 0 {
			delete(h.seconds, second)
		} else {
			h.seconds[second] = list
		}
	}
}

func (h *heldBack) drop(o *own) {
	if o.heldFor != 0 {
		o.heldFor = 0
		h.count--
	}
}

// clear forgets everything. The caller sets heldFor of every record to 0.
func (h *heldBack) clear() {
	clear(h.seconds)
	h.count, h.entries = 0, 0
}

// publishing notes what the store is told of o's expiry, and from when on it is worth
// to be told again.
func (o *own) publishing() {
	o.pubExpiry = o.expires.UnixMilli()
	lifetime := o.pubExpiry - o.set
	if lifetime < holdFrom.Milliseconds() {
		o.due = o.set
		return
	}
	spread := xxhash.Sum64String(o.rec.Key) % 1024
	o.due = o.set + lifetime/2 + lifetime/6*int64(spread)/1024
}

// hold keeps o's refresh back unless it matters now. The caller holds w.mu.
func (w *Writer) hold(o *own) bool {
	if w.o.EveryRefresh || o.dirty || !o.pub || w.full || !w.ready {
		return false
	}
	// An expiry that came nearer is news: others would call a phone that is gone.
	if o.expires.UnixMilli() < o.pubExpiry || o.pubExpiry-o.set < holdEnds.Milliseconds() {
		return false
	}
	w.held.add(o, max(o.due, o.set)/1000+1)
	w.status.HeldBack++
	return true
}

// release queues the refreshes that are due at now and reports whether there are any.
// What does not fit in the queue stays for the next second.
func (w *Writer) release(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	room := w.o.MaxPending/2 - len(w.queue)
	released := false
	for second, list := range w.held.seconds {
		if second > now.Unix() {
			continue
		}
		for len(list) > 0 && room > 0 {
			o := list[len(list)-1]
			list = list[:len(list)-1]
			w.held.entries--
			if o.heldFor != second {
				continue
			}
			w.mark(o)
			room--
			released = true
		}
		if len(list) > 0 {
			w.held.seconds[second] = list
			break
		}
		delete(w.held.seconds, second)
	}
	return released
}

// sameButExpiry reports whether two values of registrations differ in nothing but the
// expiry, which EncodeRegistration writes last. No JSON string holds a bare quote, so
// the last mark is the field's.
func sameButExpiry(a, b string) bool {
	const mark = `,"x":`
	i, j := strings.LastIndex(a, mark), strings.LastIndex(b, mark)
	return i >= 0 && i == j && a[:i] == b[:j]
}

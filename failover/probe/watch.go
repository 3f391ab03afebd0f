package probe

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"pbxmesh/failover"
)

// maxQuick bounds the quick probes after a failed one: long enough for every
// verdict, not for days.
const maxQuick = 20

// maxRow bounds the requests of one row; a switch that is gone for days gets many rows.
const maxRow = copies * (maxQuick + 1)

// watch probes one address. Its goroutine alone touches it.
type watch struct {
	p *Prober
	target

	trip roundTrip
	row  *row

	start  time.Time // of the last probe
	last   plan      // of the last probe
	due    time.Time // when the timer is to come that is waited for
	first  int       // number of its first request
	sent   int       // requests of the last probe that left
	late   bool      // timers of the last probe came late
	failed int       // probes in a row without an answer, those that were late apart
	lates  int       // probes in a row that were late
	inStep bool      // others probed when this one did, because one of them had lost an answer

	// backOff counts probes since the last measurement, which is an answer within the
	// first probe of a row. As with TCP (RFC 6298 section 5.7, Karn) the wait stays long
	// until then: a path that has become longer is measured by the first probe after
	// its row, and a switch that stood still for a moment, whose answers are late as
	// well, leaves no trace.
	backOff int
}

// row is what was sent to one address since its last answer: one probe as a rule, and
// more when probes fail. An answer to any of it shows the switch alive, also one that
// comes when its own probe is over.
type row struct {
	to       netip.AddrPort
	id       string
	sent     []time.Time // request n left at sent[n-1], or was to leave
	answers  chan answer // capacity 1
	refusals chan int    // numbers of refused requests; capacity copies
}

// answer is a final answer to request number of a row.
type answer struct {
	number, code int
	at           time.Time // when it was read
}

// run probes until ctx ends. The first delay is random within one interval, so that a
// hundred nodes are not asked, and do not ask, in the same instant.
func (w *watch) run(ctx context.Context, hurry <-chan struct{}) {
	w.newRow()
	defer func() { w.p.forget(w.row) }()
	timer := time.NewTimer(rand.N(w.p.opts.Interval))
	defer timer.Stop()
	for {
		var result failover.ProbeResult
		select {
		case <-ctx.Done():
			return
		case a := <-w.row.answers:
			result = w.answered(a) // its probe is over
		case <-hurry:
			// Who has just probed knows; and nobody can make us probe all the time.
			if since := time.Since(w.start); since < w.last.timeout/2 {
				w.due = w.start.Add(w.last.timeout / 2)
				timer.Reset(w.last.timeout/2 - since)
				continue
			}
			result = w.probe(ctx)
			w.inStep = true
		case <-timer.C:
			result = w.probe(ctx)
		}
		if ctx.Err() != nil {
			return // our end, not the node's: says nothing about it
		}
		w.p.opts.OnResult(result)
		select {
		case <-hurry: // what came in meanwhile is answered
		default:
		}
		now := time.Now()
		wait := w.pause(result.Outcome, now)
		w.due = now.Add(wait)
		timer.Reset(wait)
	}
}

// pause counts an outcome and returns how long to wait before the next probe.
func (w *watch) pause(o failover.Outcome, now time.Time) time.Duration {
	wait := jitter(w.p.opts.Interval, rand.Float64())
	switch o {
	case failover.OutcomeOK, failover.OutcomeOverloaded:
		if w.inStep || w.failed > 0 {
			// Observers that go on in step notice the next failure all at the same time, and
			// late: somewhere within the interval.
			wait = rand.N(w.p.opts.Interval)
		}
		w.failed, w.lates, w.inStep = 0, 0, false
	case failover.OutcomeLate:
		// Soon, but who has no time for its probes does not get more of them, and not
		// all at once: from now on, at random, and twice as long each time.
		w.lates++
		soon := w.last.timeout << min(w.lates-1, 10)
		return min(jitter(soon, rand.Float64()), wait)
	default:
		w.lates = 0
		if w.failed++; w.failed > maxQuick {
			break
		}
		wait = w.last.timeout
		if o != failover.OutcomeTimeout {
			// It came before the time was over. A profile that restarts refuses for
			// a moment, too.
			wait = w.p.opts.Timeout
		}
	}
	return max(0, wait-now.Sub(w.start))
}

// jitter returns d, a tenth more or less, for r in [0, 1).
func jitter(d time.Duration, r float64) time.Duration {
	return d*9/10 + time.Duration(r*float64(d)/5)
}

// newRow begins a new row: the former one is answered, or long.
func (w *watch) newRow() {
	if w.row != nil {
		w.p.forget(w.row)
	}
	w.row = &row{to: w.addr, id: newID(), answers: make(chan answer, 1), refusals: make(chan int, copies)}
	w.p.expect(w.row)
}

var errRefused = errors.New("ICMP says that nobody listens there")

// probe sends OPTIONS until an answer comes, copies of them at most, and returns how that
// ended.
func (w *watch) probe(ctx context.Context) failover.ProbeResult {
	select {
	case <-ctx.Done():
		return failover.ProbeResult{}
	case w.p.slots <- struct{}{}:
	}
	defer func() { <-w.p.slots }()

	if len(w.row.sent) > maxRow-copies {
		w.newRow()
	}
	w.start, w.sent, w.late = time.Now(), 0, false
	w.last = w.trip.plan(w.p.opts.Timeout, w.backOff)
	w.backOff++
	w.first = len(w.row.sent) + 1
	timer := time.NewTimer(0)
	defer timer.Stop()
	var failure error
	for step := 0; ; {
		w.due = w.start.Add(time.Duration(step) * w.last.gap)
		if step == copies {
			w.due = w.start.Add(w.last.timeout)
		}
		timer.Reset(time.Until(w.due))
		select {
		case <-ctx.Done():
			return failover.ProbeResult{}
		case a := <-w.row.answers:
			return w.answered(a)
		case n := <-w.row.refusals:
			if n < w.first {
				continue // of a request of an earlier probe
			}
			return w.unheard(failover.OutcomeRefused, errRefused)
		case <-timer.C:
		}
		now := time.Now()
		w.late = w.late || w.lateAt(now)
		if over := now.Sub(w.start) >= w.last.timeout; !over && step < copies {
			if err := w.send(); err != nil {
				failure = err
			}
			step++
			continue
		}
		select {
		case a := <-w.row.answers:
			return w.answered(a)
		default:
		}
		switch {
		case w.sent == 0 && failure != nil:
			return w.unheard(failover.OutcomeError, failure)
		case w.late || w.sent < copies:
			return w.unheard(failover.OutcomeLate, errLate)
		}
		return w.unheard(failover.OutcomeTimeout, context.DeadlineExceeded)
	}
}

// lateAt reports whether the timer that is waited for is late at now: by more than a fifth
// of the probe's wait, which is less than a copy needs to be answered, or granularity.
// Then the process was stopped or got no processor, and what looks like a silence may
// be an answer that nobody read.
func (w *watch) lateAt(now time.Time) bool {
	return now.Sub(w.due) > max(w.last.timeout/5, granularity)
}

var errLate = errors.New("probe: this observer was late itself, so the silence says nothing")

// send sends the next request of the row.
func (w *watch) send() error {
	r := w.row
	r.sent = append(r.sent, time.Now())
	err := w.p.link.send(request(r.id, len(r.sent), r.to, sentBy(w.p.link.addr())), r.to)
	if err == nil {
		w.sent++
	}
	return err
}

// answered returns the result that a is, and begins a new row. An answer to the first
// probe of a row, while it is under way, is a measurement.
func (w *watch) answered(a answer) failover.ProbeResult {
	r := failover.ProbeResult{Node: w.node, Path: w.path, At: time.Now(), Code: a.code, Sent: w.sent, Outcome: outcomeOf(a.code)}
	if a.number <= len(w.row.sent) {
		r.RTT = max(1, a.at.Sub(w.row.sent[a.number-1]))
		// Who was late may have read late, and a switch that was silent before may have
		// stood still.
		if w.first == 1 && a.at.Sub(w.start) <= w.last.timeout && !w.late && !w.lateAt(a.at) {
			w.trip.add(r.RTT)
			w.backOff = 0
		}
	}
	w.newRow()
	return r
}

func (w *watch) unheard(o failover.Outcome, err error) failover.ProbeResult {
	return failover.ProbeResult{Node: w.node, Path: w.path, At: time.Now(), Sent: w.sent, Outcome: o, Err: err}
}

// outcomeOf is the one table from the codes of final SIP answers to outcomes: whatever
// it answers, a switch that answers is alive, and 503 alone asks to be left alone.
func outcomeOf(code int) failover.Outcome {
	if code == 503 {
		return failover.OutcomeOverloaded
	}
	return failover.OutcomeOK
}

package esl

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/percipia/eslgo"
)

// relayDown passes frames from the switch to eslgo until the session ends.
func (s *session) relayDown() {
	defer close(s.down)
	r := downRelay{s: s, buf: make([]byte, batchHeaderRoom, callBuffer)}
	for {
		f, ok, err := s.in.buffered()
		if err == nil && !ok {
			// Nothing more has arrived: do not let events wait for what may come.
			if !r.flush() {
				return
			}
			f, err = s.in.next()
		}
		if err != nil {
			r.flush()
			s.fail(s.lost("read from", err))
			return
		}
		if !r.frame(f) {
			return
		}
	}
}

// downRelay collects events into batches.
type downRelay struct {
	s       *session
	buf     []byte // room for the batch's header, then events, each with its length before it
	events  int
	batch   uint64
	unknown bool // an unknown content type was logged
}

// batchHeaderRoom holds the two header blocks that go before a batch.
const batchHeaderRoom = 128

// frame handles one frame; false ends the relay.
func (r *downRelay) frame(f frame) bool {
	s := r.s
	switch f.kind {
	case kindEvent:
		if r.events > 0 && len(r.buf)+len(f.body) > batchHeaderRoom+batchBytes && !r.flush() {
			return false
		}
		r.buf = binary.LittleEndian.AppendUint32(r.buf, uint32(len(f.body)))
		r.buf = append(r.buf, f.body...)
		r.events++
		return true
	case kindReply, kindAPI:
		if !r.flush() {
			return false
		}
		if !s.settle(true) {
			if s.cause() != nil {
				return true
			}
			s.cfg.log.Warn("the switch answered something that was not asked, dropped", "peer", s.cfg.label)
			return true
		}
		s.writeInner(wrapReply(f))
		return true
	case kindDisconnect:
		head := newEvent(string(f.header))
		if head.Get("Content-Disposition") == "linger" {
			// The channel is gone, the last events are still to come. The switch
			// closes after Linger-Time seconds; a second more is ours.
			r.linger(head.Get("Linger-Time"))
			return true
		}
		r.flush()
		s.fail(fmt.Errorf("%w: the switch at %s said goodbye", ErrClosed, s.cfg.label))
		return false
	case kindRude:
		r.flush()
		s.fail(fmt.Errorf("%s: %w", s.cfg.label, ErrACL))
		return false
	default:
		if !r.unknown {
			r.unknown = true
			s.cfg.log.Warn("frame of a kind that was not asked for, dropped; further ones are not logged",
				"peer", s.cfg.label, "header", shorten(string(f.header)))
		}
		return true
	}
}

// maxLinger bounds what Linger-Time may announce.
const maxLinger = 10 * time.Minute

func (r *downRelay) linger(seconds string) {
	limit := maxLinger
	if n, err := strconv.Atoi(seconds); err == nil && n >= 0 && n < int(maxLinger/time.Second) {
		limit = time.Duration(n+1) * time.Second
	}
	s := r.s
	s.relays.Add(1) // supervise waits for relayDown before it waits for the others
	go func() {
		defer s.relays.Done()
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-t.C:
			s.fail(fmt.Errorf("%w: the channel at %s is gone and lingered long enough", ErrClosed, s.cfg.label))
		case <-s.closing:
		}
	}()
}

// flush hands the batch to eslgo as one event, waiting while too many are on
// their way; false when the session ended meanwhile. The event's headers are ours
// and the switch's bytes are its body, which eslgo does not parse.
func (r *downRelay) flush() bool {
	if r.events == 0 {
		return true
	}
	s := r.s
	select {
	case s.window <- struct{}{}:
	default:
		select {
		case s.window <- struct{}{}:
		case <-s.closing:
			return false
		}
	}
	var inner, outer [batchHeaderRoom]byte
	body := len(r.buf) - batchHeaderRoom
	in := append(inner[:0], "Batch: "...)
	in = strconv.AppendUint(in, r.batch, 10)
	in = append(in, "\nContent-Length: "...)
	in = strconv.AppendInt(in, int64(body), 10)
	in = append(in, "\n\n"...)
	out := append(outer[:0], "Content-Type: text/event-plain\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(in)+body), 10)
	out = append(out, "\n\n"...)
	out = append(out, in...)
	start := batchHeaderRoom - len(out)
	copy(r.buf[start:], out)
	s.writeInner(r.buf[start:])
	r.batch++
	r.events = 0
	if cap(r.buf) > 4*batchBytes { // do not keep what one huge event needed
		r.buf = make([]byte, batchHeaderRoom, callBuffer)
	}
	r.buf = r.buf[:batchHeaderRoom]
	return true
}

// wrapReply makes a reply whose only headers are ours: the switch's header block
// (of a connect: all channel data, with names that MIME may not allow) goes into
// the body, before the switch's own.
func wrapReply(f frame) []byte {
	b := make([]byte, 0, len(f.header)+len(f.body)+batchHeaderRoom)
	b = append(b, "Content-Type: command/reply\nHead: "...)
	b = strconv.AppendInt(b, int64(len(f.header)), 10)
	b = append(b, "\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(f.header)+len(f.body)), 10)
	b = append(b, "\n\n"...)
	b = append(b, f.header...)
	return append(b, f.body...)
}

// sequencer restores the order of batches that eslgo's goroutines bring in any
// order. No more than windowBatches are ever on their way, so no two of them share
// a place.
type sequencer struct {
	mu      sync.Mutex
	busy    bool
	next    uint64
	waiting [windowBatches][]byte
}

// onBatch is eslgo's event listener. Whichever goroutine finds the next batch in
// place and nobody at work handles batches until one is missing.
func (s *session) onBatch(ev *eslgo.Event) {
	n, err := strconv.ParseUint(ev.Headers.Get("Batch"), 10, 64)
	if err != nil {
		s.fail(fmt.Errorf("%w: eslgo brings an event that is not ours", ErrProtocol))
		return
	}
	q := &s.ordered
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting[n%windowBatches] = ev.Body
	if q.busy {
		return
	}
	q.busy = true
	for {
		place := &q.waiting[q.next%windowBatches]
		batch := *place
		if batch == nil {
			break
		}
		*place = nil
		q.next++
		q.mu.Unlock()
		s.deliver(batch)
		<-s.window
		q.mu.Lock()
	}
	q.busy = false
}

// deliver calls the handler with each event of a batch.
func (s *session) deliver(batch []byte) {
	for len(batch) >= 4 {
		n := int(binary.LittleEndian.Uint32(batch))
		if n > len(batch)-4 {
			return
		}
		text := string(batch[4 : 4+n])
		batch = batch[4+n:]
		s.mu.Lock()
		muted := s.muted
		s.mu.Unlock()
		if muted {
			return
		}
		s.cfg.onEvent(newEvent(text))
	}
}

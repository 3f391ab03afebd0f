package native

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"time"

	"pbxmesh"
)

const (
	publishTimeout = 2 * time.Second
	followRetry    = time.Second

	// maxWaiting bounds the keys that wait for the exchange. A new one that finds it
	// full is not told: what holds is repeated, what ended runs out.
	maxWaiting = 20_000
)

// teller publishes one node's own states and repeats them. Publishing happens on a
// goroutine of its own, one state after the other, the newest of each key only: an
// exchange that is slow or gone delays other nodes' lamps and nothing here.
type teller struct {
	exchange Exchange
	kind     string
	local    pbxmesh.NodeID
	ttl      time.Duration
	log      *slog.Logger
	run      string
	wake     chan struct{}

	mu      sync.Mutex
	seq     uint64
	own     map[string]State // what holds now
	waiting map[string]State // to be published
	order   []string         // keys of waiting
	stats   TellerStats
	said    bool // the exchange's failure is in the log
}

// TellerStats is what one node told and heard.
type TellerStats struct {
	Own       int    `json:"own"`       // states of this node that hold
	Published uint64 `json:"published"` // repetitions included
	Failed    uint64 `json:"failed"`
}

func newTeller(x Exchange, kind string, local pbxmesh.NodeID, ttl time.Duration, log *slog.Logger) *teller {
	return &teller{
		exchange: x, kind: kind, local: local, ttl: ttl, log: log, run: rand.Text(),
		wake: make(chan struct{}, 1), own: make(map[string]State), waiting: make(map[string]State),
	}
}

// tell makes st the state of its key: whose it is and its fields, the rest is filled
// in. It returns the whole.
func (t *teller) tell(st State) State {
	t.mu.Lock()
	defer t.mu.Unlock()
	st.Kind, st.Node, st.Run, st.TTL, st.told = t.kind, t.local, t.run, t.ttl, time.Now()
	st.Change = t.seq + 1
	t.own[st.Key] = st
	t.enqueue(st)
	return st
}

// say publishes st once, as the last word about a key that does not hold.
func (t *teller) say(st State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st.Kind, st.Node, st.Run, st.TTL, st.Ended = t.kind, t.local, t.run, t.ttl, true
	st.Change = t.seq + 1
	t.enqueue(st)
}

// get returns the state of key, if it holds.
func (t *teller) get(key string) (State, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	st, ok := t.own[key]
	return st, ok
}

// size returns how many keys hold.
func (t *teller) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.own)
}

// end says that key holds no more, with the fields of the last event or, nil, those
// it had. It reports whether key held.
func (t *teller) end(key string, fields map[string]string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	st, ok := t.own[key]
	if !ok {
		return false
	}
	delete(t.own, key)
	st.Ended, st.Change = true, t.seq+1
	if fields != nil {
		st.Fields = fields
	}
	t.enqueue(st)
	return true
}

// repeat publishes all that holds again.
func (t *teller) repeat() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, st := range t.own {
		if _, ok := t.waiting[st.Key]; !ok {
			t.enqueue(st)
		}
	}
}

func (t *teller) enqueue(st State) {
	t.seq++
	st.Seq = t.seq
	if _, ok := t.waiting[st.Key]; !ok {
		if len(t.order) >= maxWaiting {
			t.stats.Failed++
			return
		}
		t.order = append(t.order, st.Key)
	}
	t.waiting[st.Key] = st
	poke(t.wake)
}

// holds returns the keys that hold, with their states.
func (t *teller) holds() map[string]State {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string]State, len(t.own))
	for k, st := range t.own {
		out[k] = st
	}
	return out
}

func (t *teller) snapshot() TellerStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.Own = len(t.own)
	return s
}

// publish runs until ctx ends.
func (t *teller) publish(ctx context.Context) {
	for {
		t.mu.Lock()
		var st State
		have := len(t.order) > 0
		if have {
			st = t.waiting[t.order[0]]
			delete(t.waiting, t.order[0])
			t.order = t.order[1:]
		} else {
			t.order = nil
		}
		t.mu.Unlock()
		if !have {
			select {
			case <-t.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		pctx, cancel := context.WithTimeout(ctx, publishTimeout)
		err := t.exchange.Publish(pctx, st)
		cancel()
		if ctx.Err() != nil {
			return
		}
		t.count(st, err)
	}
}

func (t *teller) count(st State, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.stats.Published++
		t.said = false
		return
	}
	// Not tried again: what holds is repeated, and what ended runs out elsewhere.
	t.stats.Failed++
	if !t.said {
		t.said = true
		t.log.Warn("other nodes could not be told", "kind", t.kind, "key", st.Key, "err", err)
	}
}

// follow hands the other nodes' states to fn until ctx ends, through all failures, and
// to before, unless nil, what an earlier life of this daemon left behind.
func (t *teller) follow(ctx context.Context, fn, before func(State)) {
	for ctx.Err() == nil {
		err := t.exchange.Follow(ctx, t.kind, func(st State) {
			switch {
			case st.Kind != t.kind || st.AOR.IsZero() && st.From == "":
			case st.Node != t.local:
				fn(st)
			case before != nil && st.Run != t.run && !st.Ended:
				before(st)
			}
		})
		if ctx.Err() != nil {
			return
		}
		t.log.Warn("lost touch with the other nodes' states", "kind", t.kind, "err", err)
		timer := time.NewTimer(jitter(followRetry))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

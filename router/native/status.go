package native

import (
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// protoSIP is the protocol of presence of users; mod_sofia takes "any", "dp" and none
// for it.
const protoSIP = "sip"

func protoOf(proto string) string {
	switch strings.ToLower(proto) {
	case "", "any", "sip", "dp":
		return protoSIP
	}
	return proto
}

// ofPlace reports whether each switch has its own place of that name: a conference, a
// parking lot, a queue. What one switch says of its own is nothing about another's.
// All else (do not disturb, call forward, call flow, an agent's state, what a phone
// or a script says of a user) is one thing of which the newest word holds, whichever
// switch it was spoken on.
func ofPlace(proto string) bool {
	switch proto {
	case "conf", "park", "queue", "pickup", "callcenter":
		return true
	}
	return false
}

// answersNothing reports whether the answer to a probe may put out a lamp of which the
// switch that answers knows nothing: FusionPBX says of a mailbox that it does not find
// that there is no message. Its other scripts answer only what their database has.
func answersNothing(proto string) bool {
	switch proto {
	case protoSIP, "dnd", "forward", "flow", "agent":
		return false
	}
	return true
}

// lampKey is who is watched: mod_sofia tells subscriptions apart by protocol, user and
// domain.
type lampKey struct{ proto, addr string } // addr is lower case

func userLamp(aor pbxmesh.AOR) lampKey { return lampKey{protoSIP, aor.String()} }

func (k lampKey) String() string { return k.proto + "|" + k.addr }

// watched reads whom an event is about: "1002@a.test", "flow+*31@a.test". Nobody can watch
// a user with a "+" within: mod_sofia takes what follows it for a domain.
func watched(proto, from string) (lampKey, bool) {
	from = strings.TrimPrefix(from, "sip:")
	addr := bare(from)
	_, host, ok := strings.Cut(addr, "@")
	if !ok || strings.IndexByte(addr, '+') > 0 || len(from) > maxField || len(proto) > pbxmesh.MaxUserLen || clean(from+proto) != from+proto || strings.ContainsRune(proto, '|') {
		return lampKey{}, false
	}
	if _, err := pbxmesh.NewAOR("0", host); err != nil {
		return lampKey{}, false
	}
	return lampKey{protoOf(proto), strings.ToLower(addr)}, true
}

// statusEvent is presence without a call: what a script, a phone, a conference or a
// parking lot says of itself. It holds until its own end, whatever becomes of the
// channel that it may name.
type statusEvent struct {
	key    lampKey
	from   string
	ended  bool
	fields map[string]string
}

// parseStatus reads e, which is about no channel. ok is false for devices that come
// and go and for answers to one subscription.
func parseStatus(e *esl.Event) (s statusEvent, ok bool) {
	if e.Get("Channel-Name") != "" || e.Get("call-id") != "" || strings.EqualFold(e.Get("presence-source"), "register") {
		return statusEvent{}, false
	}
	// The switch answers a probe through the profile that asked; a phone's own
	// PUBLISH comes that way too, and names the phone.
	if e.Get("sip_profile") != "" && e.Get("user-agent") == "" {
		return statusEvent{}, false
	}
	key, ok := watched(e.Get("proto"), e.Get("from"))
	if !ok {
		return statusEvent{}, false
	}
	s = statusEvent{key: key, from: strings.TrimPrefix(e.Get("from"), "sip:"), fields: presenceFields(e)}
	if s.fields["Unique-ID"] == "" && strings.EqualFold(s.fields["status"], "Registered") {
		return statusEvent{}, false
	}
	s.ended = saysEnded(s.fields) || e.Name() == "PRESENCE_OUT" || s.gone()
	return s, true
}

// gone reports whether a device left, or a phone took back what it had published.
func (s statusEvent) gone() bool {
	return s.fields["Unique-ID"] == "" && strings.EqualFold(s.fields["status"], "Unregistered")
}

// localStatus takes what our switch says of somebody without a call.
func (l *Lamps) localStatus(s statusEvent, core string) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.lamps[s.key]
	busy := p != nil && len(p.calls)+len(p.own) > 0
	own, held := l.statuses.get(s.key.String())
	if s.ended {
		if s.gone() && (!held || own.Fields["Unique-ID"] != "") {
			return
		}
		l.localStatusEnded(s, core, held, busy)
		return
	}
	if busy {
		// The switch shows a user with channels of its own as busy, and the end of the
		// last one as free: nothing of this status is left then.
		l.showBest(s.key, now.Add(hangupDelay))
		return
	}
	if held && equalFields(own.Fields, s.fields) || !held && l.statuses.size() >= maxStatuses {
		return
	}
	st := l.statuses.tell(State{Key: s.key.String(), From: s.from, Epoch: core, Fields: s.fields})
	p = l.lamp(s.key)
	p.status[l.opts.Local] = l.heard(st, now)
	l.show(p, st, now)
}

// localStatusEnded is called with l.mu held.
func (l *Lamps) localStatusEnded(s statusEvent, core string, held, busy bool) {
	now := time.Now()
	st := State{Key: s.key.String(), From: s.from, Epoch: core, Ended: true, Fields: s.fields, Kind: KindStatus, Node: l.opts.Local}
	p := l.lamps[s.key]
	if p != nil {
		delete(p.status, l.opts.Local)
	}
	asked := answersNothing(s.key.proto) && now.Sub(l.asked[s.key]) < answerWithin
	switch {
	case held:
		l.statuses.end(st.Key, s.fields)
	case !ofPlace(s.key.proto) && !asked && !busy:
		l.statuses.say(st) // another node may hold what has just ended here
	}
	if p != nil && !ofPlace(s.key.proto) && (held || !asked && !busy) {
		l.calls -= len(p.status)
		clear(p.status)
	}
	if !l.showBest(s.key, now.Add(hangupDelay)) {
		l.show(l.lamp(s.key), st, now)
	}
}

// hearStatus takes another node's status.
func (l *Lamps) hearStatus(st State) {
	now := time.Now()
	st.TTL = min(max(st.TTL, minCallTTL), maxStatusTTL)
	proto, _, _ := strings.Cut(st.Key, "|")
	key, ok := watched(proto, st.From)
	if !ok || key.String() != st.Key || !st.Ended && l.opts.Nodes.Mesh().State(st.Node).Observed == pbxmesh.ObservedDown {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.lamps[key]
	var old *remoteCall
	if p != nil {
		old = p.status[st.Node]
	}
	if old != nil && old.Run == st.Run && st.Seq <= old.Seq {
		return
	}
	if st.Ended {
		l.statusEnded(key, old, st, now)
		return
	}
	l.dropEpochs(st, now)
	if p != nil && len(p.calls)+len(p.own) > 0 {
		return // as on its own node: the call is shown, and its end
	}
	if old == nil {
		if l.calls >= maxCalls {
			l.stats.Dropped++
			return
		}
		l.calls++
		p = l.lamp(key)
	}
	fresh := old == nil || old.Run != st.Run || old.Change != st.Change
	p.status[st.Node] = l.heard(st, now)
	if fresh {
		l.show(p, st, now)
	} else {
		p.status[st.Node].order = old.order
	}
}

// statusEnded is called with l.mu held. An end in a switch's own words is news of the
// thing itself, whoever holds it; any other says only that its node holds it no more.
func (l *Lamps) statusEnded(key lampKey, old *remoteCall, st State, now time.Time) {
	word := saysEnded(st.Fields)
	if old == nil && !word {
		return
	}
	p := l.lamp(key)
	if old != nil {
		delete(p.status, st.Node)
		l.calls--
	}
	if word && !ofPlace(key.proto) {
		if _, mine := p.status[l.opts.Local]; mine {
			delete(p.status, l.opts.Local)
			l.statuses.end(st.Key, nil)
		}
		l.calls -= len(p.status)
		clear(p.status)
	}
	if !word {
		now = now.Add(hangupDelay) // the call that ended it may come a moment later
	}
	if !l.showBest(key, now) {
		l.show(p, st, now)
	}
}

// dropStatuses forgets what was said of a user before a call: the end of the call puts
// the lamp out, as it does on one switch. l.mu is held.
func (l *Lamps) dropStatuses(p *lamp) {
	if len(p.status) == 0 {
		return
	}
	for node := range p.status {
		if node == l.opts.Local {
			l.statuses.end(p.key.String(), nil)
		} else {
			l.calls--
		}
	}
	clear(p.status)
}

// endStatuses ends what this node told of an earlier life of its switch. l.mu is held.
func (l *Lamps) endStatuses(core string) {
	for key, st := range l.statuses.holds() {
		if st.Epoch == core {
			continue
		}
		l.statuses.end(key, nil)
		proto, _, _ := strings.Cut(key, "|")
		if k, ok := watched(proto, st.From); ok && l.lamps[k] != nil {
			delete(l.lamps[k].status, l.opts.Local)
			l.showEnd(l.lamps[k], st, time.Now())
		}
	}
}

// adopt takes up what an earlier life of this daemon told of the same switch.
func (l *Lamps) adopt(st State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.core == "" {
		if len(l.orphans) < maxStatuses {
			l.orphans = append(l.orphans, st)
		}
		return
	}
	l.adoptNow(st)
}

// adoptNow is called with l.mu held and l.core known.
func (l *Lamps) adoptNow(st State) {
	proto, _, _ := strings.Cut(st.Key, "|")
	key, ok := watched(proto, st.From)
	if _, held := l.statuses.get(st.Key); held {
		return
	}
	if !ok || st.Epoch != l.core || key.String() != st.Key {
		st.Ended = true
		l.statuses.say(st)
		return
	}
	st = l.statuses.tell(State{Key: st.Key, From: st.From, Epoch: st.Epoch, Fields: st.Fields})
	p := l.lamp(key)
	p.status[l.opts.Local] = l.heard(st, time.Now())
}

func equalFields(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		// Scripts make up a new id each time they say the same.
		if k != "Unique-ID" && b[k] != v {
			return false
		}
	}
	return true
}

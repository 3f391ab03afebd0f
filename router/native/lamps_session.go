package native

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

const (
	// listEvery is how often our own calls are compared with the switch's channels:
	// how long a call lives on for others when its last event was lost.
	listEvery = 10 * time.Second

	// listGrace is how old a state must be to be judged by a list.
	listGrace = 2 * time.Second

	// relistAfter is when the second list of a session comes. The switch writes its
	// list behind its events: the first one may still show a call ringing that was
	// answered before we listened.
	relistAfter = listGrace + 200*time.Millisecond
)

// onEvent runs on the connection's reader and must not wait.
func (l *Lamps) onEvent(e *esl.Event) {
	switch e.Name() {
	case "PRESENCE_IN", "PRESENCE_OUT":
		l.localPresence(e)
	case "PRESENCE_PROBE":
		l.probed(e)
	}
}

// probed takes a phone's question, with which each subscription and each refresh
// begins: "to" is whom it watches, in the spelling that the switch compares, with the
// protocol in front when that is not sip ("flow+*31@a.test").
func (l *Lamps) probed(e *esl.Event) {
	proto, to := e.Get("proto"), strings.TrimPrefix(e.Get("to"), "sip:")
	if protoOf(proto) != protoSIP {
		to = strings.TrimPrefix(to, proto+"+")
	} else {
		to = strings.TrimPrefix(to, "sip+")
	}
	key, ok := watched(proto, to)
	if !ok {
		return
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) < maxSpelled {
		l.asked[key] = now
	}
	if seconds, err := strconv.Atoi(e.Get("expires")); err == nil && seconds > 0 {
		l.spellings.learn(key, bare(to), now, time.Duration(min(seconds, 7*24*3600))*time.Second)
	}
	if l.showBest(key, now.Add(probeDelay)) {
		l.stats.Probes++
	}
}

func (l *Lamps) localPresence(e *esl.Event) {
	l.mu.Lock()
	core := l.core
	l.mu.Unlock()
	// Before the session knows the switch, its first list makes up for events.
	if core == "" || e.CoreUUID() != core || e.Has(originHeader) {
		return
	}
	c, ok := parseCallEvent(e)
	if !ok {
		if s, ok := parseStatus(e); ok && !l.late(s.key.String(), e) && !l.endedByScript(s) {
			l.localStatus(s, core)
		}
		return
	}
	if l.late(c.key, e) {
		return
	}
	if c.ended {
		// The switch has put the lamp out, and knows nothing of calls elsewhere.
		l.endCall(c.key, c.fields)
		l.showAgain(userLamp(c.aor), hangupDelay)
		return
	}
	if l.speaksFor(c.aor) {
		l.tellCall(c, core)
	}
}

// late reports whether the switch said something newer of what before e came.
func (l *Lamps) late(what string, e *esl.Event) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	late := l.order.late(what, e, time.Now())
	if late {
		l.stats.Late++
	}
	return late
}

// heardOf reports whether an event spoke of what since then.
func (l *Lamps) heardOf(what string, since time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order.said[what].at.After(since)
}

// endedByScript takes a script's word that a running call is a number's no more: a ring
// group's lamp goes out when nobody answered, while the caller is led to its voicemail.
func (l *Lamps) endedByScript(s statusEvent) bool {
	aor, err := pbxmesh.ParseAOR(s.key.addr)
	if err != nil || !s.ended || s.key.proto != protoSIP || !l.endCall(callKey(s.fields["Unique-ID"], aor), s.fields) {
		return false
	}
	l.mu.Lock()
	l.over[callKey(s.fields["Unique-ID"], aor)] = true
	l.mu.Unlock()
	l.showAgain(s.key, hangupDelay)
	return true
}

// stillOver returns the calls that a script has ended though their channels live.
func (l *Lamps) stillOver(alive map[string]bool) map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.over, func(key string, _ bool) bool { return !alive[uuidOf(key)] })
	return maps.Clone(l.over)
}

// tellCall tells the other nodes of a call of a local user, and the phones of this one
// that watch the user in another spelling than the switch's.
func (l *Lamps) tellCall(c callEvent, core string) {
	st := l.teller.tell(State{Key: c.key, AOR: c.aor, From: c.from, Epoch: core, Fields: c.fields})
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.over, c.key)
	p := l.lamp(userLamp(c.aor))
	l.dropStatuses(p)
	p.own[c.key] = st
	l.show(p, st, time.Now())
}

// endCall ends a call of a local user, with the fields of its last event or, nil, those
// it had. It reports whether there was such a call.
func (l *Lamps) endCall(key string, fields map[string]string) bool {
	held := l.teller.end(key, fields)
	_, addr, _ := strings.Cut(key[len(uuidOf(key)):], "/")
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.lamps[lampKey{protoSIP, addr}]
	if p == nil {
		return held
	}
	if st, ok := p.own[key]; ok {
		delete(p.own, key)
		l.showEnd(p, st, time.Now().Add(hangupDelay))
	}
	return held
}

// speaksFor reports whether this node tells the others of calls of aor: of a user with a
// device here. Every node has legs to users of others, and only the callee's own node
// speaks for them. A number that no device has, such as a ring group's, is spoken for
// by whoever has the call, if it is of a domain with users: callers from outside are
// nobody's lamp.
func (l *Lamps) speaksFor(aor pbxmesh.AOR) bool {
	now := time.Now()
	elsewhere := false
	for _, r := range l.opts.Directory.Lookup(aor) {
		if r == nil || r.AOR != aor || !r.Live(now) {
			continue
		}
		if r.Node == l.opts.Local {
			return true
		}
		elsewhere = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !elsewhere && l.domains[aor.Domain()]
}

// Changed says that the registrations of aor may have changed: its domain has users.
func (l *Lamps) Changed(aor pbxmesh.AOR) { l.know(aor.Domain()) }

func (l *Lamps) know(domain string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if domain != "" && len(l.domains) < maxDomains {
		l.domains[domain] = true
	}
}

// learnDomains takes note of the domains that have users now.
func (l *Lamps) learnDomains() {
	found := make(map[string]bool)
	l.opts.Directory.Walk(func(r *pbxmesh.Registration) bool {
		found[r.AOR.Domain()] = true
		return len(found) < maxDomains
	})
	for domain := range found {
		l.know(domain)
	}
}

func (l *Lamps) session(ctx context.Context, conn Conn) error {
	core, err := conn.API(ctx, "global_getvar core_uuid")
	if err != nil {
		return fmt.Errorf("ask for the switch's core uuid: %w", err)
	}
	l.learnDomains()
	for key, st := range l.teller.holds() {
		if st.Epoch != core {
			l.endCall(key, nil)
		}
	}
	l.mu.Lock()
	l.core = core
	l.endStatuses(core)
	for _, st := range l.orphans {
		l.adoptNow(st)
	}
	l.orphans = nil
	for _, p := range l.lamps { // its phones may have been told nothing of this
		if best, ok := p.best(); ok {
			l.show(p, best, time.Now())
		}
	}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.core = ""
		l.mu.Unlock()
	}()
	if err := conn.Subscribe(ctx, []string{"PRESENCE_IN", "PRESENCE_OUT", "PRESENCE_PROBE"}, nil); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	l.believe, l.mend = 2, nil
	listAt := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		now := time.Now()
		if !now.Before(listAt) {
			if err := l.list(ctx, conn, core); err != nil {
				return err
			}
			listAt = now.Add(listEvery)
			if l.believe > 0 {
				listAt = now.Add(relistAfter)
			}
		}
		p, st, watchedAs, next := l.take(now)
		if p != nil {
			n, err := 0, error(nil)
			for _, text := range spelled(l.opts.Directory, p.key, st.From, watchedAs) {
				if st.Node == l.opts.Local && text == bare(st.From) {
					continue // our own switch said so itself
				}
				if err = conn.SendEvent(ctx, "CUSTOM", presenceEvent(st, text), nil); err != nil {
					break
				}
				n++
			}
			l.shown(p, st, n, err)
			if err != nil {
				return fmt.Errorf("show a call: %w", err)
			}
			continue
		}
		if next.IsZero() || listAt.Before(next) {
			next = listAt
		}
		timer.Reset(max(next.Sub(now), 0))
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
	}
}

// list compares our own calls with the switch's channels: a call that is over was
// not seen to end, one that runs was not seen to begin. The first two lists of a
// session are believed at once; later a call must be missed twice, because events
// and list cross.
func (l *Lamps) list(ctx context.Context, conn Conn, core string) error {
	asked := time.Now()
	reply, err := conn.API(ctx, "show channels as json")
	var no *esl.ReplyError
	if errors.As(err, &no) {
		l.log.Warn("running calls cannot be compared", "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the channels: %w", err)
	}
	rows, err := parseChannels(reply)
	if err != nil {
		return err
	}
	believed, before := l.believe > 0, l.mend
	l.believe = max(l.believe-1, 0)
	l.mend = make(map[string]bool)
	own, alive := l.teller.holds(), make(map[string]bool, len(rows))
	mended := uint64(0)
	for _, r := range rows {
		alive[listedUUID(r.UUID)] = true
	}
	over := l.stillOver(alive)
	for _, r := range rows {
		c, ok := r.event()
		if !ok || over[c.key] {
			continue
		}
		st, have := own[c.key]
		if !have && l.heardOf(c.key, asked.Add(-listGrace)) {
			continue // its end came before the list, which is behind the events
		}
		if have && (weight(st) == weight(State{Fields: c.fields}) || st.told.Add(listGrace).After(asked)) || !l.speaksFor(c.aor) {
			continue
		}
		if !believed && !before[c.key] {
			l.mend[c.key] = true
			continue
		}
		l.tellCall(c, core)
		mended++
	}
	for key, st := range own {
		if !alive[uuidOf(key)] && !st.told.Add(listGrace).After(asked) && l.endCall(key, nil) {
			mended++
		}
	}
	if mended > 0 {
		l.mu.Lock()
		l.stats.Mended += mended
		l.mu.Unlock()
	}
	return nil
}

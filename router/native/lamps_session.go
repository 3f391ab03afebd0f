package native

import (
	"context"
	"errors"
	"fmt"
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
	case "PRESENCE_IN":
		l.localCall(e)
	case "PRESENCE_PROBE":
		aor, ok := probed(e.Get("to"))
		if ok && l.showAgain(aor, probeDelay) {
			l.mu.Lock()
			l.stats.Probes++
			l.mu.Unlock()
		}
	}
}

// probed reads whom a PRESENCE_PROBE is about: "sip:1002@pbx.test", where the user
// may carry a protocol in front ("sip+1002").
func probed(to string) (pbxmesh.AOR, bool) {
	to = strings.TrimPrefix(to, "sip:")
	aor, err := pbxmesh.ParseAOR(strings.TrimPrefix(to, "sip+"))
	return aor, err == nil
}

func (l *Lamps) localCall(e *esl.Event) {
	l.mu.Lock()
	core := l.core
	l.mu.Unlock()
	// Before the session knows the switch, its first list makes up for events.
	if core == "" || e.CoreUUID() != core || e.Has(originHeader) {
		return
	}
	c, ok := parseCallEvent(e)
	if !ok {
		return
	}
	if c.ended {
		l.teller.end(c.key, c.fields)
		// The switch has put the lamp out, and knows nothing of calls elsewhere.
		l.showAgain(c.aor, hangupDelay)
		return
	}
	if l.isLocal(c.aor) {
		l.teller.tell(c.key, c.aor, core, c.fields)
	}
}

// isLocal reports whether a device of aor is registered here: every node has legs
// to users of others, and only the callee's own node speaks for them.
func (l *Lamps) isLocal(aor pbxmesh.AOR) bool {
	now := time.Now()
	for _, r := range l.opts.Directory.Lookup(aor) {
		if r != nil && r.AOR == aor && r.Node == l.opts.Local && r.Live(now) {
			return true
		}
	}
	return false
}

func (l *Lamps) session(ctx context.Context, conn Conn) error {
	core, err := conn.API(ctx, "global_getvar core_uuid")
	if err != nil {
		return fmt.Errorf("ask for the switch's core uuid: %w", err)
	}
	for key, st := range l.teller.holds() {
		if st.Epoch != core {
			l.teller.end(key, nil)
		}
	}
	l.mu.Lock()
	l.core = core
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
	if err := conn.Subscribe(ctx, []string{"PRESENCE_IN", "PRESENCE_PROBE"}, nil); err != nil {
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
		p, st, next := l.take(now)
		if p != nil {
			err := conn.SendEvent(ctx, "CUSTOM", callHeaders(st), nil)
			l.shown(p, st, err)
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
		alive[r.UUID] = true
		c, ok := r.event()
		if !ok {
			continue
		}
		st, have := own[c.key]
		if have && (weight(st) == weight(State{Fields: c.fields}) || st.told.Add(listGrace).After(asked)) || !l.isLocal(c.aor) {
			continue
		}
		if !believed && !before[c.key] {
			l.mend[c.key] = true
			continue
		}
		l.teller.tell(c.key, c.aor, core, c.fields)
		mended++
	}
	for key, st := range own {
		uuid, _, _ := strings.Cut(key, "/")
		if !alive[uuid] && !st.told.Add(listGrace).After(asked) && l.teller.end(key, nil) {
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

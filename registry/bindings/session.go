package bindings

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
)

const (
	// rowsAfter is how long other nodes' calls may be on their way here after their
	// switches know better, outAfter when our row leaves at the latest.
	rowsAfter = 80 * time.Millisecond
	outAfter  = 600 * time.Millisecond

	// pollEvery is the time between two looks whether the native hook's row is there.
	// With more than pollMost phones on their way out each leaves after outAfter.
	pollEvery = 10 * time.Millisecond
	pollMost  = 50

	commandTime = time.Second // bounds one command

	// lookEvery is the time between two looks at everything, for what no change tells: a
	// registration that ran out.
	lookEvery = 30 * time.Second

	// domainsFor is how long the list of the switch's domains is used.
	domainsFor = time.Second

	// rounding is how much a switch's own expiry may differ from one list to the next
	// without a new REGISTER.
	rounding = 2 * time.Second

	// Between two attempts to connect. Who was connected for longer than steadyAfter
	// starts from the beginning again.
	backoffMin, backoffMax = 100 * time.Millisecond, 5 * time.Second
	steadyAfter            = 10 * time.Second
)

// identity is how the switch calls itself in its own rows.
type identity struct{ address, hostname string }

// session is one connection's work.
type session struct {
	*Keeper
	conn     Conn
	self     identity
	waiting  map[pbxmesh.AOR]time.Time // when to look again
	domains  map[string]struct{}
	domainsT time.Time
}

// Run works until ctx ends, whose error it returns. It connects again by itself.
func (k *Keeper) Run(ctx context.Context) error {
	delay, told := backoffMin, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := k.once(ctx)
		k.disconnected()
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > steadyAfter {
			delay, told = backoffMin, ""
		}
		// The same complaint every five seconds tells nobody more.
		if t := err.Error(); t != told {
			k.log.Warn("event socket connection ended", "use", "phones that moved", "err", err)
			told = t
		} else {
			delay = min(2*delay, backoffMax)
		}
		timer := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	return context.Cause(ctx)
}

// disconnected lets nobody wait for a switch that is not there.
func (k *Keeper) disconnected() {
	k.mu.Lock()
	was := k.connected
	k.connected, k.all = false, true
	waiting := make([]pbxmesh.AOR, 0, len(k.queue))
	for aor := range k.queue {
		waiting = append(waiting, aor)
	}
	k.mu.Unlock()
	if was {
		for _, aor := range waiting {
			k.opts.Settled(aor)
		}
	}
}

func (k *Keeper) once(ctx context.Context) error {
	conn, err := k.opts.Dial(ctx, k.opts.ESL)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Subscribe(ctx, nil, []string{"sofia::unregister"}); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	s := &session{Keeper: k, conn: conn, waiting: map[pbxmesh.AOR]time.Time{}}
	for command, to := range map[string]*string{"global_getvar local_ip_v4": &s.self.address, "hostname": &s.self.hostname} {
		reply, err := conn.API(ctx, command)
		var refused *esl.ReplyError
		if err != nil && !errors.As(err, &refused) {
			return fmt.Errorf("ask the switch for its name: %w", err)
		}
		*to = strings.TrimSpace(reply)
	}
	k.mu.Lock()
	k.connected, k.all = true, true
	k.mu.Unlock()
	return s.work(ctx)
}

func (s *session) work(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		for _, aor := range s.due() {
			if err := s.look(ctx, aor); err != nil {
				s.opts.Settled(aor)
				return err
			}
		}
		again.Reset(s.next())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-again.C:
		case <-s.conn.Done():
			return errors.Join(s.conn.Err(), esl.ErrClosed)
		case <-look.C:
			s.mu.Lock()
			s.all = true
			s.mu.Unlock()
		case <-s.wake:
		}
	}
}

// next returns how long nothing is due that waits.
func (s *session) next() time.Duration {
	d := lookEvery
	for _, at := range s.waiting {
		d = min(d, at.Sub(s.opts.Now()))
	}
	return max(d, 0)
}

// due returns what is to be looked at. What waits while it is worked through is looked
// at once more.
func (s *session) due() []pbxmesh.AOR {
	s.mu.Lock()
	all := s.all
	out := make([]pbxmesh.AOR, 0, len(s.queue))
	for aor := range s.queue {
		out = append(out, aor)
	}
	clear(s.queue)
	s.all = false
	for aor, at := range s.waiting {
		if !at.After(s.opts.Now()) {
			delete(s.waiting, aor)
			out = append(out, aor)
		}
	}
	if all {
		for aor := range s.state {
			out = append(out, aor)
		}
	}
	s.mu.Unlock()
	if all { // collected first: a look-up within a walk is not allowed
		var here []pbxmesh.AOR
		s.opts.Directory.WalkNode(s.opts.Local, func(r *pbxmesh.Registration) bool {
			here = append(here, r.AOR)
			return true
		})
		out = append(out, slices.DeleteFunc(here, func(aor pbxmesh.AOR) bool { return !s.several(aor) })...)
	}
	return out
}

// look does what is to be done about one address.
func (s *session) look(ctx context.Context, aor pbxmesh.AOR) error {
	now, mesh := s.opts.Now(), s.opts.Nodes.Mesh()
	regs := s.opts.Directory.Lookup(aor)
	out, back := s.decide(aor, regs, mesh, now)
	for _, r := range out {
		by := pbxmesh.Superseded(r, regs, mesh, s.opts.Local, now)
		// It was found, not heard, and expires later than the one that was heard: the phone
		// came here while nobody listened.
		if r.Since == pbxmesh.StampFound && r.Expires.After(by.Expires.Add(rounding)) {
			came := *r
			came.Since = pbxmesh.StampOf(now)
			s.opts.Sink.Put(came)
			continue
		}
		wait, err := s.leave(ctx, r, by, mesh)
		if err != nil {
			return err
		}
		if at, ok := s.waiting[aor]; wait > 0 && (!ok || at.After(now.Add(wait))) {
			s.waiting[aor] = now.Add(wait)
		}
	}
	for _, k := range back {
		if err := s.putBack(ctx, k, now); err != nil {
			return err
		}
	}
	return nil
}

// decide brings what is known of aor up to date and returns what to take out and what to
// write back.
func (k *Keeper) decide(aor pbxmesh.AOR, regs []*pbxmesh.Registration, mesh *pbxmesh.Mesh, now time.Time) (out []*pbxmesh.Registration, back []*kept) {
	local := k.opts.Local
	k.update(aor, func(u *user) {
		there := map[string]*leaving{}
		for _, r := range regs {
			if r.Node != local || !r.Live(now) || pbxmesh.Superseded(r, regs, mesh, local, now) == nil {
				continue
			}
			l := u.of(r)
			if l == nil {
				l = &leaving{since: r.Since, heard: now}
			}
			there[r.CallID] = l
			if !l.done {
				out = append(out, r)
			}
		}
		u.leaving = there
		u.aside = slices.DeleteFunc(u.aside, func(a *kept) bool {
			if !a.reg.Live(now) || mesh.State(local).Wanted != pbxmesh.WantedInService {
				return true
			}
			for _, r := range regs {
				switch {
				case r.Node != local || !r.Live(now):
				case r.CallID == a.reg.CallID && r.Since == a.reg.Since:
					return false // the registry has not heard yet that it was taken out
				case r.CallID == a.reg.CallID || pbxmesh.SameDevice(r, &a.reg):
					return true // the phone has come back by itself
				}
			}
			if pbxmesh.Superseded(&a.reg, regs, mesh, local, now) == nil {
				back = append(back, a)
			}
			return false
		})
	})
	return out, back
}

// leave takes the next step of r on its way out, because by stands in for it, and returns
// how long the one after that has to wait; 0 when there is none.
func (s *session) leave(ctx context.Context, r, by *pbxmesh.Registration, mesh *pbxmesh.Mesh) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var l leaving
	many := false
	s.update(r.AOR, func(u *user) { l, many = *u.of(r), len(s.waiting) > pollMost })
	waited := s.opts.Now().Sub(l.heard)
	switch {
	case waited < rowsAfter:
		return rowsAfter - waited, nil
	case !l.told:
		l.row, l.err = readRow(ctx, s.conn, r)
		if l.err != nil && !errors.Is(l.err, sofia.ErrNoRow) {
			return 0, fmt.Errorf("read the row of a phone that moved: %w", l.err)
		}
		l.told = true
		s.update(r.AOR, func(u *user) { *u.of(r) = l })
		s.opts.Settled(r.AOR)
		return pollEvery, nil
	case waited < outAfter && (s.opts.Profile == "" || many):
		return outAfter - waited, nil
	case waited < outAfter:
		began := s.opts.Now()
		reply, err := s.conn.API(ctx, "sofia_contact "+s.opts.Profile+"/"+r.AOR.String())
		if err != nil {
			return 0, fmt.Errorf("look for a row: %w", err)
		}
		if !strings.Contains(reply, "sofia/"+s.opts.Profile+"/") {
			return max(pollEvery, s.opts.Now().Sub(began)), nil
		}
	}
	return 0, s.takeOut(ctx, r, by, &l, mesh)
}

// takeOut takes r out of the switch and puts it aside. A node that is being emptied keeps
// nothing.
func (s *session) takeOut(ctx context.Context, r, by *pbxmesh.Registration, l *leaving, mesh *pbxmesh.Mesh) error {
	named := *r
	if l.err == nil {
		named.CallID = l.row.CallID // what was published may have been decoded
	}
	err := sofia.Do(ctx, s.conn, sofia.Flush, &named, s.tenants())
	var refused *esl.ReplyError
	switch {
	case errors.Is(err, sofia.ErrUnsafe), errors.Is(err, sofia.ErrRefused), errors.As(err, &refused):
		s.log.Warn("a phone that moved stays in the switch and may ring twice until its registration ends",
			"aor", r.AOR, "moved_to", by.Node, "reason", err)
	case err != nil:
		return fmt.Errorf("take out a phone that moved: %w", err)
	default:
		s.log.Debug("a phone has moved", "aor", r.AOR, "to", by.Node, "row", l.err == nil)
	}
	s.update(r.AOR, func(u *user) {
		u.of(r).done = true
		switch {
		case err != nil:
			s.stats.Unsafe++
			return
		case l.err == nil && mesh.State(s.opts.Local).Wanted == pbxmesh.WantedInService:
			u.aside = slices.DeleteFunc(u.aside, func(a *kept) bool { return a.reg.CallID == r.CallID })
			u.aside = append(u.aside, &kept{*r, l.row})
		}
		s.stats.TakenOut++
	})
	return nil
}

// putBack writes a row into the switch again, and publishes it.
func (s *session) putBack(ctx context.Context, a *kept, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	err := s.conn.SendEvent(ctx, "CUSTOM", a.row.headers(&a.reg, s.self, now), nil)
	never := errors.Is(err, esl.ErrInvalidCommand) // nobody else may wait for it
	if err != nil && !never {
		return fmt.Errorf("write a phone's row back: %w", err)
	}
	s.update(a.reg.AOR, func(u *user) {
		u.aside = slices.DeleteFunc(u.aside, func(b *kept) bool { return a == b })
		if !never {
			s.stats.PutBack++
		}
	})
	if never {
		s.log.Warn("a phone whose newer registration is gone cannot be written back, and rings again when it registers", "aor", a.reg.AOR, "err", err)
		return nil
	}
	s.log.Info("a phone rings here again: its newer registration is gone", "aor", a.reg.AOR)
	s.opts.Sink.PutBack(a.reg)
	s.opts.Restored()
	return nil
}

// tenants returns the domains of the switch's users.
func (s *session) tenants() map[string]struct{} {
	if now := s.opts.Now(); s.domains == nil || now.Sub(s.domainsT) >= domainsFor {
		s.domains, s.domainsT = map[string]struct{}{}, now
		s.opts.Directory.WalkNode(s.opts.Local, func(r *pbxmesh.Registration) bool {
			s.domains[r.AOR.Domain()] = struct{}{}
			return true
		})
	}
	return s.domains
}

// onEvent hears that a phone unregistered here: what was put aside of it is over. It runs
// on the connection's reader.
func (k *Keeper) onEvent(e *esl.Event) {
	if e.Subclass() != "sofia::unregister" || k.users.Load() == 0 {
		return
	}
	aor, err := pbxmesh.NewAOR(e.Get("from-user"), e.Get("from-host"))
	if err != nil {
		return
	}
	_, contact, _ := strings.Cut(e.Get("contact"), "<")
	callID, gone := e.Get("call-id"), sofia.ContactPiece(strings.TrimRight(contact, ">"))
	k.update(aor, func(u *user) {
		u.aside = slices.DeleteFunc(u.aside, func(a *kept) bool {
			return a.reg.CallID == callID || gone != "" && sofia.ContactPiece(a.reg.Contact) == gone
		})
	})
}

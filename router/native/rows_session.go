package native

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

const (
	// settleTime is the least time between two events for one row. The switch hands
	// events to several threads, so two that follow each other at once may be
	// applied the wrong way round: a row twice, or one that nobody removes.
	settleTime = 250 * time.Millisecond

	// youngTime is how long the switch may take to write what it has taken: rows
	// told about within it are not judged by a comparison.
	youngTime = 5 * time.Second

	// stepBatch is how many users are worked through before notifications, timers
	// and the connection are looked at again.
	stepBatch = 64

	// extraLanes are the connections that are opened beside the first one when many
	// rows are due. Four together have a switch take nearly twice as many a second;
	// more do not help, because writing its database becomes the limit.
	extraLanes = 3

	// repairShare bounds comparisons to one part in so many of the time.
	repairShare = 50

	// profileWait is how long to wait for a mesh profile that does not run. Its
	// start is also announced by an event.
	profileWait = 500 * time.Millisecond

	profileStart = "sofia::profile_start"

	// rowExpire comes for a row that ran out or was flushed, not for one that we
	// removed.
	rowExpire = "sofia::expire"
)

// followUps are the comparisons after a connect or a profile's start: what we sent
// may have met a table that was about to be emptied.
var followUps = []time.Duration{10 * time.Second, 2 * time.Second} // last one first

// session is one connection's work.
func (r *Rows) session(ctx context.Context, conn Conn) error {
	host, err := conn.API(ctx, "switchname")
	if err != nil {
		return fmt.Errorf("ask for the switch's name: %w", err)
	}
	core, err := conn.API(ctx, "global_getvar core_uuid")
	if err != nil {
		return fmt.Errorf("ask for the switch's core uuid: %w", err)
	}
	if err := conn.Subscribe(ctx, nil, []string{profileStart, rowExpire}); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if core != r.core {
		if r.core != "" {
			r.log.Info("the switch was started anew: all rows are written again", "core_uuid", core)
		}
		r.table.forget(time.Now())
		r.core = core
	}
	r.mu.Lock()
	r.stats.CoreUUID = core
	r.resync = true // notifications of the time without a connection are in there
	r.mu.Unlock()
	w := &work{Rows: r, conn: conn, host: host, repairAt: time.Now(), pending: len(followUps)}
	defer w.close()
	return w.run(ctx)
}

// work is the state of one session.
type work struct {
	*Rows
	conn     Conn
	host     string
	open     bool // the mesh profile runs and has been compared once
	repairAt time.Time
	pending  int // follow-ups to come

	wide  bool
	extra []Conn // beside conn, for many rows at once
}

func (w *work) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		ready := w.takeChanges()
		busy := false
		if ready && !time.Now().Before(w.repairAt) {
			if err := w.repair(ctx); err != nil {
				return err
			}
		}
		if ready && w.open {
			var err error
			if busy, err = w.steps(ctx); err != nil {
				return err
			}
		}
		w.report(ready)
		if busy {
			continue
		}
		timer.Reset(w.sleep(ready))
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-w.profiles:
			w.log.Info("the mesh profile was started, or lost many rows at once: its rows are compared")
			w.repairAt, w.pending = time.Now(), len(followUps)
		case <-timer.C:
		}
	}
}

// sleep returns how long there is nothing to do, at most an hour.
func (w *work) sleep(ready bool) time.Duration {
	const long = time.Hour
	if !ready {
		return long
	}
	now := time.Now()
	d := w.repairAt.Sub(now)
	if w.open {
		if at := w.table.wake(now); !at.IsZero() {
			d = min(d, at.Sub(now))
		}
	}
	return min(max(d, 0), long)
}

// takeChanges looks up what was said to have changed and reports whether the
// switch may be told.
func (w *work) takeChanges() (ready bool) {
	w.mu.Lock()
	lost := w.lost
	w.lost = nil
	ready, all, changes := w.ready, w.resync, w.changes
	if !ready || !all && len(changes) == 0 {
		w.mu.Unlock()
		w.table.lose(lost, time.Now())
		return ready
	}
	w.resync, w.changes = false, make(map[pbxmesh.AOR]struct{})
	w.mu.Unlock()
	w.table.lose(lost, time.Now())
	if all {
		w.sync()
		return true
	}
	now, mesh := time.Now(), w.opts.Nodes.Mesh()
	for aor := range changes {
		w.table.set(aor, w.desired(aor, mesh, now), now)
	}
	return true
}

// sync looks up everybody.
func (w *work) sync() {
	aors := everybody(w.opts.Directory, math.MaxInt)
	now, mesh := time.Now(), w.opts.Nodes.Mesh()
	w.table.setAll(aors, func(aor pbxmesh.AOR) []want { return w.desired(aor, mesh, now) }, now)
}

func (w *work) desired(aor pbxmesh.AOR, mesh *pbxmesh.Mesh, now time.Time) []want {
	if w.isLeaving() {
		return nil
	}
	return w.wants(aor, mesh, now)
}

func (w *work) isLeaving() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leaving
}

// steps sends what is due for up to stepBatch users and reports whether there may
// be more.
func (w *work) steps(ctx context.Context) (busy bool, err error) {
	var ops []op
	var users []*user
	if n := len(w.table.alien); n > 0 {
		most := min(n, stepBatch)
		ops = append(ops, w.table.alien[n-most:]...)
		w.table.alien = w.table.alien[:n-most]
	}
	now, mesh := time.Now(), w.opts.Nodes.Mesh()
	for len(users) < stepBatch {
		u, ok := w.table.next(now)
		if !ok {
			break
		}
		users = append(users, u)
		// Read again: what was true when it was queued may be old by now.
		w.table.assign(u, w.desired(u.aor, mesh, now))
		for {
			o, ok := w.table.step(u, now)
			if !ok {
				break
			}
			// Marked before: if the answer is lost, the event may have been heard.
			o.refresh = !o.remove && o.row.have == o.row.want
			o.to, o.ttl = o.row.want, w.table.lifetime()
			o.urgent = o.remove && w.cameHere(u.aor, o.row.key.node, mesh, now)
			w.table.told(o, now)
			ops = append(ops, o)
		}
	}
	err = w.send(ctx, ops)
	for _, u := range users {
		if err != nil { // the switch may or may not have it: the next session looks
			for _, r := range u.rows {
				r.touched = time.Time{}
			}
		}
		w.table.plan(u, now)
	}
	return len(users) == stepBatch || len(w.table.alien) > 0, err
}

// send sends ops, no two of which are for one row. A switch answers each event
// before it reads the next one of a connection; many go out over several.
func (w *work) send(ctx context.Context, ops []op) error {
	lanes := []Conn{w.conn}
	if len(ops) >= stepBatch/4 {
		w.widen(ctx)
		lanes = append(lanes, w.extra...)
	}
	errs := make([]error, len(lanes))
	var wg sync.WaitGroup
	for i, c := range lanes[1:] {
		wg.Go(func() { errs[i+1] = w.sendSome(ctx, c, ops, i+1, len(lanes)) })
	}
	errs[0] = w.sendSome(ctx, w.conn, ops, 0, len(lanes))
	wg.Wait()
	return errors.Join(errs...)
}

// sendSome sends every step-th of ops, from the first on.
func (w *work) sendSome(ctx context.Context, conn Conn, ops []op, first, step int) error {
	for i := first; i < len(ops); i += step {
		o := ops[i]
		headers := removeHeaders(w.opts.Profile, o.callID, o.aor)
		if !o.remove {
			headers = o.row.key.injectHeaders(w.opts.Local, w.opts.Profile, o.to, o.ttl)
		}
		if o.urgent {
			if err := w.flush(ctx, conn, o.callID); err != nil {
				return err
			}
		}
		if err := conn.SendEvent(ctx, "CUSTOM", headers, nil); err != nil {
			return fmt.Errorf("send row: %w", err)
		}
		w.mu.Lock()
		switch {
		case o.remove:
			w.stats.Removed++
		case o.refresh:
			w.stats.Refreshed++
		default:
			w.stats.Injected++
		}
		w.mu.Unlock()
	}
	return nil
}

// flush takes a row out at once. The switch applies an event 0.2 s later, because mod_sofia
// collects statements; until then a phone that came here would ring by its row there too.
// It tells watchers that somebody unregistered, so that it is not for every removal. A
// refusal is left to the event that follows.
func (w *work) flush(ctx context.Context, conn Conn, callID string) error {
	var refused *esl.ReplyError
	_, err := conn.API(ctx, "sofia profile "+w.opts.Profile+" flush_inbound_reg "+callID)
	if err != nil && !errors.As(err, &refused) {
		return fmt.Errorf("take a row out: %w", err)
	}
	return nil
}

// widen opens the connections beside the first one, once. Without them it is slow
// and nothing worse.
func (w *work) widen(ctx context.Context) {
	if w.wide {
		return
	}
	w.wide = true
	cfg := w.opts.ESL
	cfg.OnEvent = nil
	for range extraLanes {
		c, err := w.opts.Dial(ctx, cfg)
		if err != nil {
			w.log.Warn("rows go out over fewer connections", "err", err)
			return
		}
		w.extra = append(w.extra, c)
	}
}

func (w *work) close() {
	for _, c := range w.extra {
		_ = c.Close()
	}
}

// repair compares the switch's rows with the table, which is brought up to date
// first: a lost notification is drift as well.
func (w *work) repair(ctx context.Context) error {
	began := time.Now()
	if w.open && len(w.table.dirty) > 0 && began.Sub(w.repairAt) < w.opts.RepairEvery {
		return nil // reading the list while it is being written stalls the writing
	}
	reply, err := w.conn.API(ctx, "sofia xmlstatus profile "+w.opts.Profile+" reg")
	var refused *esl.ReplyError
	if err != nil && !errors.As(err, &refused) {
		return fmt.Errorf("read the rows: %w", err)
	}
	w.sync()
	c := w.table.compare(w.host, began, !w.open)
	if err == nil {
		err = scanSnapshot(reply, c.add)
	}
	switch {
	case errors.Is(err, errNoProfile), refused != nil: // or no mod_sofia yet
		if w.open || w.Stats().Error == "" {
			w.log.Warn("rows cannot be written", "profile", w.opts.Profile, "err", err)
		}
		w.table.forget(began)
		w.fail(err)
		w.open, w.repairAt, w.pending = false, time.Now().Add(profileWait), len(followUps)
		return nil
	case err != nil:
		return fmt.Errorf("read the rows: %w", err)
	}
	now := time.Now()
	drift := c.finish(now)
	took := now.Sub(began)
	w.mu.Lock()
	if w.open {
		w.stats.Drift.add(drift)
	} else {
		w.stats.Restored.add(drift)
	}
	w.stats.Repairs++
	w.stats.LastRepair, w.stats.RepairTook, w.stats.Error = now, took, ""
	w.mu.Unlock()
	if drift.Total() > 0 {
		w.log.Info("rows differed from the mesh", "missing", drift.Missing, "surplus", drift.Surplus,
			"wrong", drift.Wrong, "first_look", !w.open, "found", c.found, "took", took)
	}
	w.open = true
	if w.pending > 0 {
		w.pending--
		w.repairAt = now.Add(followUps[w.pending])
		return nil
	}
	w.repairAt = now.Add(max(jitter(w.opts.RepairEvery), repairShare*took))
	return nil
}

func (w *work) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Error = err.Error()
}

// report publishes the figures and ends Leave when nothing is left.
func (w *work) report(ready bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Ready = ready && w.open
	w.stats.TTL = w.table.lifetime()
	w.stats.Rows, w.stats.Queue = w.table.have, len(w.table.dirty)+len(w.table.alien)
	if w.leaving && w.open && !w.resync && w.table.have == 0 && w.stats.Queue == 0 {
		select {
		case <-w.left:
		default:
			close(w.left)
		}
	}
}

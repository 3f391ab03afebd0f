package app

import (
	"context"
	"errors"
	"syscall"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
	"pbxmesh/registry/feed"
)

// glueEvery is how often leases are carried into the failure detector, and the switch's state
// into the lease, when nothing happens: what happens is carried at once.
const glueEvery = time.Second

// news says that something is to be looked at soon.
type news chan struct{}

func newNews() news { return make(news, 1) }

// tell never blocks.
func (n news) tell() {
	select {
	case n <- struct{}{}:
	default:
	}
}

// watchMembers carries membership and leases into the failure detector and the
// prober until ctx ends.
func (a *App) watchMembers(ctx context.Context) error {
	return everyOr(ctx, glueEvery, a.polled, a.carryMembers)
}

// carryMembers carries them once. Who finds a record of a node that the failure
// detector has not heard of yet calls it too: a call must not fail because it came
// between two ticks.
func (a *App) carryMembers() {
	a.carry.Lock() // two at once could put back what the later one saw
	defer a.carry.Unlock()
	before := a.tracker.Mesh()
	defer func() {
		if a.tracker.Mesh() != before {
			a.nodesChanged()
		}
	}()
	now := a.now()
	members := a.replica.Members()
	nodes := make([]pbxmesh.Node, 0, len(members))
	for i := range members {
		nodes = append(nodes, members[i].Node)
	}
	a.tracker.SetRegistrations(a.countPhones(members, before))
	a.tracker.SetMembers(now, nodes)
	if a.prober != nil {
		a.prober.SetMembers(nodes)
	}
	link := a.syncer.Status()
	linkOK := link.Connected && link.Synced
	reports := make([]failover.LeaseReport, 0, len(members))
	for i := range members {
		reports = append(reports, leaseReport(&members[i], linkOK, now))
	}
	a.tracker.Leases(now, reports)
}

// countPhones counts the registrations of each member: of one that is not up, those that have
// not come to another node.
func (a *App) countPhones(members []registry.Member, mesh *pbxmesh.Mesh) map[pbxmesh.NodeID]int {
	counts, stranded := make(map[pbxmesh.NodeID]int, len(members)), a.stranded.Load()
	for i := range members {
		id := members[i].Node.ID
		counts[id] = a.replica.Held(id)
		if stranded == nil || mesh.State(id).Observed == pbxmesh.ObservedUp {
			continue
		}
		if n, counted := (*stranded)[id]; counted {
			counts[id] = n
		}
	}
	return counts
}

// strandedEvery is how often the phones of nodes that are not up are counted; it takes a
// hundredth of a processor at most.
const strandedEvery = 5 * time.Second

// countStranded counts the phones of nodes that are not up and have not come to another one,
// until ctx ends.
func (a *App) countStranded(ctx context.Context) error {
	for {
		began := time.Now()
		if a.syncer.Status().Synced {
			a.countStrandedNow()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(strandedEvery, 100*time.Since(began))):
		}
	}
}

func (a *App) countStrandedNow() {
	mesh, now := a.tracker.Mesh(), a.now()
	stranded := map[pbxmesh.NodeID]int{}
	for id, state := range mesh.States {
		if state.Observed != pbxmesh.ObservedUp {
			stranded[id] = a.replica.Stranded(id, mesh, now)
		}
	}
	a.stranded.Store(&stranded)
}

// leaseReport says what the registry knows of a member's sign of life.
func leaseReport(m *registry.Member, linkOK bool, now time.Time) failover.LeaseReport {
	r := failover.LeaseReport{Node: m.Node.ID, LinkOK: linkOK, Seen: m.LastSeen, Left: m.Left, At: now}
	switch {
	case m.LastSeen.IsZero():
		r.Status = failover.LeaseNeverSeen
	case m.LeaseHeld:
		r.Status = failover.LeaseFresh
		switch {
		case m.Lease.Switch.Alive:
			r.Switch = failover.SwitchAlive
		case m.Lease.Switch.Dead:
			r.Switch = failover.SwitchDead
		}
	default:
		r.Status = failover.LeaseExpired
	}
	return r
}

// watchSwitch carries what the event socket says into the lease until ctx ends.
func (a *App) watchSwitch(ctx context.Context) error {
	software := ""
	load := failover.NewLoad(failover.LoadOptions(a.cfg.Failover.Load))
	return everyOr(ctx, glueEvery, a.switchNews, func() {
		s := a.feed.Status()
		now := a.now()
		shed, why := load.Take(now, s.Sessions, s.MaxSessions, s.IdleCPU)
		a.tracker.SetSwitch(now, switchWord(&s), shed, why)
		a.writer.SetSwitch(registry.SwitchState{
			Alive: s.Connected, Dead: switchDead(&s), Sessions: s.Sessions, MaxSessions: s.MaxSessions, IdleCPU: s.IdleCPU,
		})
		if s.Version != "" && s.Version != software {
			software = s.Version
			a.writer.SetSoftware("FreeSWITCH " + software)
		}
	})
}

// switchWord is what the event socket shows, in the words of the failure detector.
func switchWord(s *feed.Status) failover.SwitchWord {
	switch {
	case s.Connected:
		return failover.SwitchAlive
	case switchDead(s):
		return failover.SwitchDead
	}
	return failover.SwitchUnknown
}

// switchDead reports whether the event socket shows that the switch is gone. A lost
// connection alone does not, nor a refusal by ACL or password: everybody would turn
// away from a node whose daemon was only restarted or misconfigured.
func switchDead(s *feed.Status) bool {
	return !s.Connected && (errors.Is(s.Err, syscall.ECONNREFUSED) || errors.Is(s.Err, esl.ErrNoGreeting))
}

// every calls f now and then, until ctx ends.
func every(ctx context.Context, pause time.Duration, f func()) error {
	return everyOr(ctx, pause, nil, f)
}

// everyOr is every that also calls f when there is news.
func everyOr(ctx context.Context, pause time.Duration, n news, f func()) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n:
		case <-tick.C:
		}
	}
}

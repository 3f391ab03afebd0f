package app

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/failover/drain"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
)

const (
	// wishesEvery is how often it is looked whether operators' wishes must be read: at once when
	// somebody told of one, every time when nobody tells, and anyhow after wishesAnyhow.
	wishesEvery  = time.Second
	wishesAnyhow = 5 * time.Second
	boardTimeout = 2 * time.Second // bounds reading them

	// wishesCompared is how often every wish is compared with the board's, and posted
	// again where the board lost it.
	wishesCompared = 10 * time.Second

	// wishPostTimeout bounds the post within an operator's command, below the
	// control API's own bound.
	wishPostTimeout = 2 * time.Second
)

// wishes carries what operators want between this daemon, the board and a file.
type wishes struct {
	book  *drain.Book
	board registry.Board
	file  string // "" keeps nothing over a restart

	adopting sync.Mutex
	saying   sync.Mutex // one command at a time: each numbers its wish after the last
	told     told
	news     atomic.Bool // since the board was read
	wake     news
	read     time.Time
	after    uint64 // revision of the board that was read
	compared time.Time
	failed   string // the last failure, so that it is logged once
	drains   drains
}

func (a *App) buildWishes() error {
	w := &wishes{book: drain.NewBook(), board: a.backend, wake: newNews(), drains: drains{progress: map[pbxmesh.NodeID]seenProgress{}}}
	if f := string(a.cfg.Registry.StateFile); f != "" {
		w.file = f + ".wanted"
		if err := w.book.Load(w.file); err != nil {
			a.log.Warn("a part of what operators wanted is lost", "error", err)
		}
	}
	w.told.kind, w.told.notify = registry.NoteWanted, func() { w.news.Store(true); w.wake.tell() }
	a.wishes = w
	for _, wish := range w.book.All() {
		a.adopt(wish.Node)
	}
	return nil
}

// adopt lets the last wish about a node count in this daemon.
func (a *App) adopt(node pbxmesh.NodeID) {
	a.wishes.adopting.Lock() // two at once could put back what the later one saw
	defer a.wishes.adopting.Unlock()
	w := a.wishes.book.Get(node)
	a.tracker.SetWanted(a.now(), w.Node, w.Wanted)
	if a.drainer != nil && w.Node == a.nodeID() {
		turn := w.Turn
		if w.Wanted != pbxmesh.WantedDraining {
			turn = 0
		}
		a.drainer.Want(turn)
	}
	a.nodesChanged()
}

// keepWishes reads and repairs the board until ctx ends.
func (a *App) keepWishes(ctx context.Context) error {
	return everyOr(ctx, wishesEvery, a.wishes.wake, func() {
		if a.publisher.cut.Load() {
			return
		}
		err := a.syncWishes(ctx)
		if err == nil {
			err = a.syncDrains(ctx)
		}
		switch {
		case err == nil:
			a.wishes.failed = ""
		case err.Error() != a.wishes.failed && ctx.Err() == nil:
			a.wishes.failed = err.Error()
			a.log.Warn("what operators want is not shared now", "error", err)
		}
	})
}

// syncWishes takes in what is new on the board. Now and then it compares everything,
// because a store that lost its notes must not look like an operator's change of mind.
func (a *App) syncWishes(ctx context.Context) error {
	w := a.wishes
	ctx, cancel := context.WithTimeout(ctx, boardTimeout)
	defer cancel()
	all := w.failed != "" || a.now().Sub(w.compared) >= wishesCompared
	if news := w.news.Swap(false); !news && !all && w.told.yes.Load() && a.now().Sub(w.read) < wishesAnyhow {
		return nil
	}
	after := w.after
	if all {
		after = 0
	}
	notes, next, _, err := w.board.Notes(ctx, registry.NoteWanted, after)
	if err != nil {
		w.news.Store(true)
		return err
	}
	w.read = a.now()
	posted := map[pbxmesh.NodeID]drain.Wish{}
	changed := false
	for _, n := range notes {
		wish, err := drain.DecodeWish(n.Key, n.Value)
		if err != nil {
			a.log.Debug("a wish is not valid", "key", n.Key, "error", err)
			continue
		}
		posted[wish.Node] = wish
		if w.book.Merge(wish) {
			changed = true
			a.log.Info("wanted", "node", wish.Node, "wanted", wish.Wanted.String(), "by", wish.By, "reason", wish.Reason)
			a.adopt(wish.Node)
		}
	}
	if next < w.after {
		w.compared = time.Time{} // the store lost its notes
	}
	w.after = next
	if changed {
		a.saveWishes()
	}
	if !all {
		return nil
	}
	gone, err := a.goneNodes(ctx)
	if err != nil {
		return err
	}
	var back []registry.Note
	for i := range notes {
		if id := pbxmesh.NodeID(notes[i].Key); gone[id] {
			back = append(back, registry.Note{Kind: registry.NoteWanted, Key: notes[i].Key, Tell: true})
		}
	}
	var lost []drain.Wish
	for _, wish := range w.book.All() {
		if gone[wish.Node] {
			a.forgetWish(wish.Node)
			continue
		}
		if have, ok := posted[wish.Node]; !ok || wish.Newer(&have) {
			lost = append(lost, wish)
		}
	}
	if len(back) > 0 {
		if err := w.board.Post(ctx, back...); err != nil {
			return err
		}
	}
	if err := a.postWishes(ctx, lost...); err != nil {
		return err
	}
	w.compared = a.now()
	return nil
}

// goneNodes returns the nodes that were removed for good, without the local one, which
// lives.
func (a *App) goneNodes(ctx context.Context) (map[pbxmesh.NodeID]bool, error) {
	members, _, err := a.backend.Members(ctx)
	if err != nil {
		return nil, err
	}
	gone := map[pbxmesh.NodeID]bool{}
	for i := range members {
		if id := members[i].Node.ID; members[i].Gone && id != a.nodeID() {
			gone[id] = true
		}
	}
	return gone, nil
}

func (a *App) postWishes(ctx context.Context, list ...drain.Wish) error {
	notes := make([]registry.Note, 0, len(list))
	for _, wish := range list {
		text, err := wish.Encode()
		if err != nil {
			return err
		}
		notes = append(notes, registry.Note{Kind: registry.NoteWanted, Key: string(wish.Node), Value: text, Tell: true})
	}
	if len(notes) == 0 {
		return nil
	}
	return a.wishes.board.Post(ctx, notes...)
}

func (a *App) saveWishes() {
	if a.wishes.file == "" {
		return
	}
	if err := a.wishes.book.Save(a.wishes.file); err != nil {
		a.log.Warn("a restart would forget what operators want", "error", err)
	}
}

// wantedOf translates the states of the control API.
var wantedOf = map[string]pbxmesh.Wanted{
	control.StateInService: pbxmesh.WantedInService, control.StateDraining: pbxmesh.WantedDraining, control.StateOut: pbxmesh.WantedOut,
}

// Want records what an operator wants of a node, here and on the board. The node may be
// dead, and its daemon too.
func (a *App) Want(ctx context.Context, r control.WantedRequest) (*control.WantedReply, error) {
	wanted, ok := wantedOf[r.State]
	if !ok {
		return nil, fmt.Errorf("%w: state %q", control.ErrInvalid, r.State)
	}
	if _, err := a.member(r.Node); err != nil {
		return nil, err
	}
	a.carryMembers() // a node that came between two ticks is judged by what is wanted of it
	w := a.wishes
	w.saying.Lock()
	defer w.saying.Unlock()
	reply := &control.WantedReply{Node: r.Node, Wanted: wanted.String()}
	if wanted != pbxmesh.WantedInService {
		verdict := drain.Check(r.Node, a.loads())
		if len(verdict.Refused) > 0 && !r.Force {
			return nil, fmt.Errorf("%w: %s; --force does it all the same", control.ErrRefused, joined(verdict.Refused))
		}
		reply.Warnings = slices.Concat(verdict.Refused, verdict.Warnings, a.outlook(r.Node, wanted))
	}
	// What was said elsewhere a moment ago counts as the wish before this one.
	post, cancel := context.WithTimeout(ctx, wishPostTimeout)
	defer cancel()
	a.hearWishes(post)
	was := w.book.Get(r.Node)
	reply.Was = was.Wanted.String()
	wish, err := w.book.Say(a.now(), drain.Wish{Node: r.Node, Wanted: wanted, By: r.By, Reason: r.Reason, Force: r.Force})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	reply.Since, reply.By, reply.Reason = wish.Since, wish.By, wish.Reason
	a.log.Info("wanted", "node", wish.Node, "wanted", wish.Wanted.String(), "was", was.Wanted.String(), "by", wish.By, "reason", wish.Reason, "force", wish.Force)
	a.adopt(wish.Node)
	a.saveWishes()
	err = a.postWishes(post, wish)
	reply.Shared = err == nil
	if err != nil {
		reply.Warnings = append(reply.Warnings, "only this daemon knows yet, the others hear of it when the registry is back: "+err.Error())
	}
	return reply, nil
}

// hearWishes reads the board once; a failure shows when the wish is posted.
func (a *App) hearWishes(ctx context.Context) {
	notes, _, _, err := a.wishes.board.Notes(ctx, registry.NoteWanted, 0)
	if err != nil {
		return
	}
	for _, n := range notes {
		if wish, err := drain.DecodeWish(n.Key, n.Value); err == nil && a.wishes.book.Merge(wish) {
			a.adopt(wish.Node)
		}
	}
}

// outlook warns of what the operator may not expect.
func (a *App) outlook(node pbxmesh.NodeID, wanted pbxmesh.Wanted) []string {
	var out []string
	m, err := a.member(node)
	if err != nil {
		return nil
	}
	switch {
	case wanted == pbxmesh.WantedOut:
		if n := a.registrations(node); n > 0 {
			out = append(out, fmt.Sprintf("%s holds %d registrations: the other nodes do not call them any more", node, n))
		}
	case wanted == pbxmesh.WantedDraining && a.tracker.Mesh().State(node).Observed == pbxmesh.ObservedDown:
		out = append(out, fmt.Sprintf("%s is down: nobody can tell its phones, which leave by themselves; it takes none when it is up again, until `pbxmesh undrain`", node))
	case !m.Local && !m.LeaseHeld:
		out = append(out, fmt.Sprintf("the daemon of %s is silent: name servers turn away, but nobody tells its phones, which leave by themselves", node))
	}
	return out
}

func (a *App) member(node pbxmesh.NodeID) (registry.Member, error) {
	for _, m := range a.replica.Members() {
		if m.Node.ID == node {
			return m, nil
		}
	}
	return registry.Member{}, fmt.Errorf("%w: no node is called %s; `pbxmesh nodes` lists them", control.ErrRefused, node)
}

func joined(list []string) string {
	out := ""
	for i, s := range list {
		if i > 0 {
			out += "; "
		}
		out += s
	}
	return out
}

// forgetWish lets a node that was removed come back in service, if it ever does. The
// board keeps nothing about it. Every daemon keeps that it is wanted in service, and
// posts that when the node is back: one that was away meanwhile, the node's own above
// all, may still hold what was wanted before.
func (a *App) forgetWish(node pbxmesh.NodeID) {
	w := a.wishes
	w.saying.Lock()
	defer w.saying.Unlock()
	if w.book.Get(node).Wanted == pbxmesh.WantedInService {
		return
	}
	wish, err := w.book.Say(a.now(), drain.Wish{Node: node, Wanted: pbxmesh.WantedInService, By: "pbxmesh forget"})
	if err != nil {
		a.log.Warn("wish not taken back", "node", node, "error", err)
		return
	}
	a.adopt(wish.Node)
	a.saveWishes()
}

// forgetNotes takes what operators wanted of a node that was removed, and how far its
// drain was, off the board. The next comparison repeats it when another daemon that has
// not heard yet posts it again, or when it fails.
func (a *App) forgetNotes(ctx context.Context, node pbxmesh.NodeID) {
	a.forgetWish(node)
	key := string(node)
	if err := a.wishes.board.Post(ctx, registry.Note{Kind: registry.NoteWanted, Key: key, Tell: true}, registry.Note{Kind: registry.NoteDrain, Key: key}); err != nil {
		a.log.Warn("what was wanted of a node is not off the board yet", "node", node, "error", err)
	}
}

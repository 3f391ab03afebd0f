package app

import (
	"context"
	"fmt"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/router/native"
)

// nativeHook is what teaches the local switch the rest of the mesh; each part is
// nil when the configuration turns it off.
type nativeHook struct {
	rows      *native.Rows
	lamps     *native.Lamps
	mailboxes *native.Mailboxes
	caches    *native.Caches
}

// buildNative prepares the native hook. Each part has an event socket connection of
// its own, so that a slow switch holds up nothing else.
func (a *App) buildNative() error {
	n := a.cfg.Router.Native
	if a.cfg.Node == nil || !n.Enabled {
		return nil
	}
	sw := a.cfg.FreeSWITCH
	password, err := sw.EventSocket.PasswordFile.Read()
	if err != nil {
		return fmt.Errorf("freeswitch.event_socket.password_file: %w", err)
	}
	socket := esl.Config{Address: string(sw.EventSocket.Address), Password: password}
	a.native.rows = native.NewRows(native.RowsOptions{
		ESL: socket, Local: a.nodeID(), Directory: a.replica, Nodes: a.tracker, Taken: a.bindings.Taken,
		Profile: sw.MeshProfile, TTL: n.RowTTL, RepairEvery: n.RepairInterval, Logger: a.log,
	})
	exchange := a.exchange()
	a.native.caches = native.NewCaches(native.CachesOptions{ESL: socket, Local: a.nodeID(), Exchange: exchange, Logger: a.log})
	if n.Presence {
		a.native.lamps = native.NewLamps(native.LampsOptions{
			ESL: socket, Local: a.nodeID(), Directory: a.replica, Nodes: a.tracker, Exchange: exchange, Logger: a.log,
		})
	}
	if n.MWI {
		a.native.mailboxes = native.NewMailboxes(native.MailboxesOptions{
			ESL: socket, Local: a.nodeID(), Directory: a.replica, Exchange: exchange,
			Profiles: sw.Profiles, Shared: n.SharedVoicemail, Logger: a.log,
		})
	}
	return nil
}

// exchange returns what carries lamps and mailboxes between the daemons: the store
// of the registry, or memory within this process.
func (a *App) exchange() native.Exchange {
	store, ok := a.backend.(*redisstore.Store)
	switch {
	case a.opts.Exchange != nil:
		return a.opts.Exchange
	case !ok:
		return native.NewMemory()
	}
	return native.NewRedis(native.RedisOptions{
		Client: store.Client(), Reader: store.Reader, Prefix: store.KeyPrefix(), Listen: store.Listen,
		Nodes: func() []pbxmesh.NodeID {
			members := a.replica.Members()
			ids := make([]pbxmesh.NodeID, 0, len(members))
			for i := range members {
				ids = append(ids, members[i].Node.ID)
			}
			return ids
		},
	})
}

// startNative lets the native hook work. Nothing is written into the switch before
// the replica was read whole: rows of an earlier life must not fall to a replica
// that is still filling.
func (a *App) startNative() {
	n := &a.native
	if n.rows == nil {
		return
	}
	a.task("native hook", n.rows.Run)
	a.task("caches", n.caches.Run)
	if n.lamps != nil {
		a.task("lamps", n.lamps.Run)
	}
	if n.mailboxes != nil {
		a.task("mailboxes", n.mailboxes.Run)
	}
	a.task("native hook start", func(ctx context.Context) error {
		select {
		case <-a.syncer.Synced():
			a.carryMembers()
			n.rows.Resync()
		case <-ctx.Done():
		}
		return nil
	})
}

// onChange hears of every change in the replica.
func (a *App) onChange(c registry.Change) {
	a.hearArrival(c)
	a.ownDomain.note(a, c.New)
	r := c.New
	if r == nil {
		r = c.Old
	}
	if a.bindings != nil {
		a.bindings.Changed(r.AOR)
	}
	if a.native.rows == nil {
		return
	}
	a.native.rows.Changed(r.AOR)
	if a.native.mailboxes != nil {
		a.native.mailboxes.Changed(r.AOR)
	}
	if a.native.lamps != nil {
		a.native.lamps.Changed(r.AOR)
	}
}

// nodesChanged hears of every new picture of the nodes. It must not block.
func (a *App) nodesChanged() {
	if a.bindings != nil {
		a.bindings.NodesChanged()
	}
	if a.native.rows != nil {
		a.native.rows.NodesChanged()
	}
	if a.native.lamps != nil {
		a.native.lamps.NodesChanged()
	}
}

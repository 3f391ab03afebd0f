package doctor

import (
	"context"
	"fmt"
	"time"

	"pbxmesh"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/registry"
)

// Bounds of what is still good.
const (
	slowStore   = 250 * time.Millisecond // one question to the registry
	slowReplica = time.Second            // from a write until it is seen there
	replicaWait = 3 * time.Second
	clockWarn   = time.Second
	clockWrong  = 30 * time.Second // registrations would end too early or too late
)

// checker is a store that can be asked how it does.
type checker interface {
	Check(ctx context.Context) (serverTime time.Time, write, read time.Duration, err error)
}

// store looks at the registry: does it take writes, what time is it there, does it hold
// this node's lease, which nodes does it know.
func (p *patient) store(ctx context.Context) {
	start := time.Now()
	mode := p.cfg.Registry.Mode()
	backend := p.o.Backend
	if backend == nil {
		if mode == config.ModeMemory {
			p.say("registry", "registry", start, skip("in the daemon's memory: no other node shares it"))
			p.clock(start, time.Time{}, 0)
			return
		}
		var err error
		if backend, err = app.OpenStore(&p.cfg.Registry); err != nil {
			p.say("registry", "registry", start, fail(err.Error(), "correct the section registry of the configuration"))
			return
		}
		defer backend.Close()
	}
	if c, can := backend.(checker); can {
		at, write, read, err := c.Check(ctx)
		if err != nil {
			p.say("registry", "registry", start, p.storeFailure(ctx, err))
			p.say("lease", "lease", start, skip("the registry does not answer"))
			if p.cfg.Registry.Read != "" {
				p.say("replica", "replica", start, skip("the registry does not answer"))
			}
			p.clock(start, time.Time{}, 0)
			return
		}
		answered := time.Now()
		r := ok("%s takes a write in %s and a question in %s", mode, ms(write), ms(read))
		if max(write, read) > slowStore {
			r = warn(r.Seen, "calls do not wait for it, but other nodes hear of a registration this much later: use a nearer replica set or a better link")
		}
		p.say("registry", "registry", start, r)
		// The server told its time about half a question ago.
		p.clock(start, at, answered.Add(-read/2).Sub(at))
	} else {
		p.say("registry", "registry", start, ok("%s", mode))
		p.clock(start, time.Time{}, 0)
	}
	p.replica(ctx)
	p.members(ctx, backend)
	if p.cfg.Node != nil {
		p.lease(ctx, backend)
	}
}

// replica looks at registry.read: is it reached, may it be read, does it follow.
func (p *patient) replica(ctx context.Context) {
	if p.cfg.Registry.Read == "" {
		return
	}
	start := time.Now()
	say := func(r Result) { p.say("replica", "replica", start, r) }
	const instead = "; the daemon reads the primary instead"
	backend, err := app.OpenStoreAndReplica(&p.cfg.Registry)
	if err != nil {
		say(fail(err.Error(), "correct registry.read"))
		return
	}
	defer backend.Close()
	c, can := backend.(interface {
		CheckReplica(ctx context.Context) (time.Duration, error)
	})
	if !can {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(p.o.Timeout, replicaWait))
	defer cancel()
	behind, err := c.CheckReplica(ctx)
	switch {
	case err == nil && behind > slowReplica:
		say(warn(ms(behind)+" behind the primary", "a daemon reads the primary when it is more than a renewal of a lease behind: look at the link between both (INFO replication)"))
	case err == nil:
		say(ok("shows in %s what was written to the primary", ms(behind)))
	case containsFold(err.Error(), "does not show"):
		say(warn(err.Error(), "does it follow this mesh's primary (INFO replication: role, master_host, master_link_status)"+instead))
	case containsFold(err.Error(), "NOPERM"), containsFold(err.Error(), "WRONGPASS"), containsFold(err.Error(), "NOAUTH"):
		say(warn(err.Error(), "users do not follow from a primary to its replica: make the user there too, with the reading rights of docs/registry.md"+instead))
	case containsFold(err.Error(), "MASTERDOWN"), containsFold(err.Error(), "LOADING"):
		say(warn(err.Error(), "it has lost its primary, or is copying it: look at its log"+instead))
	default:
		say(warn(err.Error(), "is it running, and registry.read its address?"+instead))
	}
}

func (p *patient) storeFailure(ctx context.Context, err error) Result {
	text := err.Error()
	for _, known := range []struct{ part, do string }{
		{"WRONGPASS", "registry.username and registry.password_file must be those of the store"},
		{"NOAUTH", "the store wants a password: set registry.password_file"},
		{"NOPERM", "give the user the rights that docs/registry.md lists (ACL SETUSER), for keys and channels of " + p.cfg.Registry.KeyPrefix + ":*"},
		{"READONLY", "this is a replica: name the primary, or use registry.sentinel"},
		{"MISCONF", "the store cannot save to its disk: look at its log"},
		{"OOM", "the store has no memory left: raise maxmemory"},
		{"x509", "the store's certificate is not trusted: registry.tls.ca_file and server_name"},
		{"tls:", "does the store speak TLS there? rediss:// and registry.tls must fit it"},
		{"no such host", "the name in registry.url is not known here"},
	} {
		if containsFold(text, known.part) {
			return fail(text, known.do)
		}
	}
	if ctx.Err() != nil {
		text = "the store does not answer within " + ms(p.o.Timeout)
	}
	return fail(text, "is the store running, and let through by firewalls? Calls go on from memory meanwhile")
}

// members learns who else is in the mesh, in case the daemon does not tell.
func (p *patient) members(ctx context.Context, backend registry.Backend) {
	list, _, err := backend.Members(ctx)
	if err != nil {
		return // said by the check of the registry, or by that of the lease
	}
	for _, a := range list {
		p.learn(member{id: a.Node.ID, mesh: a.Node.Mesh})
	}
}

func (p *patient) lease(ctx context.Context, backend registry.Backend) {
	start := time.Now()
	id := p.cfg.Node.ID
	leases, _, err := backend.Leases(ctx, []pbxmesh.NodeID{id})
	say := func(r Result) { p.say("lease", "lease", start, r) }
	l, held := leases[id]
	switch {
	case err != nil:
		say(fail(err.Error(), "the other nodes take this one for dead"))
	case !held:
		say(fail("the registry holds no sign of life of "+string(id), "start the daemon (pbxmesh serve); its log says why it does not publish"))
	case l.Owner != p.cfg.Owner():
		say(fail(fmt.Sprintf("the daemon %s publishes for node %s", l.Owner, id), "two daemons have one node.id, or one has another name: change one"))
	case !l.Switch.Alive:
		say(fail("it says that its switch does not answer", "see the check of the event socket, and the daemon's log"))
	case l.Term == 0:
		say(warn("the daemon lives and does not publish registrations yet", "wait a few seconds; then look at its log"))
	default:
		say(ok("held by %s, %d of %d calls", l.Owner, l.Switch.Sessions, l.Switch.MaxSessions))
	}
}

// clock compares with the registry's time; ahead is how far this machine's is before it.
func (p *patient) clock(start, at time.Time, ahead time.Duration) {
	if at.IsZero() {
		p.say("clock", "clock", start, skip("no registry tells the time"))
		return
	}
	seen := fmt.Sprintf("%s apart from the registry's", ms(ahead.Abs()))
	const do = "registrations carry the time they end: run chrony or systemd-timesyncd on every machine"
	switch {
	case ahead.Abs() > clockWrong:
		p.say("clock", "clock", start, fail(seen, do))
	case ahead.Abs() > clockWarn:
		p.say("clock", "clock", start, warn(seen, do))
	default:
		p.say("clock", "clock", start, ok("%s", seen))
	}
}

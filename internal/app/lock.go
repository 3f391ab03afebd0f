package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pbxmesh/registry"
)

// lockWait is how long a daemon waits for a former one of its node that still shuts
// down: as long as that may take, and a moment.
const lockWait = stopTimeout + 2*time.Second

// lockNode takes the lock of this daemon's node on this machine, before anything is read
// or bound that a former daemon may still write or hold. A name server has no node, and
// a daemon without a state file has no place for a lock; both start without one, and so
// does a daemon whose file system knows no locks: then the lease in the registry alone
// keeps a second daemon away.
func (a *App) lockNode(ctx context.Context) error {
	state := string(a.cfg.Registry.StateFile)
	if a.cfg.Node == nil || state == "" {
		return nil
	}
	lock, err := registry.LockNode(ctx, state+"."+string(a.nodeID())+".lock", lockWait, a.log)
	switch {
	case errors.Is(err, context.Canceled): // it wraps ErrLocked too
		return err
	case errors.Is(err, registry.ErrLocked):
		return fmt.Errorf("%w: stop that process, or give one of the two a node.id and a registry.state_file of its own", err)
	case err != nil:
		a.log.Warn("this node has no lock: when its daemon is killed, the next one waits until the lease ends", "error", err)
		return nil
	}
	a.lock = lock.ID()
	a.teardowns.push("lock of the node", func(context.Context) error { return lock.Close() })
	return nil
}

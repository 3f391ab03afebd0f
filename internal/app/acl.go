package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"pbxmesh/internal/esl"
	"pbxmesh/internal/fsconf"
)

// aclEvery is how often the membership is compared with the switch's list.
const aclEvery = time.Second

// aclKeeper keeps the list of nodes in the switch's acl.conf.xml equal to the
// membership: a node that joins is let in everywhere, one that was removed is shut
// out, and nobody edits a file.
type aclKeeper struct {
	file   string
	list   string // name of the list, which is that of the mesh profile
	socket esl.Config

	written []fsconf.Peer // what the switch was told last; nil at first
	failed  string        // the last failure, so that it is logged once
}

func (a *App) buildACL() error {
	sw := a.cfg.FreeSWITCH
	if a.cfg.Node == nil || sw.ACLFile == "" {
		return nil
	}
	password, err := sw.EventSocket.PasswordFile.Read()
	if err != nil {
		return fmt.Errorf("freeswitch.event_socket.password_file: %w", err)
	}
	a.acl = &aclKeeper{
		file: string(sw.ACLFile), list: sw.MeshProfile,
		socket: esl.Config{Address: string(sw.EventSocket.Address), Password: password},
	}
	return nil
}

// keepACL works until ctx ends. A failure is tried again and never ends the daemon:
// calls go on with the list that the switch has.
func (a *App) keepACL(ctx context.Context) error {
	select {
	case <-a.syncer.Synced(): // an empty membership would shut everybody out
	case <-ctx.Done():
		return ctx.Err()
	}
	return every(ctx, aclEvery, func() {
		peers := a.peers()
		if len(peers) == 0 || slices.Equal(peers, a.acl.written) {
			return
		}
		err := a.acl.write(ctx, peers)
		switch {
		case err == nil:
			a.acl.written, a.acl.failed = peers, ""
			a.log.Info("the switch lets in the nodes of the mesh", "list", a.acl.list, "nodes", len(peers))
		case err.Error() != a.acl.failed && ctx.Err() == nil:
			a.acl.failed = err.Error()
			a.log.Error("the switch's list of nodes is not up to date", "file", a.acl.file, "error", err)
		}
	})
}

// peers returns where the calls of all nodes come from, this one included, by name.
func (a *App) peers() []fsconf.Peer {
	var out []fsconf.Peer
	for _, m := range a.replica.Members() {
		if m.Node.Mesh.IsValid() {
			out = append(out, fsconf.Peer{Name: m.Node.ID, Address: m.Node.Mesh.Addr().Unmap()})
		}
	}
	return out
}

// write puts peers into the file and lets the switch read it.
func (k *aclKeeper) write(ctx context.Context, peers []fsconf.Peer) error {
	settings := fsconf.Settings{Profile: k.list, Peers: peers}
	old, err := os.ReadFile(k.file)
	if err != nil {
		return fmt.Errorf("freeswitch.acl_file: %w; `pbxmesh fsconf --write` makes one", err)
	}
	merged, err := settings.MergeACL(old)
	if err != nil {
		return fmt.Errorf("freeswitch.acl_file: %w", err)
	}
	if !bytes.Equal(old, merged) {
		info, err := os.Stat(k.file)
		if err != nil {
			return fmt.Errorf("freeswitch.acl_file: %w", err)
		}
		if err := renameio.WriteFile(k.file, merged, info.Mode().Perm()); err != nil {
			return fmt.Errorf("freeswitch.acl_file: %w; the user that runs pbxmesh must be able to write there", err)
		}
	}
	conn, err := esl.Dial(ctx, k.socket)
	if err != nil {
		return err
	}
	_, err = conn.API(ctx, "reloadacl") // reads the XML again first
	return errors.Join(err, conn.Close())
}

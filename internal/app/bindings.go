package app

import (
	"fmt"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/registry/bindings"
)

// buildBindings prepares what keeps a phone that has moved from ringing by its old row in
// the local switch. It runs after the feed and before the native hook, which waits for it.
func (a *App) buildBindings() error {
	if a.cfg.Node == nil {
		return nil
	}
	sw := a.cfg.FreeSWITCH
	password, err := sw.EventSocket.PasswordFile.Read()
	if err != nil {
		return fmt.Errorf("freeswitch.event_socket.password_file: %w", err)
	}
	profile := ""
	if a.cfg.Router.Native.Enabled {
		profile = sw.MeshProfile
	}
	a.bindings = bindings.New(bindings.Options{
		Profile: profile,
		ESL:     esl.Config{Address: string(sw.EventSocket.Address), Password: password},
		Local:   a.nodeID(), Directory: a.replica, Nodes: a.tracker, Sink: a.writer, Logger: a.log, Now: a.now,
		Restored: a.feed.Refresh,
		Settled: func(aor pbxmesh.AOR) {
			if a.native.rows != nil {
				a.native.rows.Changed(aor)
			}
		},
	})
	return nil
}

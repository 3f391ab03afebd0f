package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"pbxmesh/internal/control"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// buildVersion is what this binary was built from, as far as it knows.
func buildVersion() control.VersionReply {
	reply := control.VersionReply{Version: version, Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return reply
	}
	if reply.Version == "" && info.Main.Version != "(devel)" {
		reply.Version = info.Main.Version
	}
	modified := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			reply.Commit = s.Value[:min(len(s.Value), 12)]
		case "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified && reply.Commit != "" {
		reply.Commit += "+changes"
	}
	if reply.Version == "" {
		reply.Version = "devel"
	}
	return reply
}

func newVersion() *cobra.Command {
	var q query
	var daemon bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program or of a running daemon",
		Example: `  pbxmesh version
  pbxmesh version --daemon --output json`,
		Args:              exactArgs(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply := buildVersion()
			if daemon {
				client, err := q.client()
				if err != nil {
					return err
				}
				answer, err := client.Version(cmd.Context())
				if err != nil {
					return err
				}
				reply = *answer
			}
			if q.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			text := "pbxmesh " + printable(reply.Version)
			if reply.Commit != "" {
				text += " (" + printable(reply.Commit) + ")"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s, %s\n", text, printable(reply.Go))
			return err
		},
	}
	q.flags(cmd)
	cmd.Flags().BoolVar(&daemon, "daemon", false, "ask the running daemon instead of this program")
	return cmd
}

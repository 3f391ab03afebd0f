package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"pbxmesh"
)

func newForget() *cobra.Command {
	var q query
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Remove a node from the mesh for good",
		Long: `Remove a node that will not come back: its registrations, its lease and its place
among the nodes. Its users are taken out of every switch, name servers stop naming it,
and with freeswitch.acl_file every switch shuts it out.

What you wanted of it (drain, out) is forgotten too.

Stop its daemon first: a node that is alive is refused. One that starts again
announces itself again, in service.`,
		Example: `  pbxmesh forget london
  pbxmesh forget london --api 192.0.2.10:8085 --token-file /etc/pbxmesh/token`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			node, err := pbxmesh.ParseNodeID(args[0])
			if err != nil {
				return usagef("%w", err)
			}
			client, err := q.client()
			if err != nil {
				return err
			}
			reply, err := client.Forget(cmd.Context(), node)
			if err != nil {
				return err
			}
			if q.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is forgotten.\n", reply.Node)
			return err
		},
	}
	q.flags(cmd)
	cmd.ValidArgsFunction = completeNodes(&q)
	return cmd
}

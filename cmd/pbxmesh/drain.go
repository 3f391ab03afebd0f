package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/control"
)

// wish holds what the commands that say what shall become of a node have in common.
type wish struct {
	query
	reason, by string
	force      bool
}

func (w *wish) flags(cmd *cobra.Command, forced string) {
	w.flagsButTimeout(cmd)
	f := cmd.Flags()
	f.StringVar(&w.reason, "reason", "", "why, shown in the list of nodes, such as \"new kernel\"")
	f.StringVar(&w.by, "by", "", "who, shown in the list of nodes (default user@host)")
	if forced != "" {
		f.BoolVar(&w.force, "force", false, forced)
	}
	cmd.ValidArgsFunction = completeNodes(&w.query)
}

// say tells the daemon and prints its warnings.
func (w *wish) say(cmd *cobra.Command, arg, state string) (*control.WantedReply, *control.Client, error) {
	node, err := pbxmesh.ParseNodeID(arg)
	if err != nil {
		return nil, nil, usagef("%w", err)
	}
	client, err := w.client()
	if err != nil {
		return nil, nil, err
	}
	reply, err := client.Want(cmd.Context(), control.WantedRequest{
		Node: node, State: state, By: firstOf(w.by, whoami()), Reason: w.reason, Force: w.force,
	})
	if err != nil {
		return nil, nil, err
	}
	for _, warning := range reply.Warnings {
		if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "pbxmesh: warning: %s\n", printable(warning)); err != nil {
			return nil, nil, err
		}
	}
	return reply, client, nil
}

// whoami is who this command runs as, "" when nobody knows.
func whoami() string {
	name := os.Getenv("SUDO_USER")
	if u, err := user.Current(); err == nil && name == "" {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil && name != "" {
		name += "@" + host
	}
	if name != printable(name) || len(name) > 128 {
		return ""
	}
	return name
}

func newDrain() *cobra.Command {
	var w wish
	var wait bool
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move the phones of a node to the others, before maintenance",
		Long: `Take a node out of the name servers' answers and move its phones to the other nodes,
at a pace that these can take (failover.drain of the node's configuration). Calls are
never ended: a phone in a call is left alone until the call is over.

Any daemon takes the command; the node and its own daemon may be dead. It is refused
when no other node takes phones, or when the others lack room for its registrations
(node.capacity) or calls; --force does it all the same.

With --wait the progress is shown until no registration and no call is left. Ctrl-C ends
the waiting only. The node stays drained until ` + "`pbxmesh undrain`" + `, also over restarts.

The exit code is 1 when the node was not empty within --timeout.`,
		Example: `  pbxmesh drain london --wait
  pbxmesh drain london --wait --timeout 30m --reason "new kernel" && ssh london reboot
  pbxmesh drain london --wait --output json
  pbxmesh undrain london`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit != 0 && !wait {
				return usagef("--timeout is how long to --wait: add it")
			}
			if limit < 0 {
				return usagef("--timeout %v is negative: write one such as 30m, or leave it out", limit)
			}
			reply, client, err := w.say(cmd, args[0], control.StateDraining)
			if err != nil {
				return err
			}
			if wait {
				return waitEmpty(cmd, &waiting{client: client, node: reply.Node, json: w.json(), limit: limit})
			}
			if w.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			return sayWanted(cmd.OutOrStdout(), reply, "drains", ": name servers turn away, its phones move to the other nodes.", "\n"+
				"`pbxmesh drain "+string(reply.Node)+" --wait` shows how far that is, `pbxmesh undrain "+string(reply.Node)+"` takes it back.")
		},
	}
	w.flags(cmd, "drain although the others lack room, or there is no other node")
	f := cmd.Flags()
	f.BoolVar(&wait, "wait", false, "show the progress, and return when the node is empty")
	f.DurationVar(&limit, "timeout", 0, "with --wait: how long to wait for that (default for ever)")
	return cmd
}

func newUndrain() *cobra.Command {
	var w wish
	cmd := &cobra.Command{
		Use:     "undrain NODE",
		Aliases: []string{"in"},
		Short:   "Take a node back in service",
		Long: `Take a node back in service after drain or out, also while its drain goes on: name
servers name it again, and phones that were told to leave are welcome again. Phones that
have moved come back by themselves when they next look up their name.`,
		Example: `  pbxmesh undrain london
  pbxmesh in london`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			reply, _, err := w.say(cmd, args[0], control.StateInService)
			if err != nil {
				return err
			}
			if w.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			return sayWanted(cmd.OutOrStdout(), reply, "is in service", ": phones are welcome again.", "")
		},
	}
	w.flags(cmd, "")
	cmd.Flags().DurationVar(&w.timeout, "timeout", answerTimeout, "how long to wait for the answer")
	return cmd
}

func newOut() *cobra.Command {
	var w wish
	cmd := &cobra.Command{
		Use:   "out NODE",
		Short: "Take a node out of service at once",
		Long: `Take a node out of service at once, whatever probes say: name servers do not name it,
and the other nodes do not call the phones that are still registered there. Calls that
run go on, and nobody tells its phones to leave: for that, and for maintenance, there is
drain. This is for a node that does harm although it looks well.

The node stays out until ` + "`pbxmesh in`" + ` (or undrain), also over restarts. It is refused
when no other node takes phones, or when the others lack room; --force does it all the
same.`,
		Example: `  pbxmesh out london --reason "one-way audio"
  pbxmesh in london`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			reply, _, err := w.say(cmd, args[0], control.StateOut)
			if err != nil {
				return err
			}
			if w.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			return sayWanted(cmd.OutOrStdout(), reply, "is out of service", ": no phones, no calls from other nodes.", "\n"+
				"`pbxmesh in "+string(reply.Node)+"` takes it back.")
		},
	}
	w.flags(cmd, "take it out although the others lack room, or there is no other node")
	cmd.Flags().DurationVar(&w.timeout, "timeout", answerTimeout, "how long to wait for the answer")
	return cmd
}

// sayWanted says what now stands: what the node does, what that means, and how to go on.
// Who asks for what stands already hears that nothing begins anew.
func sayWanted(out io.Writer, r *control.WantedReply, does, means, rest string) error {
	switch {
	case r.Was != r.Wanted:
		means += " (was " + printable(r.Was) + ")"
	case r.Wanted == "in service":
		means = " already: nothing changes."
	default:
		means = fmt.Sprintf(" already, since %s: nothing changes but who wants it, and why.", span(max(0, time.Since(r.Since))))
	}
	_, err := fmt.Fprintf(out, "%s %s%s%s\n", r.Node, does, means, rest)
	return err
}

// completeNodes offers the nodes that the daemon knows. A shell that completes does not
// wait long, and hears of no error.
func completeNodes(q *query) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		quick := *q
		quick.timeout = time.Second
		client, err := quick.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), quick.timeout)
		defer cancel()
		reply, err := client.Nodes(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, n := range reply.Nodes {
			if strings.HasPrefix(string(n.ID), strings.ToLower(start)) {
				out = append(out, string(n.ID)+"\t"+printable(n.Effective))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
)

// query holds what every command that asks a daemon has in common.
type query struct {
	output    outputFormat
	api       string
	tokenFile string
	timeout   time.Duration
}

// answerTimeout is how long an answer may take unless --timeout says otherwise.
const answerTimeout = 5 * time.Second

func (q *query) flags(cmd *cobra.Command) {
	q.flagsButTimeout(cmd)
	cmd.Flags().DurationVar(&q.timeout, "timeout", answerTimeout, "how long to wait for the answer")
}

// flagsButTimeout is flags for a command whose --timeout means something else.
func (q *query) flagsButTimeout(cmd *cobra.Command) {
	q.output, q.timeout = formatTable, answerTimeout
	f := cmd.Flags()
	f.VarP(&q.output, "output", "o", "output format: table or json")
	f.StringVar(&q.api, "api", "", "the daemon's address (default $PBXMESH_API, else "+control.DefaultAddress+")")
	f.StringVar(&q.tokenFile, "token-file", "", "file with the API token (default $PBXMESH_TOKEN_FILE)")
	completeWith(cmd, "output", string(formatTable), string(formatJSON))
	completeWith(cmd, "api", control.DefaultAddress)
}

func (q *query) json() bool { return q.output == formatJSON }

func (q *query) client() (*control.Client, error) {
	api := firstOf(q.api, os.Getenv("PBXMESH_API"), control.DefaultAddress)
	token, err := config.SecretFile(firstOf(q.tokenFile, os.Getenv("PBXMESH_TOKEN_FILE"))).Read()
	if err != nil {
		return nil, usagef("--token-file: %w", err)
	}
	client, err := control.NewClient(api, token, q.timeout)
	if err != nil {
		return nil, usagef("%w", err)
	}
	return client, nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func newLookup() *cobra.Command {
	var q query
	var store string
	cmd := &cobra.Command{
		Use:   "lookup AOR",
		Short: "Show where an extension is registered",
		Long: `Show every device of an extension (user@domain) on every node, as the daemon's copy
of the registry knows it, and how old that copy is.

With --registry, when no daemon answers, Redis is read directly: a redis:// or
rediss:// URL, or the daemon's configuration file, whose registry section also knows
passwords, TLS, Sentinel and Cluster. Redis then looks at every record of every node,
and sends those of the extension only. STATE is "alive" for a node whose daemon
renews its lease, else "silent". The answer says which way it went.

The exit code is 1 when the extension is registered nowhere.`,
		Example: `  pbxmesh lookup 1002@pbx.example.com
  pbxmesh lookup 1002@pbx.example.com --output json
  pbxmesh lookup 1002@pbx.example.com --api 192.0.2.10:8085 --token-file /etc/pbxmesh/token
  pbxmesh lookup 1002@pbx.example.com --registry redis://127.0.0.1:6379
  pbxmesh lookup 1002@pbx.example.com --registry /etc/pbxmesh/pbxmesh.yaml`,
		Args:              exactArgs("AOR (user@domain)"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			aor, client, err := q.prepare(args[0])
			if err != nil {
				return err
			}
			var reply *control.LookupReply
			way, err := orDirect(cmd.Context(), store, func() (err error) {
				reply, err = client.Lookup(cmd.Context(), aor)
				return err
			}, func(ctx context.Context, d *app.Direct) (err error) {
				ctx, cancel := context.WithTimeout(ctx, q.timeout)
				defer cancel()
				reply, err = d.Lookup(ctx, aor)
				return err
			})
			if err != nil {
				return err
			}
			if q.json() {
				err = writeJSON(cmd.OutOrStdout(), reply)
			} else if err = printLookup(cmd.OutOrStdout(), reply); err == nil {
				_, err = io.WriteString(cmd.OutOrStdout(), way)
			}
			if err == nil && len(reply.Registrations) == 0 {
				return &codeError{code: exitNo, err: errSaid}
			}
			return err
		},
	}
	q.flags(cmd)
	cmd.Flags().StringVar(&store, "registry", "", "where to look when no daemon answers: the URL of Redis, or the daemon's configuration file")
	return cmd
}

func newNodes() *cobra.Command {
	var q query
	cmd := &cobra.Command{
		Use:   "nodes [NODE]",
		Short: "List the nodes and their states",
		Long: `List all nodes as the daemon sees them. OBSERVED is what probes, leases and the
event socket say, WANTED what an operator asked for, STATE what calls and name
servers go by, computed from both. SHED is the share of new phones that name servers
send elsewhere, ANSWERS how many observers get an answer.

With a NODE, show what each observer says of it.`,
		Example: `  pbxmesh nodes
  pbxmesh nodes london
  pbxmesh nodes --output json`,
		Args:              oneOrNone("NODE"),
		ValidArgsFunction: completeNodes(&q),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := q.client()
			if err != nil {
				return err
			}
			reply, err := client.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) > 0 {
				if err := only(reply, args[0]); err != nil {
					return err
				}
			}
			switch {
			case q.json():
				return writeJSON(cmd.OutOrStdout(), reply)
			case len(args) > 0:
				return printVotes(cmd.OutOrStdout(), reply, time.Now())
			}
			return printNodes(cmd.OutOrStdout(), reply, time.Now())
		},
	}
	q.flags(cmd)
	return cmd
}

func newExplain() *cobra.Command {
	var q query
	from := "local"
	cmd := &cobra.Command{
		Use:   "explain AOR",
		Short: "Show how a call would be routed, and why",
		Long: `Show what the daemon's node would do with a call to an extension (user@domain) right
now: the result, the bridge string, and the reasons in the order of the decision.
Nothing is called.`,
		Example: `  pbxmesh explain 1002@pbx.example.com
  pbxmesh explain 1002@pbx.example.com --from mesh`,
		Args:              exactArgs("AOR (user@domain)"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if from != "local" && from != "mesh" {
				return usagef("--from %q is not known: local and mesh are allowed", from)
			}
			aor, client, err := q.prepare(args[0])
			if err != nil {
				return err
			}
			reply, err := client.Explain(cmd.Context(), aor, from == "mesh")
			if err != nil {
				return err
			}
			if q.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			return printExplain(cmd.OutOrStdout(), reply)
		},
	}
	q.flags(cmd)
	cmd.Flags().StringVar(&from, "from", from, "where the call comes from: local (a phone of this node) or mesh (another node)")
	completeWith(cmd, "from", "local", "mesh")
	return cmd
}

func (q *query) prepare(arg string) (pbxmesh.AOR, *control.Client, error) {
	aor, err := pbxmesh.ParseAOR(arg)
	if err != nil {
		return pbxmesh.AOR{}, nil, usagef("%w", err)
	}
	client, err := q.client()
	return aor, client, err
}

// outputFormat is the value of --output; a wrong one is refused when it is set.
type outputFormat string

const (
	formatTable outputFormat = "table"
	formatJSON  outputFormat = "json"
)

func (f *outputFormat) String() string { return string(*f) }
func (f *outputFormat) Type() string   { return "format" }
func (f *outputFormat) Set(s string) error {
	switch v := outputFormat(s); v {
	case formatTable, formatJSON:
		*f = v
		return nil
	default:
		return fmt.Errorf("%s and %s are allowed", formatTable, formatJSON)
	}
}

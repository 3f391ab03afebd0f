package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/control"
	"pbxmesh/internal/doctor"
)

func newDoctor() *cobra.Command {
	var file, call, api string
	output := formatTable
	cmd := &cobra.Command{
		Use:   "doctor -c FILE",
		Short: "Check this node from end to end, and say what to do",
		Long: `Check everything that this node needs: the event socket, the sofia profiles, the
mesh profile with its settings and its list of nodes, the mesh ports of all nodes, the
registry, the clock, the name servers, the daemon. Each check says what was seen and
what to do. Nothing is changed. Each is bounded by 3 s, and they run at the same time.

With --call a user's phone is rung for a moment, the way a call from this switch
would ring it.

The exit code is 1 when a check fails; a warning is none.`,
		Example: `  pbxmesh doctor -c /etc/pbxmesh/pbxmesh.yaml
  pbxmesh doctor -c /etc/pbxmesh/pbxmesh.yaml --call 1002@pbx.example.com
  pbxmesh doctor -c /etc/pbxmesh/pbxmesh.yaml --output json`,
		Args:              exactArgs(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := doctor.Options{API: api}
			if call != "" {
				aor, err := pbxmesh.ParseAOR(call)
				if err != nil {
					return usagef("--call: %w", err)
				}
				o.Call = aor
			}
			var err error
			if o.Config, err = loadConfig(file); err != nil {
				return err
			}
			if w := cmd.ErrOrStderr(); isTerminal(w) {
				o.Progress = func(r doctor.Result) { _, _ = fmt.Fprintf(w, "%-4s  %s\n", r.Status, r.Check) }
			}
			report, err := doctor.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if output == formatJSON {
				err = writeJSON(cmd.OutOrStdout(), report)
			} else {
				err = printReport(cmd.OutOrStdout(), report)
			}
			if err == nil && report.Failed {
				return &codeError{code: exitNo, err: errSaid}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "configuration file (required)")
	f.VarP(&output, "output", "o", "output format: table or json")
	f.StringVar(&call, "call", "", "ring this user (user@domain) for a moment")
	f.StringVar(&api, "api", "", "the daemon's address (default: api.listen of the configuration)")
	completeFiles(cmd, "config", "yaml", "yml")
	completeWith(cmd, "output", string(formatTable), string(formatJSON))
	completeWith(cmd, "api", control.DefaultAddress)
	return cmd
}

// isTerminal reports whether a person reads w while it is written.
func isTerminal(w io.Writer) bool {
	f, is := w.(*os.File)
	if !is {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func printReport(w io.Writer, r *doctor.Report) error {
	rows := [][]string{{"CHECK", "STATUS", "SEEN"}}
	counts := map[doctor.Status]int{}
	for _, c := range r.Checks {
		counts[c.Status]++
		rows = append(rows, []string{c.Check, string(c.Status), c.Seen})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	var b strings.Builder
	for _, c := range r.Checks {
		if c.Do == "" {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("\nWhat to do:\n")
		}
		fmt.Fprintf(&b, "  %s: %s\n", printable(c.Check), printable(c.Do))
	}
	who := r.Name
	if r.Node != "" {
		who = string(r.Node)
	}
	fmt.Fprintf(&b, "\n%s: %s, %d failed, %s, %d not made.\n", printable(who),
		count(len(r.Checks), "check"), counts[doctor.Fail], count(counts[doctor.Warn], "warning"), counts[doctor.Skip])
	_, err := io.WriteString(w, b.String())
	return err
}

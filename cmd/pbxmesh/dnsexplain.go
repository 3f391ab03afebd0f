package main

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"pbxmesh/internal/control"
)

func newDNSExplain() *cobra.Command {
	var q query
	var client string
	cmd := &cobra.Command{
		Use:   "explain NAME --client IP",
		Short: "Show which node a client gets from the name servers, and why",
		Long: `Show what a client would get for a name from the name servers right now (A, AAAA, SRV
over UDP, NAPTR); per node its state, the estimated latency with its samples and its
source, and whether it sends this client's network elsewhere; what each stage of the
choice leaves, and why; and which node comes first if the present first one fails.

Ask the daemon of a name server. Any other daemon shows the choice, which is the same
with the same dns.preferences, without the records.`,
		Example: `  pbxmesh dns explain pbx.example.com --client 198.51.100.7
  pbxmesh dns explain pbx.example.com --client 2001:db8::7 --output json
  pbxmesh dns explain pbx.example.com --client 198.51.100.7 --api 192.0.2.53:8085 --token-file /etc/pbxmesh/token`,
		Args:              exactArgs("NAME (a DNS name)"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			addr, err := netip.ParseAddr(client)
			if err != nil || addr.Zone() != "" {
				return usagef("--client %q is no IP address: write the phone's public address, such as 198.51.100.7", client)
			}
			if args[0] == "" {
				return usagef("NAME is empty: write a DNS name, such as pbx.example.com")
			}
			api, err := q.client()
			if err != nil {
				return err
			}
			reply, err := api.DNSExplain(cmd.Context(), args[0], addr)
			if err != nil {
				return err
			}
			if q.json() {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			return printDNSExplain(cmd.OutOrStdout(), reply)
		},
	}
	q.flags(cmd)
	cmd.Flags().StringVar(&client, "client", "", "IP address of the phone, or of its resolver when that sends no client subnet")
	completeWith(cmd, "client")
	return cmd
}

func printDNSExplain(w io.Writer, r *control.DNSExplainReply) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s for %s, and for everybody in %s:\n", printable(r.Name), r.Client, r.Block)
	for _, a := range r.Answers {
		if len(a.Records) == 0 {
			fmt.Fprintf(&b, "  %s: none (%s)\n", printable(a.Type), printable(a.Result))
		}
		for _, record := range a.Records {
			fmt.Fprintf(&b, "  %s: %s\n", printable(a.Type), printable(record))
		}
	}
	b.WriteString("\n")
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NODE\tPLACE\tSTATE\tSHED\tLATENCY\tSAMPLES\tFROM\tPHONES")
	for i := range r.Nodes {
		n := &r.Nodes[i]
		place, score, shed := "-", "-", "-"
		if n.Place > 0 {
			place = strconv.Itoa(n.Place)
		}
		if n.Score > 0 {
			score = fmt.Sprintf("%.1f ms", n.Score)
		}
		if n.Shed > 0 {
			shed = fmt.Sprintf("%.1f %%", float64(n.Shed)/10)
			if n.Refuses {
				shed += " (this one)"
			}
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%.0f\n", printable(string(n.Node)), place, printable(n.State), shed, score, n.Samples, orDash(n.Source), n.Phones)
	}
	_ = tw.Flush() // into memory
	b.WriteString("\nHow they are chosen:\n")
	for _, s := range r.Stages {
		names := make([]string, 0, len(s.Nodes))
		for _, id := range s.Nodes {
			names = append(names, printable(string(id)))
		}
		fmt.Fprintf(&b, "  %-8s  %s\n", printable(s.Stage), orDash(strings.Join(names, ", ")))
		for _, reason := range s.Reasons {
			fmt.Fprintf(&b, "            %s\n", printable(reason))
		}
	}
	if r.Next != "" {
		fmt.Fprintf(&b, "\nIf %s failed: %s.\n", printable(string(r.Nodes[0].Node)), printable(string(r.Next)))
	}
	for _, remark := range r.Remarks {
		fmt.Fprintf(&b, "\nNote: %s.\n", printable(remark))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh/internal/app"
)

func newDNS() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "What clients get from the name servers, and keys of the zones",
	}
	onlySubcommands(cmd)
	cmd.AddCommand(newDNSExplain(), newDNSDS(), newDNSKeygen())
	return cmd
}

func newDNSDS() *cobra.Command {
	var file string
	output := formatTable
	cmd := &cobra.Command{
		Use:   "ds [ZONE] -c FILE",
		Short: "Print what the parent zone needs: DS and DNSKEY records",
		Long: `Print the DS records (SHA-256) that the parent zone publishes of the signed zones, and
the DNSKEY records they stand for, in zone file form. The keys are read from
dns.dnssec.key_dir; no daemon is asked. Without ZONE those of all zones.

The exit code is 1 when there is no key.`,
		Example: `  pbxmesh dns ds -c /etc/pbxmesh/pbxmesh.yaml
  pbxmesh dns ds pbx.example.com -c /etc/pbxmesh/pbxmesh.yaml --output json`,
		Args:              zoneArg,
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			keys, err := app.ZoneKeys(cfg, strings.Join(args, ""), time.Now())
			if err != nil {
				return keyError(err)
			}
			if output == formatJSON {
				err = writeJSON(cmd.OutOrStdout(), map[string]any{"keys": keys})
			} else {
				err = printKeys(cmd.OutOrStdout(), keys)
			}
			if err == nil && len(keys) == 0 {
				return &codeError{code: exitNo, err: errors.New("there is no key: pbxmesh dns keygen makes one")}
			}
			return err
		},
	}
	dnsFlags(cmd, &file)
	cmd.Flags().VarP(&output, "output", "o", "output format: table or json")
	completeWith(cmd, "output", string(formatTable), string(formatJSON))
	return cmd
}

func newDNSKeygen() *cobra.Command {
	var file string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "keygen [ZONE] -c FILE",
		Short: "Make a key for a zone",
		Long: `Make a key for a zone (dns.zone without ZONE) in dns.dnssec.key_dir, and print its DS
record. It is a combined signing key: ECDSA P-256, algorithm 13, flags 257. No file is
overwritten. A running daemon takes the key up within seconds.

Copy both files to every name server of the zone before the parent zone gets the DS
record: they all sign with the same keys.`,
		Example: `  pbxmesh dns keygen -c /etc/pbxmesh/pbxmesh.yaml
  pbxmesh dns keygen pbx.example.com -c /etc/pbxmesh/pbxmesh.yaml --activate-in 24h`,
		Args:              zoneArg,
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if wait < 0 || wait > 365*24*time.Hour {
				return usagef("--activate-in %v: 0s to 8760h are allowed", wait)
			}
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			key, err := app.GenerateZoneKey(cfg, strings.Join(args, ""), wait, time.Now())
			if err != nil {
				return keyError(err)
			}
			return printKeys(cmd.OutOrStdout(), []app.ZoneKey{key})
		},
	}
	dnsFlags(cmd, &file)
	cmd.Flags().DurationVar(&wait, "activate-in", 0, "how long the key only stands in the zone before it signs")
	return cmd
}

func dnsFlags(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration file (required)")
	completeFiles(cmd, "config", "yaml", "yml")
}

// zoneArg takes at most one argument.
func zoneArg(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return exactArgs("ZONE")(cmd, args)
}

func keyError(err error) error {
	if errors.Is(err, app.ErrNoKeyDir) || errors.Is(err, app.ErrOtherZone) {
		return usagef("%w", err)
	}
	return err
}

// printKeys writes zone file lines: what is no record is a comment.
func printKeys(w io.Writer, keys []app.ZoneKey) error {
	var b strings.Builder
	for _, k := range keys {
		state := "signs"
		switch {
		case !k.Published:
			state = "not in use"
		case !k.Signing:
			state = "published, does not sign"
		}
		fmt.Fprintf(&b, "; %s, key %d: %s. %s\n", k.Zone, k.Tag, state, k.File)
		if k.DS != "" {
			fmt.Fprintln(&b, k.DS)
		}
		fmt.Fprintln(&b, k.DNSKEY)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

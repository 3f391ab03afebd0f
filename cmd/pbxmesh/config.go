package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check or show a configuration",
	}
	onlySubcommands(cmd)
	cmd.AddCommand(newConfigCheck(), newConfigShow())
	return cmd
}

func newConfigCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check a configuration and the files it names, start nothing",
		Long: `Check a configuration and the files it names, and start nothing. Everything that
is wrong is printed at once, each with file, line, column and what is allowed; the
exit code is 2 then.`,
		Example:           `  pbxmesh config check /etc/pbxmesh/pbxmesh.yaml`,
		Args:              exactArgs("FILE"),
		ValidArgsFunction: oneYAML,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(args[0])
			if err != nil {
				return err
			}
			if err := checkDNS(cfg); err != nil {
				return err
			}
			return sayChecked(cmd.OutOrStdout(), args[0], cfg)
		},
	}
}

func newConfigShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show [FILE]",
		Short: "Print a configuration with every default filled in",
		Long: `Print a configuration with every default filled in; without a file, the defaults
themselves. Secrets are not printed, only the files that hold them.`,
		Example: `  pbxmesh config show
  pbxmesh config show /etc/pbxmesh/pbxmesh.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return exactArgs("FILE")(cmd, args)
		},
		ValidArgsFunction: oneYAML,
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := config.Defaults()
			if len(args) == 1 {
				var err error
				if cfg, err = loadConfig(args[0]); err != nil {
					return err
				}
			}
			text, err := cfg.YAML()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
}

func oneYAML(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

// checkDNS looks into the files of the name server, which loadConfig only opens.
func checkDNS(cfg *config.Config) error {
	if err := app.CheckDNS(cfg); err != nil {
		return &codeError{code: exitUsage, err: &configError{fmt.Errorf("the configuration is wrong:\n%w", err)}}
	}
	return nil
}

// sayChecked tells what a checked configuration will make of the daemon: a reader
// sees at once whether it is the one they meant.
func sayChecked(w io.Writer, file string, cfg *config.Config) error {
	role := "observer " + cfg.Name + " without a node"
	if cfg.Node != nil {
		role = "node " + string(cfg.Node.ID)
	}
	dns := "no name server"
	if len(cfg.DNS.Listen) > 0 {
		dns = "name server for " + cfg.DNS.Zone
	}
	if _, err := fmt.Fprintf(w, "%s is valid: %s, registry %s, %s\n", file, role, cfg.Registry.Mode(), dns); err != nil {
		return err
	}
	for _, warning := range cfg.Warnings() {
		if _, err := fmt.Fprintf(w, "warning: %s\n", warning); err != nil {
			return err
		}
	}
	return nil
}

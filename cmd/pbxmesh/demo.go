package main

import (
	"errors"

	"github.com/spf13/cobra"

	"pbxmesh/internal/config"
	"pbxmesh/internal/demo"
)

func newDemo() *cobra.Command {
	var opts demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the whole system on this machine",
		Long: `Build three simulated switches with their daemons, two name servers and phones on
loopback addresses, and show: a local call, a call from node to node, a callee who
is not there, and a node that dies and whose phones move. Each step is verified at
the far end and printed with its time.

With --once it ends after the last step: exit code 0 when all held, 1 with the
failed step otherwise. Without it the system stays up, and the commands to try are
printed, until Ctrl-C.`,
		Example: `  pbxmesh demo --once
  pbxmesh demo
  pbxmesh demo --once --registry redis://127.0.0.1:6379/0`,
		Args:              exactArgs(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := config.ParseURL(opts.Registry); err != nil {
				return usagef("--registry: %w", err)
			}
			opts.Out, opts.Version = cmd.OutOrStdout(), buildVersion()
			err := demo.Run(cmd.Context(), opts)
			// Ctrl-C is how a demo that stays up is meant to end.
			if err == nil || !opts.Once && errors.Is(err, cmd.Context().Err()) {
				return nil
			}
			return &codeError{code: exitNo, err: err}
		},
	}
	cmd.Flags().BoolVar(&opts.Once, "once", false, "end after the last step instead of staying up")
	cmd.Flags().StringVar(&opts.Registry, "registry", string(config.MemoryURL), "registry: memory, or a Redis such as redis://127.0.0.1:6379/0")
	cmd.Flags().BoolVarP(&opts.Verbose, "verbose", "v", false, "print the daemons' logs too")
	completeWith(cmd, "registry", "memory", "redis://127.0.0.1:6379/0")
	return cmd
}

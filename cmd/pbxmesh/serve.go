package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
)

func newServe() *cobra.Command {
	var file string
	var check bool
	cmd := &cobra.Command{
		Use:   "serve -c FILE",
		Short: "Run the daemon",
		Long: `Run the daemon that the configuration describes, until it is told to stop by
SIGINT or SIGTERM. A second signal ends it at once.

It logs to standard error. With a node section it stands beside a switch; without
one it is a name server and observer.`,
		Example: `  pbxmesh serve -c /etc/pbxmesh/pbxmesh.yaml
  pbxmesh serve -c /etc/pbxmesh/pbxmesh.yaml --check`,
		Args:              exactArgs(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			if check {
				if err := checkDNS(cfg); err != nil {
					return err
				}
				return sayChecked(cmd.OutOrStdout(), file, cfg)
			}
			logger := newLogger(cmd.ErrOrStderr(), cfg.Log)
			for _, w := range cfg.Warnings() {
				logger.Warn("configuration", "warning", w)
			}
			return app.Run(cmd.Context(), cfg, app.Options{Logger: logger, Version: buildVersion()})
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file (required)")
	cmd.Flags().BoolVar(&check, "check", false, "only check the configuration and the files it names")
	completeFiles(cmd, "config", "yaml", "yml")
	return cmd
}

// configError marks a wrong configuration: usage of a kind, but --help is no help.
type configError struct{ err error }

func (e *configError) Error() string { return e.err.Error() }
func (e *configError) Unwrap() error { return e.err }

func loadConfig(file string) (*config.Config, error) {
	if file == "" {
		return nil, usagef("name the configuration with -c FILE")
	}
	cfg, err := config.Load(file)
	if err == nil {
		return cfg, nil
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		err = fmt.Errorf("the configuration is wrong:\n%w", err)
	}
	return nil, &codeError{code: exitUsage, err: &configError{err}}
}

func newLogger(w io.Writer, cfg config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo // checked when the configuration was read
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

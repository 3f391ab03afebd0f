package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
)

// orDirect asks the daemon, and when none answers and store names a registry, reads
// that instead. way says so when it came to that.
func orDirect(ctx context.Context, store string, ask func() error, read func(context.Context, *app.Direct) error) (way string, err error) {
	var direct *config.Registry
	if store != "" {
		if direct, err = registryOf(store); err != nil {
			return "", err
		}
	}
	noDaemon := ask()
	switch {
	case noDaemon == nil:
		return "", nil
	case !errors.Is(noDaemon, control.ErrNoDaemon):
		return "", noDaemon
	case direct == nil:
		return "", fmt.Errorf("%w; or read Redis directly with --registry redis://host:port", noDaemon)
	}
	// Whoever asks for an exit code hears of the last resort.
	d, err := app.OpenDirect(direct)
	if err != nil {
		return "", fmt.Errorf("%s; and %w", noDaemon.Error(), err)
	}
	defer d.Close()
	if err := read(ctx, d); err != nil {
		return "", fmt.Errorf("%s; and read the registry: %w", noDaemon.Error(), err)
	}
	return "Read from Redis directly: " + noDaemon.Error() + ".\n", nil
}

// registryOf returns the registry that a URL or a configuration file names.
func registryOf(s string) (*config.Registry, error) {
	cfg := config.Defaults()
	if strings.Contains(s, "://") {
		u, err := config.ParseURL(s)
		if err != nil {
			return nil, usagef("--registry: %w", err)
		}
		cfg.Registry.URL = u
	} else {
		var err error
		if cfg, err = loadConfig(s); err != nil {
			return nil, err
		}
	}
	if cfg.Registry.Mode() == config.ModeMemory {
		return nil, usagef("--registry: %s names no Redis: write redis://host:port, or a configuration file that names one", s)
	}
	return &cfg.Registry, nil
}

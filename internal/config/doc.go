// Package config owns the daemon's configuration file: its types, defaults,
// strict YAML reading and every check that needs no network.
//
// Reading is strict because a daemon that silently ignores a misspelt key runs
// with a default that nobody asked for: unknown keys, wrong types, values out of
// range, aliases and further documents are refused, all in one go, each with
// file, line, column and what is allowed. Secrets never stand in the file, only
// paths of files that hold them.
//
// The package refuses to open sockets, resolve names or start anything, and it
// never prints a secret.
package config

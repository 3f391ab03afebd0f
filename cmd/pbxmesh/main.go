// Command pbxmesh joins FreeSWITCH servers in different places into one phone
// system: the daemon, the demo, and the commands that ask a running daemon.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(mainCode())
}

// mainCode is the one place where signals become a context. The first signal asks
// for an orderly end; with the handler gone then, a second one ends the process.
func mainCode() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"pbxmesh/internal/control"
)

// Exit codes. Scripts rely on them: they never change their meaning.
const (
	exitOK          = 0
	exitNo          = 1 // the answer is no: registered nowhere, a demo step failed
	exitUsage       = 2 // wrong flags or arguments, or a wrong configuration
	exitUnreachable = 3 // no daemon answers
	exitFailed      = 4 // anything else
)

// codeError carries the exit code that an error stands for.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// errSaid ends a command whose output says everything already.
var errSaid = errors.New("already said")

func usagef(format string, args ...any) error {
	return &codeError{code: exitUsage, err: fmt.Errorf(format, args...)}
}

// run executes one command line and returns its exit code. It ends soon after ctx
// does; it never calls os.Exit.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if !errors.Is(err, errSaid) {
		_, _ = fmt.Fprintf(stderr, "pbxmesh: %v\n", err)
		if code == exitUsage && errors.As(err, new(*codeError)) && !errors.As(err, new(*configError)) {
			_, _ = fmt.Fprintf(stderr, "Run '%s --help' for help.\n", cmd.CommandPath())
		}
	}
	return code
}

func exitCode(err error) int {
	var coded *codeError
	var refused *control.StatusError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case errors.Is(err, control.ErrNoDaemon):
		return exitUnreachable
	case errors.As(err, &refused) && refused.Code == http.StatusBadRequest:
		return exitUsage // only the daemon could tell
	default:
		return exitFailed
	}
}

// newRoot builds the whole command tree; it does nothing else, so tests may build
// as many as they like.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "pbxmesh",
		Short: "Join FreeSWITCH servers in different places into one phone system",
		Long: `pbxmesh joins FreeSWITCH servers in different places into one phone system
without a SIP proxy. Beside every switch runs one daemon (pbxmesh serve); the
other commands ask a running daemon.

Exit codes: 0 done, 1 the answer is no (registered nowhere, a demo step failed),
2 wrong usage or configuration, 3 no daemon answers, 4 any other failure.`,
		Example: `  # See the whole system on this machine, no switch needed
  pbxmesh demo --once

  # Run the daemon, then ask it
  pbxmesh serve -c /etc/pbxmesh/pbxmesh.yaml
  pbxmesh lookup 1002@pbx.example.com`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	onlySubcommands(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &codeError{code: exitUsage, err: err}
	})
	root.AddCommand(
		newServe(), newDemo(), newConfig(),
		newLookup(), newList(), newNodes(), newExplain(), newForget(), newDrain(), newUndrain(), newOut(),
		newFSConf(), newDoctor(), newDNS(),
		newVersion(),
	)
	// Cobra adds its own command late, and answers a shell it does not know with help
	// and success.
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		onlySubcommands(cmd)
		for _, shell := range cmd.Commands() {
			shell.Args = exactArgs()
		}
	}
	return root
}

// onlySubcommands makes cmd print its help when it stands alone, and refuse a
// subcommand that it does not have.
func onlySubcommands(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs // so that an unknown one comes to RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknownCommand(cmd, args[0])
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	hint := ""
	cmd.SuggestionsMinimumDistance = 2 // typing errors; cobra's own default is none
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("unknown command %q for %q%s", name, cmd.CommandPath(), hint)
}

// exactArgs wants one argument per name, and says which one is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("the argument %s is missing", names[len(args)])
		case len(args) > len(names):
			return usagef("the argument %q is one too many", args[len(names)])
		default:
			return nil
		}
	}
}

// oneOrNone allows one argument and wants none.
func oneOrNone(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return exactArgs(name)(cmd, args)
	}
}

// noFiles keeps the shell from offering file names where none belongs.
func noFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeWith offers the values of a flag. It panics on an unknown flag, which
// the first test to build the tree finds.
func completeWith(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

// completeFiles offers files with one of the extensions.
func completeFiles(cmd *cobra.Command, flag string, extensions ...string) {
	if err := cmd.MarkFlagFilename(flag, extensions...); err != nil {
		panic(err)
	}
}

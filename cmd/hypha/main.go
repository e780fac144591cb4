// Command hypha is a webhook server: it takes a platform's events, signs them,
// delivers them to every webhook that subscribed, retries what fails, and shows
// what happened.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/plinqx/hypha/internal/obs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.LookupEnv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hypha:", err)
		os.Exit(exitCode(err))
	}
}

// usageError is a command that can't be done as it was given.
type usageError struct{ error }

// Unwrap is what is wrong with it.
func (e usageError) Unwrap() error { return e.error }

// exitCode is what the process ends with: 2 for a command that was not understood, 1
// for one that failed.
func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// cli is the command line: a field per command.
type cli struct {
	Serve serveCommand `cmd:"" default:"withargs" help:"Run the server."`
	Dev   devCommand   `cmd:"" help:"Run a server to try things with: a temporary folder, a receiver, webhooks, and events that flow."`
	Bench benchCommand `cmd:"" help:"Measure a server: throughput, latency, what is lost or doubled, and what it costs."`

	Migrate migrateCommand `cmd:"" help:"Look after the tables of a PostgreSQL database."`
	Admin   adminCommand   `cmd:"" help:"Administer a server that runs: tenants, users, keys, the audit log. For its own account, and root."`
	Store   storeCommand   `cmd:"" help:"Move from a folder to a PostgreSQL database."`

	BenchReceiver benchReceiverCommand `cmd:"" hidden:""`
	BenchRelay    benchRelayCommand    `cmd:"" hidden:""`
	BenchSeed     benchSeedCommand     `cmd:"" hidden:""`

	Version kong.VersionFlag `help:"Print the version and exit."`
}

// process is what a command has of the process that runs it.
type process struct {
	ctx            context.Context
	env            func(string) (string, bool)
	stdin          io.Reader
	stdout, stderr io.Writer
}

// run is the whole program: tests call it as main does.
func run(ctx context.Context, args []string, env func(string) (string, bool), stdin io.Reader, stdout, stderr io.Writer) error {
	var c cli
	exited := false
	file, err := readConfigFile(configPath(args, env))
	if err != nil {
		return err
	}
	parser, err := kong.New(&c,
		kong.Name("hypha"),
		kong.Description("Hypha Webhooks: signs, delivers and retries your platform's events.\n\nEvery setting is a flag, a variable (--max-queued is HYPHA_MAX_QUEUED) or a line of the file that --config names (max-queued: 1000), in that order of strength."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { exited = true }),
		kong.Vars{"version": obs.Version()},
		kong.Resolvers(file, environment(env)), // the last one is the strongest
		kong.ValueFormatter(func(value *kong.Value) string {
			if value.HasDefault && value.Default != "" && value.Default != "0" {
				return value.Help + " Default: " + value.Default + "."
			}
			return value.Help
		}),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100, NoExpandSubcommands: true}),
	)
	if err != nil {
		return err
	}
	k, err := parser.Parse(args)
	if exited {
		return nil // --help, --version
	}
	if err != nil {
		var parse *kong.ParseError
		if errors.As(err, &parse) {
			return usageError{fmt.Errorf("%w (hypha --help lists the commands and settings)", err)}
		}
		return err
	}
	return k.Run(&process{ctx: ctx, env: env, stdin: stdin, stdout: stdout, stderr: stderr})
}

// once is the tag of a flag that is no setting: it is of the one command that it is
// given to, and neither a variable nor a line of the file.
const once = "once"

// environment resolves a flag from its HYPHA_… variable.
func environment(env func(string) (string, bool)) kong.Resolver {
	return kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		if flag.Name == "help" || flag.Name == "version" || flag.Tag.Has(once) {
			return nil, nil
		}
		value, ok := env("HYPHA_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_")))
		if !ok {
			return nil, nil
		}
		return value, nil
	})
}

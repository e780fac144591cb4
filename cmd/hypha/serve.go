package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/obs"
)

// serveCommand is the server.
type serveCommand struct{ settings }

// Run runs until the process is told to stop.
func (c *serveCommand) Run(p *process) error {
	logger, err := obs.NewLogger(p.stderr, c.LogFormat, c.LogLevel)
	if err != nil {
		return err
	}
	// The standard library reports some of what receivers do wrong here, in
	// their own words.
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(logger.Handler(), slog.LevelDebug).Writer())
	if _, given := p.env("GOGC"); !given {
		tuned, stop := context.WithCancel(p.ctx)
		var tuner sync.WaitGroup
		tuner.Go(func() { tuneHeap(tuned) })
		defer tuner.Wait()
		defer stop()
	}
	v, err := newServer(p.ctx, &c.settings, bootstrapFrom(p.env), logger, p.stdout)
	if err != nil {
		return err
	}
	if v.certificate != nil {
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		v.hangups = hangups
	}
	debug.FreeOSMemory() // a password hash takes 19 MiB, and that was the last for a while
	logger.Info("ready", "url", v.url(), "data", c.where(), "version", obs.Version())
	return v.run(p.ctx)
}

// bootstrapFrom reads what machines set and nobody types: these are variables
// only, so that no credential stands in a list of processes.
func bootstrapFrom(env func(string) (string, bool)) auth.Bootstrap {
	get := func(name string) string {
		value, _ := env("HYPHA_BOOTSTRAP_" + name)
		return value
	}
	return auth.Bootstrap{APIKey: get("API_KEY"), Email: get("EMAIL"), Password: get("PASSWORD"), OperatorKey: get("OPERATOR_KEY")}
}

// printBootstrap shows what the first start made, once. What was given is known
// to whoever gave it, and is not shown.
func printBootstrap(w io.Writer, made *auth.Bootstrapped, given auth.Bootstrap) {
	if given.APIKey != "" && given.Password != "" {
		return
	}
	fmt.Fprintf(w, "First start: made the tenant %q (%s). This is shown once; keep it.\n", made.Tenant.Name, made.Tenant.ID)
	if given.APIKey == "" {
		fmt.Fprintf(w, "  API key   %s\n", made.APIKey)
	}
	fmt.Fprintf(w, "  email     %s\n", made.Email)
	if given.Password == "" {
		fmt.Fprintf(w, "  password  %s\n", made.Password)
	}
	fmt.Fprintln(w)
}

// defaults are the settings as they are when nobody says anything.
func defaults() (*settings, error) {
	var c struct{ settings }
	parser, err := kong.New(&c, kong.Exit(func(int) {}))
	if err != nil {
		return nil, err
	}
	if _, err := parser.Parse(nil); err != nil {
		return nil, err
	}
	return &c.settings, nil
}

package main

import (
	"fmt"
	"os"

	"github.com/plinqx/hypha/internal/obs"
	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/store/sqlite"
	"github.com/plinqx/hypha/internal/store/transfer"
)

// storeCommand is what is done to a store while no server uses it.
type storeCommand struct {
	Copy storeCopyCommand `cmd:"" help:"Copy an embedded store to PostgreSQL. Called again, it goes on where it was broken off."`
}

// storeCopyCommand copies an embedded store.
type storeCopyCommand struct {
	From string `help:"Data folder of the embedded store. No server may use it meanwhile." required:"" placeholder:"DIR"`
	To   string `help:"PostgreSQL database to copy to, such as postgres://user:password@host/database. It must be empty." required:"" placeholder:"URL"`
}

// Run copies, and says how far it is.
func (c *storeCopyCommand) Run(p *process) error {
	// Opening would make what is not there.
	if _, err := os.Stat(c.From); err != nil {
		return fmt.Errorf("there is no data folder to copy: %w", err)
	}
	from, err := sqlite.Open(p.ctx, sqlite.Options{Dir: c.From})
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }() // it was only read
	to, err := postgres.Open(p.ctx, postgres.Options{URL: c.To, Node: "store copy", Version: obs.Version()})
	if err != nil {
		return err
	}
	err = transfer.Run(p.ctx, from, to, transfer.Options{Report: func(part string, rows, total int64, done bool) {
		state := "…"
		if done {
			state = "copied and counted"
		}
		fmt.Fprintf(p.stdout, "%-18s %d of %d %s\n", part, rows, total, state)
	}})
	if closed := to.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("%w (what was copied stays; the same command goes on from here)", err)
	}
	fmt.Fprintf(p.stdout, "Done. Start the server with --database-url and the same secret key as before: the secrets in the database are sealed with it.\n")
	return nil
}

package main

import (
	"fmt"

	"github.com/plinqx/hypha/internal/store/postgres"
)

// migrateCommand is what is done to a database's schema. A server does it by itself
// at its start; this is for those who want it done before, by another role.
type migrateCommand struct {
	Up     migrateUpCommand     `cmd:"" help:"Bring the database's tables to what this program knows. Servers may go on meanwhile."`
	Status migrateStatusCommand `cmd:"" help:"Say which version the database's tables have, and what is still to be done."`
}

// migrateDatabase is the database that both are about.
type migrateDatabase struct {
	DatabaseURL string `help:"PostgreSQL database, such as postgres://user:password@host/database. It holds a password: give it as the variable HYPHA_DATABASE_URL." required:"" placeholder:"URL"`
}

type (
	migrateUpCommand     struct{ migrateDatabase }
	migrateStatusCommand struct{ migrateDatabase }
)

// Run migrates, and says from where to where.
func (c *migrateUpCommand) Run(p *process) error {
	before, err := postgres.Up(p.ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	switch {
	case before.Current > before.Known:
		fmt.Fprintf(p.stdout, "The database has schema version %d already; this program knows versions up to %d, and can serve it.\n", before.Current, before.Known)
	case len(before.Pending) == 0:
		fmt.Fprintf(p.stdout, "The database has schema version %d already: nothing to do.\n", before.Current)
	default:
		fmt.Fprintf(p.stdout, "Migrated from schema version %d to %d: %d migrations.\n", before.Current, before.Known, len(before.Pending))
	}
	return nil
}

// Run says what there is, and whether this program can serve it.
func (c *migrateStatusCommand) Run(p *process) error {
	s, err := postgres.Status(p.ctx, c.DatabaseURL)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "schema version of the database: %d\nnewest that this program knows: %d\noldest that a program may know to serve it: %d\n", s.Current, s.Known, s.OldestProgram)
	if len(s.Pending) == 0 {
		fmt.Fprintln(p.stdout, "pending: nothing")
	}
	for _, name := range s.Pending {
		fmt.Fprintf(p.stdout, "pending: %s\n", name)
	}
	return s.Servable()
}

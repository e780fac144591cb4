package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// databaseServer is a server on which a run has a database of its own. Nothing that
// it returns, errors included, holds a password, but for url.
type databaseServer interface {
	// describe says what the server is.
	describe(ctx context.Context) (*DatabaseReport, error)
	// url is how the measured servers reach a database.
	url(name string) string
	// exists says whether there is a database of a name.
	exists(ctx context.Context, name string) (bool, error)
	// create makes a database: an empty one, or a copy of a template ("": none).
	create(ctx context.Context, name, template string) error
	// drop removes a database, whoever uses it. One that is not there is no error.
	drop(ctx context.Context, name string) error
	// settle makes a database that was just filled like one that has been in use:
	// nothing is left to be tidied up while something is measured.
	settle(ctx context.Context, name string) error
	// size is what a database takes on disk, in bytes.
	size(ctx context.Context, name string) (int64, error)
	// note keeps a text with a database, and noted reads it; nil if there is none.
	note(ctx context.Context, name string, text []byte) error
	noted(ctx context.Context, name string) ([]byte, error)
	// watch follows what a database does.
	watch(ctx context.Context, name string) (databaseWatch, error)
}

// databaseWatch reads what a database has done.
type databaseWatch interface {
	read(ctx context.Context) (databaseUsage, error)
	close(ctx context.Context) error
}

// databaseUsage is what a database server has done since some time. The counts are
// of the whole server: nothing else should use it while it is measured.
type databaseUsage struct {
	cpu     time.Duration // of all its processes; 0 unless it is on this machine
	commits uint64        // transactions that wrote something
	wal     uint64        // bytes
}

// since is what was done from one reading to another.
func (u databaseUsage) since(from databaseUsage) databaseUsage {
	return databaseUsage{cpu: u.cpu - from.cpu, commits: u.commits - from.commits, wal: u.wal - from.wal}
}

// DatabaseReport says which database server was used.
type DatabaseReport struct {
	Version string `json:"version"`
	Nodes   int    `json:"nodes"` // servers that share a database
	// Settings are those of the server that its speed depends on.
	Settings map[string]string `json:"settings"`
}

// A database is what the servers of a run share.
type database struct {
	server databaseServer
	name   string
	key    string // seals the secrets in it: 64 hexadecimal digits
	used   bool   // a server has been ready on it
	watch  databaseWatch
}

// databasePrefix is how the names of databases begin that the harness makes: what
// is left behind by a harness that was killed is known by it.
const databasePrefix = "hypha_bench_"

// dropTimeout bounds the dropping: the server writes a checkpoint first.
const dropTimeout = 2 * time.Minute

// newDatabase names a database. It is not there yet.
func newDatabase(server databaseServer) (*database, error) {
	var name [8]byte
	var key [32]byte
	for _, b := range [][]byte{name[:], key[:]} {
		if _, err := rand.Read(b); err != nil {
			return nil, fmt.Errorf("making a database's name and key: %w", err)
		}
	}
	return &database{server: server, name: databasePrefix + hex.EncodeToString(name[:]), key: hex.EncodeToString(key[:])}, nil
}

// env is what tells a process of ours where the database is. It is told by
// variables, as the command line is for everybody to see.
func (d *database) env() []string {
	return []string{"HYPHA_DATABASE_URL=" + d.server.url(d.name), "HYPHA_SECRET_KEY=" + d.key}
}

// usage is what the database has done. A run has none while it has no database.
func (d *database) usage(ctx context.Context) (databaseUsage, error) {
	if d == nil {
		return databaseUsage{}, nil
	}
	if d.watch == nil {
		var err error
		if d.watch, err = d.server.watch(ctx, d.name); err != nil {
			return databaseUsage{}, err
		}
	}
	return d.watch.read(ctx)
}

// drop removes the database, even if ctx is done.
func (d *database) drop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	if d.watch != nil {
		_ = d.watch.close(ctx) // it is of no use any more
		d.watch = nil
	}
	return d.server.drop(ctx, d.name)
}

// postgres is a PostgreSQL server.
type postgres struct {
	given string // the URL that was given, which names some database
}

// errDatabaseURL does not hold the URL, which may hold a password.
var errDatabaseURL = errors.New("the database's URL can't be read: it should be like postgres://user:password@host:5432/postgres")

// newPostgres reads a URL. Nothing is connected yet.
func newPostgres(given string) (*postgres, error) {
	if _, err := pgxpool.ParseConfig(given); err != nil {
		return nil, errDatabaseURL
	}
	if isURL(given) {
		if _, err := url.Parse(given); err != nil {
			return nil, errDatabaseURL
		}
	}
	return &postgres{given}, nil
}

func isURL(text string) bool {
	return strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://")
}

func (p *postgres) url(name string) string {
	if !isURL(p.given) {
		return p.given + " dbname=" + name // of several, the last one counts
	}
	u, err := url.Parse(p.given)
	if err != nil {
		return p.given // newPostgres has parsed it
	}
	u.Path = "/" + name
	query := u.Query()
	for _, stronger := range []string{"dbname", "database"} {
		query.Del(stronger)
	}
	u.RawQuery = query.Encode()
	return u.String()
}

// connect opens a connection to a database; "" is the one that the URL names.
func (p *postgres) connect(ctx context.Context, name string) (*pgx.Conn, error) {
	// What is for a pool is not for a connection.
	pool, err := pgxpool.ParseConfig(p.given)
	if err != nil {
		return nil, errDatabaseURL
	}
	c := pool.ConnConfig
	if name != "" {
		c.Database = name
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	c.RuntimeParams["application_name"] = "hypha bench"
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database server: %w", err)
	}
	return conn, nil
}

// with runs f on a connection of its own: nothing may be connected to a database
// that is copied.
func (p *postgres) with(ctx context.Context, name string, f func(*pgx.Conn) error) error {
	conn, err := p.connect(ctx, name)
	if err != nil {
		return err
	}
	return errors.Join(f(conn), conn.Close(ctx))
}

func (p *postgres) exec(ctx context.Context, name, what, statement string) error {
	return p.with(ctx, name, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

func (p *postgres) row(ctx context.Context, name, what, query string, args []any, to ...any) error {
	return p.with(ctx, name, func(conn *pgx.Conn) error {
		if err := conn.QueryRow(ctx, query, args...).Scan(to...); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	})
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

func (p *postgres) describe(ctx context.Context) (*DatabaseReport, error) {
	d := &DatabaseReport{}
	err := p.row(ctx, "", "asking the database server for its settings", `SELECT current_setting('server_version'),
		(SELECT json_object_agg(name, current_setting(name)) FROM pg_settings
			WHERE name IN ('shared_buffers', 'synchronous_commit', 'fsync', 'full_page_writes', 'max_wal_size', 'wal_level', 'max_connections', 'jit'))`,
		nil, &d.Version, &d.Settings)
	return d, err
}

func (p *postgres) exists(ctx context.Context, name string) (there bool, err error) {
	return there, p.row(ctx, "", "looking for a database", "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", []any{name}, &there)
}

func (p *postgres) create(ctx context.Context, name, template string) error {
	// A copy file by file does not go by way of the log.
	how := "TEMPLATE template0 ENCODING 'UTF8'"
	if template != "" {
		how = "TEMPLATE " + quoted(template) + " STRATEGY FILE_COPY"
	}
	return p.exec(ctx, "", "making a database", "CREATE DATABASE "+quoted(name)+" "+how)
}

func (p *postgres) drop(ctx context.Context, name string) error {
	err := p.exec(ctx, "", "dropping it", "DROP DATABASE IF EXISTS "+quoted(name)+" WITH (FORCE)")
	if err != nil {
		return fmt.Errorf("the database %s is left behind, please drop it yourself: %w", name, err)
	}
	return nil
}

func (p *postgres) settle(ctx context.Context, name string) error {
	if err := p.exec(ctx, name, "tidying up a database", "VACUUM (ANALYZE)"); err != nil {
		return err
	}
	// Not everybody may; then the server does it when it is time.
	_ = p.exec(ctx, name, "writing a checkpoint", "CHECKPOINT")
	return ctx.Err()
}

func (p *postgres) size(ctx context.Context, name string) (n int64, err error) {
	return n, p.row(ctx, "", "asking for a database's size", "SELECT pg_database_size($1::name)", []any{name}, &n)
}

// note writes into a schema of its own, where no server looks.
func (p *postgres) note(ctx context.Context, name string, text []byte) error {
	return p.with(ctx, name, func(conn *pgx.Conn) error {
		for _, s := range []struct {
			text string
			args []any
		}{
			{"CREATE SCHEMA hypha_bench", nil},
			{"CREATE TABLE hypha_bench.note (text bytea NOT NULL)", nil},
			{"INSERT INTO hypha_bench.note VALUES ($1)", []any{text}},
		} {
			if _, err := conn.Exec(ctx, s.text, s.args...); err != nil {
				return fmt.Errorf("writing down what is in a database: %w", err)
			}
		}
		return nil
	})
}

func (p *postgres) noted(ctx context.Context, name string) (text []byte, err error) {
	var there bool
	const what = "reading what is in a database"
	if err := p.row(ctx, name, what, "SELECT to_regclass('hypha_bench.note') IS NOT NULL", nil, &there); err != nil || !there {
		return nil, err
	}
	return text, p.row(ctx, name, what, "SELECT text FROM hypha_bench.note", nil, &text)
}

// postgresWatch is a connection to a database, and the process that is the parent
// of all of the server's; 0 if that is not on this machine.
type postgresWatch struct {
	conn       *pgx.Conn
	postmaster int
}

func (p *postgres) watch(ctx context.Context, name string) (databaseWatch, error) {
	conn, err := p.connect(ctx, name)
	if err != nil {
		return nil, err
	}
	w := &postgresWatch{conn: conn}
	var backend int
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		return nil, errors.Join(fmt.Errorf("asking for a database's process: %w", err), conn.Close(ctx))
	}
	w.postmaster = postmasterOf(backend, name)
	return w, nil
}

// sqlUsage counts transactions by the ids that they are given when they first write
// something. What pg_stat_database counts is told it by each session as it finds
// time, up to ten seconds later.
const sqlUsage = `SELECT pg_snapshot_xmax(pg_current_snapshot())::text, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint`

func (w *postgresWatch) read(ctx context.Context) (u databaseUsage, err error) {
	var commits string
	var wal int64
	if err := w.conn.QueryRow(ctx, sqlUsage).Scan(&commits, &wal); err != nil {
		return u, fmt.Errorf("asking what the database has done: %w", err)
	}
	u.wal = uint64(wal)
	if u.commits, err = strconv.ParseUint(commits, 10, 64); err != nil {
		return u, fmt.Errorf("asking what the database has done: %w", err)
	}
	if w.postmaster != 0 {
		u.cpu, err = readFamily(w.postmaster)
	}
	return u, err
}

func (w *postgresWatch) close(ctx context.Context) error { return w.conn.Close(ctx) }

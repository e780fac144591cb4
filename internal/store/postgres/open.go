package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// Options say where the database is, and who this process is.
type Options struct {
	// URL is a connection string (postgres://… or key=value), with what pgx takes
	// in it: pool_max_conns, default_query_exec_mode, and so on.
	URL string
	// Node names this process for people; Version is the program's.
	Node, Version string
	// SecretKeys are the fingerprints of the keys that this process has for what is
	// sealed, the one that seals first; the other nodes can ask for them. Default: it
	// seals and opens nothing.
	SecretKeys []int64
	// Logger is told of what goes on behind the calls. Default: nobody is.
	Logger *slog.Logger
	// Now is this process's clock. Default: time.Now.
	Now func() time.Time
	// Guard contains the panics of what goes on behind the calls. Default: they end
	// the process by themselves.
	Guard *contain.Guard
	// Span is how much time a part of the history holds, in whole hours. History
	// goes a span at a time. Default: a day.
	Span time.Duration
}

// Store is a node's view of the shared store. It is safe for concurrent use.
type Store struct {
	o Options
	// pool serves readers and changes of configuration. commits is for the
	// committer alone, leases for the beats: neither may wait for somebody who
	// reads much.
	pool, commits, leases *pgxpool.Pool
	logger                *slog.Logger
	now                   func() time.Time
	// node is this process's incarnation.
	node   atomic.Int64
	logged atomic.Int64 // rows of count_log
	spans  spans
	// notices has room for one: several say no more than one does.
	notices chan struct{}

	countsMu sync.Mutex
	unfolded map[id.Tenant]struct{}     // tenants with something to be folded
	pending  map[id.Tenant]knownPending // of tenants that have a limit

	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

// knownPending is how many unfinished deliveries a tenant has, as it was read and
// as this node has changed it since.
type knownPending struct {
	n    int64
	read time.Time
}

//var _ store.Store = (*Store)(nil)

// defaultConns are the connections of a node that serve readers, changes of
// configuration and what goes on in the background. The committer and the beats have
// reservedConns each beside them.
const (
	defaultConns  = 8
	reservedConns = 2
)

// Open connects to the database, brings its schema to what this program knows, and
// joins the nodes that use it.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Span == 0 {
		o.Span = 24 * time.Hour
	}
	pool, err := connect(ctx, o.URL)
	if err != nil {
		return nil, err
	}
	commits, err := reserve(ctx, pool)
	if err != nil {
		pool.Close()
		return nil, err
	}
	leases, err := reserve(ctx, pool)
	if err != nil {
		pool.Close()
		commits.Close()
		return nil, err
	}
	s := &Store{
		o: o, pool: pool, commits: commits, leases: leases, logger: o.Logger, now: o.Now, notices: make(chan struct{}, 1),
		unfolded: map[id.Tenant]struct{}{}, pending: map[id.Tenant]knownPending{},
	}
	if err := s.open(ctx); err != nil {
		s.disconnect()
		return nil, err
	}
	running, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	// Each begins anew with what is in the database.
	s.wg.Go(func() { o.Guard.Loop(running, "the folding of counts", func() { s.fold(running) }) })
	s.wg.Go(func() { o.Guard.Loop(running, "the making of spans", func() { s.keepSpansAhead(running) }) })
	s.wg.Go(func() {
		defer close(s.notices)
		o.Guard.Loop(running, "the hearing of other nodes", func() { s.listen(running) })
	})
	return s, nil
}

// connect makes the pool. A URL that can't be read is an error without the URL in
// it, which may hold a password.
func connect(ctx context.Context, url string) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("the database's URL can't be read: it should be like postgres://user:password@host:5432/database?sslmode=verify-full")
	}
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = 5 * time.Second
	}
	// pgx's default is by the number of processors, 4 at least.
	c.MaxConns = max(c.MaxConns, defaultConns)
	c.MinConns = 1
	c.HealthCheckPeriod = 10 * time.Second
	c.MaxConnIdleTime = 5 * time.Minute
	if c.ConnConfig.RuntimeParams["application_name"] == "" {
		c.ConnConfig.RuntimeParams["application_name"] = "hypha"
	}
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return pool, nil
}

// reserve makes a small pool beside another one, to the same place.
func reserve(ctx context.Context, beside *pgxpool.Pool) (*pgxpool.Pool, error) {
	c := beside.Config()
	c.MaxConns, c.MinConns, c.MinIdleConns = reservedConns, 1, 0
	pool, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return pool, nil
}

func (s *Store) disconnect() {
	for _, pool := range [...]*pgxpool.Pool{s.pool, s.commits, s.leases} {
		pool.Close()
	}
}

func (s *Store) open(ctx context.Context) error {
	if err := s.checkServer(ctx); err != nil {
		return err
	}
	if err := Migrate(ctx, s.pool); err != nil {
		return err
	}
	if err := s.openSpans(ctx); err != nil {
		return err
	}
	return s.Join(ctx)
}

const (
	oldestServer = 15_00_00
	// newestTested is the newest major version that the tests have seen.
	newestTested = 18
)

// checkServer refuses a server on which what was committed may be lost.
func (s *Store) checkServer(ctx context.Context) error {
	var version int
	var synchronous, fsync, encoding string
	_, err := one(ctx, s.pool, `SELECT current_setting('server_version_num')::int, current_setting('synchronous_commit'), current_setting('fsync'), current_setting('server_encoding')`,
		nil, &version, &synchronous, &fsync, &encoding)
	switch {
	case err != nil:
		return fmt.Errorf("ask the database for its settings: %w", err)
	case version < oldestServer:
		return fmt.Errorf("the database is PostgreSQL %d; 15 or newer is needed", version/10000)
	case synchronous == "off":
		return errors.New("the database has synchronous_commit=off, with which events that were accepted can be lost; set it to on for this database or role")
	case encoding != "UTF8":
		return fmt.Errorf("the database's encoding is %s; make one with ENCODING 'UTF8'", encoding)
	}
	if fsync == "off" {
		s.logger.WarnContext(ctx, "the database has fsync=off: events that were accepted are lost if its machine fails")
	}
	if version/10000 > newestTested {
		s.logger.WarnContext(ctx, "the database is newer than those that hypha was tested with", "postgresql", version/10000, "tested_up_to", newestTested)
	}
	return nil
}

// Ping answers whether a write would be possible now.
func (s *Store) Ping(ctx context.Context) error {
	var writable bool
	_, err := one(ctx, s.pool, "SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off'", nil, &writable)
	if err != nil {
		return edge(err)
	}
	if !writable {
		return hook.Unavailable(retryFull, nil, "The database is read-only")
	}
	return nil
}

// Close leaves the nodes and closes the connections. What this node held is free
// then.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.cancel()
		s.wg.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		s.closeErr = errors.Join(s.foldAll(ctx), s.Leave(ctx))
		s.disconnect()
	})
	return s.closeErr
}

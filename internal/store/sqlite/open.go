// Package sqlite is the embedded driver of the store: one SQLite database in a
// data folder, for one process.
//
// There is one writer, a connection that stays open with its statements
// prepared, and a few readers beside it. The database runs in WAL mode with
// synchronous=FULL, so what a method wrote is on disk when it returns.
// Checkpoints run in the background and are finished by the writer when the
// log grows (see checkpoint.go).
//
// Deliveries that this process holds are known to this process alone, and get
// their rows when there is something to say of them (see held.go). After a crash
// everything unfinished is free again.
//
// The package knows tables and statements. It holds no rules of the product
// besides what store.Store promises.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"
	driver "modernc.org/sqlite"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Options say where a store is.
type Options struct {
	// Dir is the data folder. It is made, for its owner alone, if it is not there.
	Dir string
	// Logger is told of what goes on behind the calls. Default: nobody is.
	Logger *slog.Logger
	// Now is the store's clock, by which idempotency keys end. Default: time.Now.
	Now func() time.Time
	// Guard contains the panics of what goes on behind the calls. Default: they end
	// the process by themselves.
	Guard *contain.Guard
}

// Store is the embedded store. It is safe for concurrent use.
type Store struct {
	dir    string
	path   string
	logger *slog.Logger
	guard  *contain.Guard
	now    func() time.Time
	lock   *flock.Flock

	// turn is held by whoever uses the writer and what is below it.
	turn     chan struct{}
	writer   *conn
	versions map[id.Tenant]int64
	gauges   map[gaugeKey]gauge
	counters map[counterKey]*counter
	texts    map[chunkKey]string
	rowArgs  map[string][]any // room for the arguments of rows, by their head
	held     *held
	unfolded *unfolded
	era      int64
	pass     prunePass
	wal      walState

	readers chan *conn // nil for one that is not open yet

	checkpoints checkpointer
	closeOnce   sync.Once
	closeErr    error
}

var _ store.Store = (*Store)(nil)

const (
	databaseFile = "hypha.db"
	lockFile     = "lock"

	pageSize    = 4096
	readerCount = 4
	// minFree is the room on the disk below which Ping reports none, in bytes:
	// a full write-ahead log and a batch.
	minFree = 48 << 20
)

// Open opens the store in a folder, and makes it if there is none. Its errors
// wrap store.ErrLocked when another process has the folder.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	lock := flock.New(filepath.Join(o.Dir, lockFile), flock.SetPermissions(0o600))
	held, err := lock.TryLock()
	if err != nil {
		return nil, fmt.Errorf("lock the data folder %s: %w", o.Dir, err)
	}
	if !held {
		return nil, fmt.Errorf("the data folder %s is in use by another hypha process; stop that one, or name another folder: %w", o.Dir, store.ErrLocked)
	}
	s := &Store{
		dir:      o.Dir,
		path:     filepath.Join(o.Dir, databaseFile),
		logger:   o.Logger,
		guard:    o.Guard,
		now:      o.Now,
		lock:     lock,
		turn:     make(chan struct{}, 1),
		versions: map[id.Tenant]int64{},
		gauges:   map[gaugeKey]gauge{},
		counters: map[counterKey]*counter{},
		texts:    map[chunkKey]string{},
		rowArgs:  map[string][]any{},
		held:     newHeld(),
		unfolded: newUnfolded(),
		readers:  make(chan *conn, readerCount),
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.release())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	// Process-wide; where the system has no fdatasync, SQLite syncs as before.
	if _, err := driver.Fdatasync(true); err != nil && !errors.Is(err, driver.ErrFdatasyncUnavailable) {
		return fmt.Errorf("choose fdatasync: %w", err)
	}
	// The log and its index take their permissions from the database's file.
	file, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make the database: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("make the database: %w", err)
	}
	if s.writer, err = s.connectWriter(ctx); err != nil {
		return err
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	if err := s.writer.scan("SELECT value FROM settings WHERE name = 'era'", func(r row) { s.era = r.int(0) }); err != nil {
		return fmt.Errorf("read the settings in %s: %w", s.path, err)
	}
	if err := s.recoverCounts(ctx); err != nil {
		return err
	}
	if err := s.recoverHeld(ctx); err != nil {
		return err
	}
	for range readerCount {
		s.readers <- nil
	}
	return s.checkpoints.start(ctx, s)
}

// connectWriter opens the connection that writes. The page size and the vacuum
// mode count for a new database only. A commit writes whole pages to the log:
// pages of 4 KiB made a batch of one event 23 % and one of 32 events 16 % faster
// than pages of 8 KiB, and large batches no slower.
func (s *Store) connectWriter(ctx context.Context) (*conn, error) {
	c, err := connect(ctx, s.dsn(""))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s.path, err)
	}
	for _, pragma := range []string{
		"PRAGMA busy_timeout = 250", // a checkpoint that waits for a reader; see readBudget
		fmt.Sprintf("PRAGMA page_size = %d", pageSize),
		"PRAGMA auto_vacuum = INCREMENTAL",
		"PRAGMA journal_mode = WAL",
		"PRAGMA synchronous = FULL",
		"PRAGMA wal_autocheckpoint = 0",
		fmt.Sprintf("PRAGMA journal_size_limit = %d", 2*restartAbove),
		"PRAGMA cache_size = -16384",
		"PRAGMA temp_store = MEMORY",
		"PRAGMA foreign_keys = OFF",
	} {
		if err := c.run(pragma); err != nil {
			return nil, errors.Join(fmt.Errorf("open %s: %s: %w", s.path, pragma, err), c.close())
		}
	}
	return c, nil
}

func (s *Store) connectReader(ctx context.Context) (*conn, error) {
	c, err := connect(ctx, s.dsn("mode=ro"))
	if err != nil {
		return nil, err
	}
	for _, pragma := range []string{
		"PRAGMA busy_timeout = 1000",
		"PRAGMA query_only = ON",
		"PRAGMA cache_size = -4096",
		"PRAGMA temp_store = MEMORY",
	} {
		if err := c.run(pragma); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

func (s *Store) dsn(query string) string {
	path, err := filepath.Abs(s.path)
	if err != nil {
		path = s.path
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: query}
	return u.String()
}

// Ping answers whether a write would be possible now.
func (s *Store) Ping(ctx context.Context) error {
	release, err := s.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	if s.writer == nil { // it was lost, and could not be replaced
		if err := s.replaceWriter(ctx); err != nil {
			return edge(err)
		}
	}
	if err := s.writer.scan("SELECT count(*) FROM settings", func(row) {}); err != nil {
		return edge(err)
	}
	free, err := freeSpace(s.dir)
	if err != nil {
		return hook.Unavailable(retrySoon, err, "The store can't be reached")
	}
	if free < minFree {
		return hook.Unavailable(retryFull, nil, "The store's disk is full")
	}
	return nil
}

// Close waits for what runs and lets go of the folder.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.turn <- struct{}{}
		// So that the next start has nothing to look for. If it can't be, it
		// does.
		if err := s.transact(context.Background(), func(t *tx) error { return errors.Join(t.settleAll(), t.foldAll()) }); err != nil {
			s.logger.Warn("what is held and counted could not be written out; the next start does it", "err", err)
		}
		s.closeErr = s.release()
	})
	return s.closeErr
}

// release closes whatever of the store is open. SQLite folds the log into the
// database when the last connection goes.
func (s *Store) release() error {
	errs := []error{s.checkpoints.stop()}
	for range readerCount {
		if s.checkpoints.conn == nil {
			break // the readers come last in open
		}
		if c := <-s.readers; c != nil {
			errs = append(errs, c.close())
		}
	}
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
	return errors.Join(append(errs, s.lock.Unlock())...)
}

package sqlite

import (
	"context"
	"fmt"
	"sync/atomic"

	sqlite "modernc.org/sqlite"

	"github.com/plinqx/hypha/internal/contain"
)

// The write-ahead log is folded into the database in two ways. A goroutine
// with its own connection copies what it can, without holding anybody up, each
// time the log has grown by checkpointEach. That never comes to an end while
// the writer goes on, so the log would grow; above restartAbove the writer
// finishes the work between two batches, when little is left to copy, and the
// log begins anew. It is not cut: to write over a file is cheaper than to let
// it grow.
const (
	checkpointEach = 4 << 20
	restartAbove   = 16 << 20
)

// walState is the writer's account of the log.
type walState struct {
	grown int64 // bytes since the last signal
}

// checkpointer copies the log in the background.
type checkpointer struct {
	conn   *conn
	wake   chan struct{}
	done   chan struct{}
	cancel context.CancelFunc
	// size is what the log holds, in bytes, as of the last checkpoint and with
	// what was written since.
	size atomic.Int64
}

func (p *checkpointer) start(ctx context.Context, s *Store) error {
	c, err := connect(ctx, s.dsn(""))
	if err != nil {
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	p.conn, p.wake, p.done = c, make(chan struct{}, 1), make(chan struct{})
	if err := c.run("PRAGMA synchronous = FULL"); err != nil {
		close(p.done)
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p.cancel = cancel
	go p.run(run, s)
	return nil
}

func (p *checkpointer) stop() error {
	if p.conn == nil {
		return nil
	}
	if p.cancel != nil {
		p.cancel()
	}
	<-p.done
	return p.conn.close()
}

func (p *checkpointer) run(ctx context.Context, s *Store) {
	defer close(p.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			var size int64
			err := s.guard.Try(contain.Background, "a checkpoint", func() (err error) {
				size, err = checkpoint(p.conn, "PASSIVE")
				return err
			})
			if err != nil {
				s.logger.WarnContext(ctx, "checkpoint failed", "error", err)
				continue
			}
			p.size.Store(size)
		}
	}
}

// checkpoint copies from the log, and says how large it is, in bytes.
func checkpoint(c *conn, mode string) (size int64, err error) {
	_, err = c.one("PRAGMA wal_checkpoint("+mode+")", func(r row) { size = max(0, r.int(1)) * pageSize })
	return size, err
}

// afterCommit keeps the account of the log. The caller has the turn. What goes
// wrong here goes into the log alone: the commit stands.
func (s *Store) afterCommit() {
	status, ok := s.writer.raw.(sqlite.DBStatus)
	if !ok {
		return
	}
	pages, _, err := status.Status(sqlite.DBStatusCacheWrite, true)
	if err != nil {
		return
	}
	p := &s.checkpoints
	s.wal.grown += int64(pages) * pageSize
	if size := p.size.Add(int64(pages) * pageSize); size > restartAbove {
		if _, err := checkpoint(s.writer, "RESTART"); err != nil {
			s.logger.Warn("checkpoint failed", "error", err)
		}
		// After a reader got in the way, it is tried again as much later.
		p.size.Store(0)
		s.wal.grown = 0
		return
	}
	if s.wal.grown > checkpointEach {
		s.wal.grown = 0
		select {
		case p.wake <- struct{}{}:
		default: // it is at it
		}
	}
}
